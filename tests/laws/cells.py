"""Notebooks as source: their code cells, run in this process the way a notebook runs them."""

from __future__ import annotations

import importlib.util
import linecache
import sys
from pathlib import Path
from types import ModuleType

import nbformat

ROOT = Path(__file__).resolve().parents[2]


def module(path: Path) -> ModuleType:
    """A file that is in no package, as `import` finds it once its folder is on the path."""
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[path.stem])
    return sys.modules[path.stem]


def read(folder: str, name: str) -> nbformat.NotebookNode:
    """A notebook of the repository."""
    return nbformat.read(ROOT / folder / name, as_version=4)


def code(folder: str, name: str) -> list[str]:
    """The sources of its code cells."""
    return [cell.source for cell in read(folder, name).cells if cell.cell_type == "code"]


def run(source: str, scope: dict[str, object]) -> None:
    """Run one cell. Its lines stay readable, as IPython's do: Triton compiles a kernel from its source."""
    name = f"<cell {hash(source)}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    exec(compile(source, name, "exec"), scope)
