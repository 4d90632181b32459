"""Figures of coherence: what a window sees, violations against length and distance, and plans that fail.

Points are measured, with 95% intervals; lines are the theory at measured errors, with nothing fitted to the points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator, PercentFormatter

from pdref.lab import growth
from pdref.lab.coherence_arms import FAILURES, Budget, Row
from pdref.lab.player import ROLE_COLOURS
from pdref.lab.plots import FAINT, STYLE, Chart
from pdref.text.layout import Layout, Role
from pdref.text.window import window_mask
from pdref.theory import coherence

STYLES = {
    ("windowed", "none"): ("window, no plan", "#D55E00", "o"),
    ("full", "none"): ("full attention, no plan", "#009E73", "D"),
    ("planned", "own"): ("window, own plan", "#0072B2", "s"),
    ("planned", "oracle"): ("window, oracle plan", "#56B4E9", "^"),
    ("planned", "shuffled"): ("window, another essay's plan", "#E69F00", "v"),
    ("planned", "wrong"): ("window, wrong plan", "#CC79A7", "X"),
}
GRID = "#ECEEF0"


def grouped(rows: Iterable[Row]) -> dict[tuple[str, str], dict[int, list[Row]]]:
    """Rows by writer and plan, then by length: the seeds of each setting."""
    found: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for row in rows:
        found.setdefault((row.writer, row.plan), {}).setdefault(row.paragraphs, []).append(row)
    return {key: dict(sorted(found[key].items())) for key in STYLES if key in found}


def sight(layout: Layout, window: int, layers: int, width: float = 6.4) -> Chart:
    """Who sees whom in one layer, in the colour of the key's role, and paler, what further layers reach."""
    row = layout.map(lambda field: field[:1])
    mask = window_mask(row, row, window)[0, 0].numpy()  # [T, T]
    reached = np.linalg.matrix_power(mask.astype(float), layers) > 0
    colours = np.array([to_rgb(ROLE_COLOURS[Role(role)]) for role in row.role[0].tolist()])[None]  # [1, T, 3]
    pale = 1 - 0.3 * (1 - colours)
    picture = np.where(mask[..., None], colours, np.where(reached[..., None], pale, 1.0))
    with rc_context(STYLE):
        figure = Chart(figsize=(width, 0.8 * width), layout="constrained")
        axes = figure.subplots()
        axes.imshow(picture, interpolation="nearest")
        axes.spines[:].set(visible=True, color=FAINT)
        axes.set_xlabel("token that is seen")
        axes.set_ylabel("token that looks")
        names = {Role.PROMPT: "prompt", Role.PLAN: "plan", Role.CONTENT: "text"}
        keys = [Patch(color=ROLE_COLOURS[role], label=name) for role, name in names.items() if (row.role == role).any()]
        keys.append(Patch(color="#BFC4CA", label=f"pale: within the reach of {layers} layers"))
        axes.legend(handles=keys, loc="upper right", fontsize=8)
    return figure


