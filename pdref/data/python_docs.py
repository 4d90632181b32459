"""Python's own documentation, as installed, as named texts: no download, and no library code is run.

The choices made:

- Sources, in this order: the language reference in `pydoc_data.topics`; the standard library's docstrings,
  read from its source with `ast`; those of a fixed list of compiled modules, which are imported.
- The prompt is what one would look up: a dotted name with its signature, or a section's title.
- Docstrings too short for a document are gathered under their class or module, as `help()` lists members.
- Repeated texts are left out.

The text differs between minor versions of Python, and a little between platforms, which lack some modules.
Within one installation the result and its order are always the same.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

# Not documentation (tests, tables, bundled tools), or packaged separately by some distributions.
LEFT_OUT = frozenset(
    re.findall(
        r"\S+",
        """__main__ _pydecimal antigravity distutils encodings ensurepip idlelib lib2to3 pydoc_data test this
        tkinter turtle turtledemo""",
    )
)
COMPILED = re.findall(
    r"\S+",
    """_bisect _codecs _collections _csv _curses _functools _io _operator _socket _sqlite3 _ssl _struct
    _thread array binascii builtins cmath gc itertools marshal math mmap posix select signal sys time
    unicodedata zlib""",
)

PATCHED = frozenset({"input"})  # notebooks put their own in its place

SHORT = 240  # characters under which a docstring is gathered with its neighbours
SIGNATURE = 90  # characters over which a signature is left out


class Entry(NamedTuple):
    """One text to be planned; `name` decides its split."""

    name: str
    prompt: str
    text: str


@dataclass(slots=True)
class Symbol:
    """A documented name and what it contains."""

    name: str
    signature: str
    doc: str
    members: list[Symbol] = field(default_factory=list)


def clean(text: str) -> str:
    """A docstring without its margin, trailing white space and repeated blank lines."""
    lines = (line.rstrip() for line in inspect.cleandoc(text).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def module_paths() -> Iterator[tuple[str, Path]]:
    """Dotted name and source of every standard module that is written in Python, in alphabetical order."""
    root = Path(sysconfig.get_path("stdlib"))
    for top in sorted(sys.stdlib_module_names - LEFT_OUT):
        file = root / f"{top}.py"
        for path in [file] if file.is_file() else sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if not {"test", "tests"} & set(parts):
                yield ".".join(parts).removesuffix(".__init__"), path


def read_source(name: str, source: str) -> Symbol:
    """The documented names of a module's source; nothing is imported. Raises SyntaxError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the library's own sources
        return _read_node(ast.parse(source), name, f"module {name}")


def _read_node(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, sign: str
) -> Symbol:
    symbol = Symbol(name, sign, clean(ast.get_docstring(node) or ""))
    if isinstance(node, (ast.Module, ast.ClassDef)):
        for child in node.body:
            if isinstance(child, ast.ClassDef):
                symbol.members.append(_read_node(child, f"{name}.{child.name}", f"class {name}.{child.name}"))
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                path = f"{name}.{child.name}"
                symbol.members.append(_read_node(child, path, path + _arguments(child.args)))
    return symbol


def _arguments(arguments: ast.arguments) -> str:
    for group in (arguments.posonlyargs, arguments.args):
        if group and group[0].arg in ("self", "cls"):
            group.pop(0)
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    written = f"({ast.unparse(arguments)})"
    return written if len(written) <= SIGNATURE else "(...)"


def read_compiled(name: str) -> Symbol | None:
    """The documented names of a module without source; None where the platform lacks it."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return None
    return _read_object(module, name.lstrip("_"), f"module {name.lstrip('_')}")


def _read_object(thing: object, name: str, sign: str) -> Symbol:
    doc = thing.__doc__ if isinstance(thing.__doc__, str) else ""
    symbol = Symbol(name, sign, clean(doc))
    if inspect.ismodule(thing) or inspect.isclass(thing):
        for key, member in sorted(vars(thing).items()):
            path = f"{name}.{key}"
            if key in PATCHED or (inspect.ismodule(thing) and not _is_own(member, thing)):
                continue
            if inspect.isclass(member) and inspect.ismodule(thing):
                symbol.members.append(_read_object(member, path, f"class {path}"))
            elif callable(member) and not inspect.isclass(member):
                symbol.members.append(_read_object(member, path, path + _signature(member)))
    return symbol


def _is_own(member: object, module: ModuleType) -> bool:
    """Not brought in from elsewhere, as notebooks add to `builtins`."""
    home = getattr(member, "__module__", None) or module.__name__
    return home.lstrip("_") == module.__name__.lstrip("_")


def _signature(function: object) -> str:
    """As C code declares it: `inspect.signature` would evaluate the defaults."""
    declared = getattr(function, "__text_signature__", None)
    if not isinstance(declared, str):
        return ""
    written = re.sub(r"\(\$\w+(, /)?(, )?", "(", " ".join(declared.split()))
    return written if len(written) <= SIGNATURE else "(...)"


def read_topics() -> Iterator[Entry]:
    """The sections of the language reference; the names are those `help()` accepts."""
    from pydoc_data.topics import topics  # half a megabyte: only when asked for

    for name, text in sorted(topics.items()):
        title = ""
        for heading, body in _sections(clean(text)):
            title = title or heading
            yield Entry(f"topic {name}", heading if heading == title else f"{title}: {heading}", body)


def _sections(text: str) -> Iterator[tuple[str, str]]:
    cut = re.split(r"(?:^|\n)([^\n]+)\n([*=~^-])\2{2,}(?:\n+|\Z)", text)
    for heading, body in zip(cut[1::3], cut[3::3], strict=True):
        if body.strip():
            yield heading.strip(), body.strip("\n")


def read_symbols(symbol: Symbol, seen: set[str]) -> Iterator[Entry]:
    """Entries of a symbol and its members; what is in `seen` is left out, what is new joins it."""
    short = []
    if len(symbol.doc) >= SHORT and _new(symbol.doc, seen):
        yield Entry(symbol.name, symbol.signature, symbol.doc)
    for member in symbol.members:
        if 0 < len(member.doc) < SHORT and _new(member.doc, seen):
            head = member.signature.removeprefix(symbol.name + ".").replace(symbol.name + ".", "")
            short.append(f"{head}\n    " + member.doc.replace("\n", "\n    ").replace("\n    \n", "\n\n"))
        yield from read_symbols(member, seen)
    listed = "\n\n".join(short)
    if len(listed) >= SHORT:
        kind = "classes and functions" if symbol.signature.startswith("module") else "methods"
        yield Entry(symbol.name, f"{symbol.signature}: {kind}", listed)


def _new(text: str, seen: set[str]) -> bool:
    key = " ".join(text.lower().split())
    fresh = key not in seen
    seen.add(key)
    return fresh


def collect() -> list[Entry]:
    """Everything there is to read, without repetitions, in a fixed order."""
    seen: set[str] = set()
    entries = [entry for entry in read_topics() if len(entry.text) >= SHORT and _new(entry.text, seen)]
    for name, path in module_paths():
        entries += read_symbols(read_source(name, path.read_text(encoding="utf-8")), seen)
    for name in COMPILED:
        if (symbol := read_compiled(name)) is not None:
            entries += read_symbols(symbol, seen)
    return entries
