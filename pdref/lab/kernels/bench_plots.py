"""The benchmark as pictures: time and memory against size, a line an implementation, logarithmic both ways."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogFormatterSciNotation, LogLocator, NullFormatter, StrMethodFormatter

from pdref.lab.kernels.bench import BACKWARD, BOTH, FORWARD, Row, size_of, split_sizes
from pdref.lab.player import ROLE_COLOURS, SPAN_COLOURS
from pdref.lab.plots import INK, STYLE, Chart
from pdref.text.layout import Role

LINES = {
    "naive": (INK, "s"),
    "torch": (SPAN_COLOURS[1], "D"),
    "triton": (ROLE_COLOURS[Role.CONTENT], "o"),
    "flex": (SPAN_COLOURS[3], "^"),
    "liger": (SPAN_COLOURS[4], "v"),
    "cut": (SPAN_COLOURS[5], "P"),
}
TITLES = {FORWARD: "forward", BACKWARD: "backward", BOTH: "forward and backward"}


def speed_and_memory(rows: Sequence[Row], op: str) -> Chart:
    """An op's median times (a band from fastest to slowest) by part, and its extra memory, against what varies.

    Raises ValueError if there are no rows of `op`.
    """
    rows = [row for row in rows if row.op == op]
    if not rows:
        raise ValueError(f"no rows of {op!r}: nothing was timed")
    (name, *_), fixed = split_sizes(rows)
    parts = [part for part in TITLES if any(row.part == part for row in rows)]
    with rc_context(STYLE):
        figure = Chart(figsize=(3.1 * (len(parts) + 1), 3.3), layout="constrained")
        panels = figure.subplots(1, len(parts) + 1)
        for part, axes in zip(parts, panels, strict=False):
            _lines(axes, [row for row in rows if row.part == part], name, "median_ms", ("fastest_ms", "slowest_ms"))
            axes.set(title=TITLES[part], ylabel="milliseconds")
        _lines(panels[-1], [row for row in rows if row.part == parts[-1]], name, "extra_mib")
        panels[-1].set(title="memory beyond inputs and results", ylabel="MiB at the peak")
        for axes in panels:
            _ticks(axes, sorted({size_of(row)[name] for row in rows}))
            axes.set_xlabel(name)
        panels[0].legend(fontsize=8.5)
        first = rows[0]
        where = f"{first.device_name}, {first.threads} threads" if first.device == "cpu" else first.device_name
        figure.suptitle(
            f"{op}    {fixed}    {first.dtype}, {where}, torch {first.torch}", fontsize=8.5, x=0.01, ha="left"
        )
    return figure


def _lines(axes: Axes, rows: Sequence[Row], name: str, column: str, band: tuple[str, str] | None = None) -> None:
    """A line for each implementation; a memory of nothing is not drawn, for want of a logarithm."""
    for impl in dict.fromkeys(row.impl for row in rows):
        mine = sorted((row for row in rows if row.impl == impl), key=lambda row: size_of(row)[name])
        mine = [row for row in mine if getattr(row, column) > 0]
        if not mine:
            continue
        colour, marker = LINES[impl]
        x, y = [size_of(row)[name] for row in mine], [getattr(row, column) for row in mine]
        axes.plot(
            x, y, color=colour, marker=marker, ms=7 if impl == "naive" else 5, lw=1.5, mec="white", label=impl, gid=impl
        )
        if band:
            low, high = ([getattr(row, end) for row in mine] for end in band)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


def _ticks(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(FixedLocator([]))
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(
        StrMethodFormatter("{x:g}") if high < 1e5 and low > 1e-4 else LogFormatterSciNotation()
    )
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#ECEEF0", lw=0.8)