def lengths(rows: Sequence[Row], width: float = 10.0) -> Chart:
    """Violations against length, both logarithmic, with fitted exponents; and against the distance to the thesis."""
    found = grouped(rows)
    budget = Budget.parse(rows[0].budget)
    longest = max(row.paragraphs for row in rows)
    with rc_context(STYLE):
        figure = Chart(figsize=(width, 0.44 * width), layout="constrained")
        left, right = figure.subplots(1, 2)
        for key, by_length in found.items():
            name, colour, marker = STYLES[key]
            at = [*by_length]
            means = [growth.violations(seeds) for seeds in by_length.values()]
            slope = growth.exponent(row for seeds in by_length.values() for row in seeds)
            label = f"{name}: {slope.mean:.2f} [{slope.low:.2f}, {slope.high:.2f}]"
            _points(left, at, means, colour, marker, label)
            left.plot(at, [growth.expected(seeds) for seeds in by_length.values()], color=colour, lw=1)
            seeds = by_length[longest]
            share = np.mean([row.disagreement for row in seeds], 0)
            half = 1.96 * np.sqrt(share * (1 - share) / (budget.kinds * sum(row.essays for row in seeds)))
            distance = growth.distances(budget.source(longest))
            right.errorbar(distance, share, half, color=colour, fmt=marker, ms=3, lw=0.7, alpha=0.8)
            right.plot(distance, growth.expected_disagreement(seeds), color=colour, lw=1)
        left.set_xscale("log", base=2)
        left.set_yscale("log")
        left.set_xticks([*by_length], [*by_length])
        left.xaxis.set_minor_locator(NullLocator())
        left.set_xlabel("paragraphs T")
        left.set_ylabel("violations in an essay")
        left.legend(fontsize=7.5, title="exponent, 95% interval", title_fontsize=7.5, loc="upper left")
        low, high = left.get_ylim()
        left.set_ylim(low, high * (high / low) ** 0.55)
        right.axhline(1 - 1 / budget.values, color="#8A9199", lw=1, ls=(0, (2, 2)))
        place = {"textcoords": "offset points", "fontsize": 8, "va": "top"}
        right.annotate("chance", (0, 1 - 1 / budget.values), (4, -6), **place)
        right.set_xlabel("tokens since thesis or plan")
        right.set_ylabel("share of sentences that contradict the thesis")
        right.yaxis.set_major_formatter(PercentFormatter(1))
        right.set_ylim(-0.02, 1.02 * max(1 - 1 / budget.values, max(max(row.disagreement) for row in rows)))
        for axes in (left, right):
            axes.grid(color=GRID)
    return figure


def failing(rows: Sequence[Row], width: float = 10.0) -> Chart:
    """Plans with wrong values and with gaps: violations, and how much sentences of a kind fail together."""
    budget = Budget.parse(rows[0].budget)
    K, m = budget.kinds, budget.values
    T = next(row.paragraphs for row in rows if (row.plan, row.share) in FAILURES)
    planned = [row for row in rows if row.writer == "planned" and row.paragraphs == T]
    eps = float(np.mean([row.eps for row in planned]))
    shares = np.linspace(0, 1, 101)
    ends = {
        "corrupted": ("#0072B2", "s", "wrong values", "wrong", 1.0),
        "gaps": ("#E69F00", "v", "gaps", "", 1 - 1 / m),
    }
    with rc_context(STYLE):
        figure = Chart(figsize=(width, 0.38 * width), layout="constrained")
        left, right = figure.subplots(1, 2)
        for how, (colour, marker, name, whole, harm) in ends.items():
            found: dict[float, list[Row]] = {}
            for row in planned:
                share = {"oracle": 0.0, whole: 1.0, how: row.share}.get(row.plan)
                if share is not None:
                    found.setdefault(share, []).append(row)
            found = dict(sorted(found.items()))
            _points(left, [*found], [growth.violations(seeds) for seeds in found.values()], colour, marker, name)
            over = [
                np.mean([r.variance for r in seeds]) / np.mean([r.binomial for r in seeds]) for seeds in found.values()
            ]
            right.plot([*found], over, marker, color=colour, ms=5)
            schemes = [coherence.plan(T, eps, harm * share, m) for share in shares]
            left.plot(shares, [K * scheme.violations for scheme in schemes], color=colour, lw=1)
            apart = [(scheme.agreement * (1 - scheme.agreement)).sum() for scheme in schemes]
            right.plot(shares, [s.spread**2 / v for s, v in zip(schemes, apart, strict=True)], color=colour, lw=1)
        left.set_ylabel(f"violations in an essay of {T} paragraphs")
        right.set_ylabel("variance of V over that of independent failures")
        right.axhline(1, color="#8A9199", lw=1, ls=(0, (2, 2)))
        for axes in (left, right):
            axes.set_xlabel("share of the plan's values")
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.grid(color=GRID)
            axes.set_ylim(bottom=0)
        left.legend(loc="upper left")
    return figure


def _points(
    axes: Axes, x: Sequence[float], means: Sequence[growth.Interval], colour: str, marker: str, label: str
) -> None:
    half = [m.high - m.mean for m in means]
    axes.errorbar(x, [m.mean for m in means], half, color=colour, fmt=marker, ms=5, lw=1, capsize=2, label=label)


def _mean(rows: Iterable[Row], name: str) -> float:
    return float(np.mean([getattr(row, name) for row in rows]))
