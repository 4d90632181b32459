"""Rows say what they measured, and none is made twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pdref.lab import coherence_arms, ledger
from pdref.lab.coherence_arms import FAILURES, GIVEN, Budget, Row, main, wanted
from pdref.lab.essay_writers import ARMS

TINY = Budget(kinds=3, steps=1, batch=2, layers=1, width=8, heads=1)
QUICK = ["--kinds", "3", "--steps", "1", "--batch", "2", "--layers", "1", "--width", "8", "--heads", "1"]


def test_rows_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that dies goes on where it stopped, and ends with the rows of one that did not."""
    command = [*["--lengths", "4", "8", "--failing", "4", "--seeds", "1", "--essays", "3"], *QUICK]
    main([*command, "--out", str(tmp_path / "whole.csv")])
    whole = ledger.read(tmp_path / "whole.csv", Row)
    assert len(whole) == sum(2 * len(given) for given in GIVEN.values()) + len(FAILURES)
    assert [row.key for row in whole] == [*wanted(ARMS, (4, 8), 4, 0, TINY)]
    measure, made = coherence_arms.measure, []

    def dying(*given: object) -> Row:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(given)
        return measure(*given)

    monkeypatch.setattr(coherence_arms, "measure", dying)
    with pytest.raises(KeyboardInterrupt):
        main([*command, "--out", str(tmp_path / "cut.csv")])
    monkeypatch.setattr(coherence_arms, "measure", lambda *given: made.append(given) or measure(*given))
    main([*command, "--out", str(tmp_path / "cut.csv")])
    assert len(made) == len(whole)
    cut = ledger.read(tmp_path / "cut.csv", Row)
    assert [row.key for row in cut] == [row.key for row in whole]
    assert [row.violations for row in cut] == pytest.approx([row.violations for row in whole], abs=1)
    monkeypatch.setattr(coherence_arms, "trained", lambda *_: pytest.fail("nothing is left to make"))
    main([*command, "--out", str(tmp_path / "cut.csv")])


def test_rows_say_what_they_measured(tmp_path: Path) -> None:
    command = ["--arms", "planned", "--lengths", "4", "--failing", "0", "--seeds", "1", "--essays", "20", "--out"]
    main([*command, str(tmp_path / "rows.csv"), *QUICK])
    rows = {row.plan: row for row in ledger.read(tmp_path / "rows.csv", Row)}
    assert Budget.parse(rows["own"].budget) == TINY
    for row in rows.values():
        v = np.repeat(np.arange(13), np.array(row.histogram, int))
        assert len(v) == row.essays == 20 and len(row.disagreement) == row.paragraphs == 4
        assert row.violations == pytest.approx(v.mean()) and row.variance == pytest.approx(v.var(ddof=1), rel=1e-4)
        assert row.error == pytest.approx((row.variance / 20) ** 0.5, rel=1e-4)
        assert row.violations == pytest.approx(3 * sum(row.disagreement), rel=1e-4)
        assert row.flawless == pytest.approx(row.histogram[0] / 20)
        assert row.tokens == 2 * 4 * 15 and 0 < row.eps <= 1
    assert (rows["oracle"].wrong, rows["wrong"].wrong, rows["oracle"].gaps) == (0, 1, 0)


def test_sections_have_four_paragraphs() -> None:
    with pytest.raises(ValueError, match="6 are no whole number of sections"):
        TINY.source(6)


def test_the_shipped_rows_are_of_the_default_budget() -> None:
    """What the notebook shows is what the command makes: every row of three seeds, once."""
    rows = ledger.read(ledger.RESULTS / "coherence_arms.csv", Row)
    keys = [key for seed in range(3) for key in wanted(ARMS, (4, 8, 16, 32), 16, seed, Budget())]
    assert sorted(row.key for row in rows) == sorted(keys)
