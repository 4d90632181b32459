"""The figures draw what they are given."""

from __future__ import annotations

import numpy as np

from pdref.data.essays import Essays
from pdref.lab import coherence_plots, ledger
from pdref.lab.coherence_arms import Row
from pdref.lab.essay_writers import ARMS, Writer, batch

ROWS = ledger.read(ledger.RESULTS / "coherence_arms.csv", Row)


def test_what_is_in_sight_is_coloured() -> None:
    """White is what two layers of a window of 3 do not reach: counted from the rule by hand."""
    writer = Writer.fresh(ARMS["windowed"], Essays(kinds=1, sections=1, paragraphs=1))
    layout = batch(writer, 1, 0)
    (picture,) = coherence_plots.sight(layout, window=3, layers=2).axes[0].get_images()
    white = (picture.get_array() == 1).all(-1)
    i, j = np.indices(white.shape)
    assert (white == ((j > i) | (i - j > 4))).all()


def test_points_are_the_rows() -> None:
    sweep = [row for row in ROWS if row.plan in ("none", "oracle")]
    left, right = coherence_plots.lengths(sweep).axes
    assert (
        len(left.get_legend().get_texts()) == 3 and "window, no plan: 1." in left.get_legend().get_texts()[0].get_text()
    )
    points = left.containers[0].lines[0].get_xydata()
    seeds = [row.violations for row in sweep if (row.writer, row.paragraphs) == ("windowed", 8)]
    assert np.allclose(points[1], [8, np.mean(seeds)])
    assert right.get_ylim()[1] < 1


def test_failing_plans_have_a_point_for_each_share() -> None:
    left, right = coherence_plots.failing(ROWS).axes
    assert [len(c.lines[0].get_xydata()) for c in left.containers] == [5, 3]
    assert right.get_lines()[0].get_xydata()[0, 1] < 2 < right.get_lines()[0].get_xydata()[1, 1]
