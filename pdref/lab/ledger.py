"""A ledger of runs: a CSV with a row for each, appended as soon as the run is done.

A row is a frozen dataclass of str, int, float, bool, tuple[float, ...] or None; the columns are its fields. So a long
sweep that was cut goes on where it stopped: its command reads the ledger and leaves out the runs that have a row.
"""

from __future__ import annotations

import csv
import platform
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import torch

Row = TypeVar("Row")
RESULTS = Path(__file__).parent / "results"


def read(path: Path | str, row: type[Row]) -> list[Row]:
    """The rows of a CSV, in its order; none if there is no such file. Raises ValueError if its columns are others."""
    if not Path(path).is_file():
        return []
    hints = get_type_hints(row)
    with open(path, newline="") as file:
        found = csv.DictReader(file)
        if found.fieldnames != [field.name for field in fields(row)]:  # type: ignore[arg-type]
            raise ValueError(f"{path} has the columns {found.fieldnames}, not those of {row.__name__}")
        return [row(**{name: _parsed(cell, hints[name]) for name, cell in cells.items()}) for cells in found]


def append(path: Path, row: Any) -> None:
    """Add a row to a CSV, under a header if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with open(path, "a", newline="") as file:
        writer = csv.writer(file)
        names = [field.name for field in fields(row)]
        if new:
            writer.writerow(names)
        writer.writerow([_cell(getattr(row, name)) for name in names])


def made_with() -> str:
    """What a row says of where it was made: the version of PyTorch, its threads, the processor."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}"


def _cell(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(_cell, value))
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _parsed(cell: str, kind: Any) -> Any:
    kinds = get_args(kind) or (kind,)
    if type(None) in kinds and not cell:
        return None
    if Ellipsis in kinds:
        return tuple(map(kinds[0], cell.split()))
    if kinds[0] is bool:
        return cell == "True"
    return kinds[0](cell)
