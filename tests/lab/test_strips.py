"""Strips show every token once, as wide as its text, in the colour of its role."""

from __future__ import annotations

from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from pdref.lab.plots import INK, Chart
from pdref.lab.strips import document_strip, token_strip


def cells(chart: Chart) -> list[Rectangle]:
    [axes] = chart.axes
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def written(chart: Chart) -> list[str]:
    [axes] = chart.axes
    return [text.get_text() for text in axes.texts]


def test_a_document_has_a_line_per_part(drawn, words):
    layout = drawn("czz<xx><x>|z<x>$")
    chart = document_strip(layout, words)
    assert len(cells(chart)) == layout.shape[1]
    names = ["prompt", "plan 1", "span 1.1", "span 1.2", "<sync/>", "plan 2", "span 2.1", "<eos>"]
    assert [text for text in written(chart) if text in names] == [*names[:5], "<sync/>", *names[5:], "<eos>"]
    assert len({cell.get_y() for cell in cells(chart)}) == len(names)
    assert chart._repr_png_().startswith(b"\x89PNG")


def test_a_mask_is_dark_and_says_nothing(drawn, words):
    layout = drawn("<xxx>")
    where = layout.token.new_zeros(layout.shape).bool()
    where[0, 2] = True
    chart = token_strip({"noised": layout.masked(where)}, words)
    dark = [cell.get_facecolor() == to_rgba(INK) for cell in cells(chart)]
    assert dark == where[0].tolist()
    assert "<mask>" not in written(chart)


def test_aligned_columns_keep_their_width_under_masks(drawn, words):
    layout = drawn("<xxx>")
    everything = layout.token.new_ones(layout.shape).bool()
    chart = token_strip({"clean": layout, "noised": layout.masked(everything)}, words, aligned=True)
    edges = [cell.get_x() for cell in cells(chart)]
    assert edges[:5] == edges[5:]


def test_long_lines_wrap(drawn, words):
    layout = drawn("<" + "x" * 60 + ">")
    chart = token_strip({"span": layout}, words, width=4)
    rows = {cell.get_y() for cell in cells(chart)}
    right = max(cell.get_x() + cell.get_width() for cell in cells(chart))
    assert len(rows) > 1 and right <= chart.axes[0].get_xlim()[1]
