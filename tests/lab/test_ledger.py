"""Ledgers: what is read is what was written, and a file of other columns is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdref.lab import ledger


@dataclass(frozen=True)
class Weighed:
    name: str
    count: int
    kilograms: float
    sold: bool
    day: int | None
    parts: tuple[float, ...]


ROW = Weighed("flour, sifted", 3, 0.25, False, None, ())
few = st.integers(-(10**5), 10**5)
rows = st.builds(Weighed, st.text('ab ,"|\n'), few, few.map(float), st.booleans(), st.none() | few, st.just((1.0, 0.5)))


@given(st.lists(rows, min_size=1, max_size=3))
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, written: list[Weighed]) -> None:
    path = tmp_path_factory.mktemp("ledger") / "new" / "rows.csv"
    assert ledger.read(path, Weighed) == []
    for row in written:
        ledger.append(path, row)
    assert ledger.read(path, Weighed) == written


def test_real_numbers_keep_six_digits(tmp_path: Path) -> None:
    ledger.append(tmp_path / "rows.csv", replace(ROW, kilograms=1 / 3, parts=(2 / 3,)))
    (found,) = ledger.read(tmp_path / "rows.csv", Weighed)
    assert found.kilograms == 0.333333 and found.parts == (0.666667,)


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("name,price\nflour,1\n")
    with pytest.raises(ValueError, match="columns"):
        ledger.read(tmp_path / "rows.csv", Weighed)
