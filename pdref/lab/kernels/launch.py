"""What was launched, told so that another process can compile the very same thing.

Triton decides when it is imported whether kernels are interpreted, so the process that runs a kernel on a CPU is not
the one that compiles it. Between them goes this record: where the kernel stands, the type and specialisation of each
argument (Triton compiles anew for pointers and integers divisible by 16 and for integers equal to 1) and the options.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

BACKENDS = {"cuda": ("nvidia", "CUDABackend", 90, 32), "hip": ("amd", "HIPBackend", "gfx942", 64)}
"""Where Triton keeps a backend, and a target of each: the rules of specialisation differ between the two only."""

Argument = list[Any]
"""[type, specialisation] as Triton's launcher has them, or ["constexpr", value]."""


@dataclass(frozen=True)
class Launch:
    """A kernel and all that its machine code depends on, in values that JSON can carry."""

    module: str
    name: str
    file: str
    arguments: Mapping[str, Mapping[str, Argument]]  # by backend, by name
    options: Mapping[str, Any]

    @property
    def configuration(self) -> str:
        """The compile-time sizes and options, as in "BN=128 BV=64 num_warps=8"."""
        sizes = {k: v for k, (kind, v) in self.arguments["cuda"].items() if kind == "constexpr" and k.isupper()}
        return " ".join(f"{k}={v}" for k, v in {**sizes, **self.options}.items())

    @property
    def key(self) -> str:
        """Equal for launches that share their machine code."""
        return repr((self.file, self.name, self.arguments, self.options))

    def in_bfloat16(self) -> Launch:
        """The same with every float16 made a bfloat16, which the interpreter computes wrongly."""

        def changed(argument: Argument) -> Argument:
            kind, value = argument
            return [kind.replace("fp16", "bf16"), {"dtype": "bf16"} if value == {"dtype": "fp16"} else value]

        arguments = {
            backend: {name: changed(argument) for name, argument in named.items()}
            for backend, named in self.arguments.items()
        }
        return replace(self, arguments=arguments)


def describe(kernel: Any, args: tuple, kwargs: Mapping[str, Any]) -> Launch:
    """The launch of an interpreted kernel with these arguments, bound and specialised by Triton's own launcher."""
    from triton.runtime.jit import JITFunction, create_function_from_signature

    compiled = JITFunction(kernel.fn, **kernel.kwargs)
    arguments: dict[str, dict[str, Argument]] = {}
    options: dict[str, Any] = {}
    for backend in BACKENDS:
        bind = create_function_from_signature(compiled.signature, compiled.params, _backend(backend))
        _, specialised, options = bind(*args, **kwargs)
        arguments[backend] = {
            p.name: [kind, _encode(value)] for p, (kind, value) in zip(compiled.params, specialised, strict=True)
        }
    return Launch(kernel.fn.__module__, kernel.fn.__name__, _file(kernel.fn), arguments, options)


def source(launch: Launch, backend: str) -> Any:
    """Triton's `ASTSource` of a launch: kernel, signature, constants and attributes."""
    from triton.compiler import ASTSource

    arguments = list(launch.arguments[backend].items())
    parse = type(_backend(backend)).parse_attr
    return ASTSource(
        kernel(launch.module, launch.name, launch.file),
        {name: kind for name, (kind, _) in arguments},
        {(i,): _decode(value) for i, (_, (kind, value)) in enumerate(arguments) if kind == "constexpr"},
        {(i,): parse(value) for i, (_, (kind, value)) in enumerate(arguments) if kind != "constexpr" and value},
    )


def kernel(module: str, name: str, file: str) -> Any:
    """The kernel of this name, from its module if that is the file's, else from the file itself."""
    found = getattr(_module(module, file), name)
    while not hasattr(found, "arg_names") or hasattr(found, "configs"):  # unwrap heuristics and autotuning
        found = found.fn
    return found


def _module(name: str, file: str) -> ModuleType:
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == file:
        return loaded
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin == file:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"no kernels can be loaded from {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def _backend(name: str) -> Any:
    from triton.backends.compiler import GPUTarget

    package, cls, arch, warp = BACKENDS[name]
    compiler = importlib.import_module(f"triton.backends.{package}.compiler")
    return getattr(compiler, cls)(GPUTarget(name, arch, warp))


def _file(function: Callable) -> str:
    return str(Path(inspect.getsourcefile(function) or "").resolve())


def _encode(value: Any) -> Any:
    """A constant as JSON has it. Raises TypeError for what no kernel here is passed."""
    import triton.language as tl

    if isinstance(value, tl.constexpr):
        value = value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tl.dtype):
        return {"dtype": value.name}
    if hasattr(value, "fn"):
        return {"module": value.fn.__module__, "name": value.fn.__name__, "file": _file(value.fn)}
    raise TypeError(f"a constant of type {type(value).__name__} cannot be recorded")


def _decode(value: Any) -> Any:
    import triton.language as tl

    if not isinstance(value, dict):
        return value
    return tl.dtype(value["dtype"]) if "dtype" in value else kernel(**value)
