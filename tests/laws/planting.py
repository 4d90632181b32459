"""Bugs to plant: a change of a few characters in one function of the library, for as long as a test runs."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType, ModuleType
from typing import Any

import pytest


@dataclass(frozen=True)
class Bug:
    """In the function `where` ("package.module:Class.method"), `right` becomes `wrong`; `red` are laws that break."""

    where: str
    right: str
    wrong: str
    red: tuple[str, ...]

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Compile the function with the bug in it and put it wherever the library holds the function."""
        module_name, _, path = self.where.partition(":")
        module = importlib.import_module(module_name)
        *owners, name = path.split(".")
        owner: Any = reduce(getattr, owners, module)
        original = inspect.getattr_static(owner, name)
        source = textwrap.dedent(inspect.getsource(_function(original)))
        assert source.count(self.right) == 1, f"{self.where} says {self.right!r} {source.count(self.right)} times"
        planted: dict[str, Any] = {}
        exec(compile(source.replace(self.right, self.wrong), self.where, "exec"), vars(module), planted)
        if owner is not module:
            monkeypatch.setattr(owner, name, planted[name])
            return
        for holder in [m for n, m in sys.modules.items() if n.split(".")[0] == "pdref"]:
            if vars(holder).get(name) is original:
                monkeypatch.setattr(holder, name, planted[name])


def _function(found: Any) -> FunctionType:
    """The function within a property, a static or a class method."""
    return getattr(found, "fget", None) or getattr(found, "__func__", found)


@contextmanager
def planted_module(name: str, right: str, wrong: str, dependents: tuple[str, ...] = ()) -> Iterator[None]:
    """The module `name` with `right` replaced by `wrong` in its source, for as long as the block runs.

    For kernels, which Triton reads from their file: the changed source is written to a file of its own.
    `dependents` are modules that hold functions of it and are imported anew, in this order.
    """
    names = [name, *dependents]
    kept = {n: importlib.import_module(n) for n in names}
    source = Path(kept[name].__file__ or "").read_text()
    assert source.count(right) == 1, f"{name} says {right!r} {source.count(right)} times"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "planted.py"
        file.write_text(source.replace(right, wrong))
        try:
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            _put(name, module)
            spec.loader.exec_module(module)
            for dependent in dependents:
                del sys.modules[dependent]
                _put(dependent, importlib.import_module(dependent))
            yield
        finally:
            for n, module in kept.items():
                _put(n, module)


def _put(name: str, module: ModuleType) -> None:
    """Where `import` and attribute access look for a module."""
    sys.modules[name] = module
    package, _, last = name.rpartition(".")
    setattr(sys.modules[package], last, module)
