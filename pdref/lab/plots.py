"""Figures: who may attend to whom, losses against their floor, latency against quality, order of unmasking.

Each function returns a `Chart`, a matplotlib figure that pyplot never hears of: no state is left behind, and
a notebook shows it as the value of a cell. Roles and spans have the colours of `pdref.lab.player`, steps have
those of viridis; colour-blind readers can tell both apart. The font, DejaVu Sans, comes with matplotlib.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter
from PIL import Image

from pdref.lab.player import ROLE_COLOURS, SPAN_COLOURS, frames, topics
from pdref.methods.generation import Generation
from pdref.text.layout import NO_SPAN, Layout, Role, Stream
from pdref.text.mask import Siblings, dense_mask
from pdref.text.tags import Tag
from pdref.text.tokenizer import Tokenizer

INK, FAINT = "#22262B", "#C9CDD2"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8A9199",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "pdref",
}


class Chart(Figure):
    """A figure that shows itself in a notebook."""

    def _repr_png_(self) -> bytes:
        page, small = io.BytesIO(), io.BytesIO()
        self.savefig(page, format="png", dpi=110, bbox_inches="tight")
        # A palette of 256 colours: a third of the bytes, and notebooks are kept in the repository.
        Image.open(page).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
        return small.getvalue()


def save(figure: Figure, path: Path | str) -> list[Path]:
    """Write `figure` as the suffix of `path` says or, without one, as PNG and as SVG; returns the paths."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path] if path.suffix else [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    with rc_context(STYLE):
        for each in paths:
            undated = {"Date": None} if each.suffix == ".svg" else None  # the same figure gives the same file
            figure.savefig(each, dpi=160, bbox_inches="tight", metadata=undated)
    return paths


# Who may attend to whom.


def row_groups(layout: Layout) -> list[tuple[str, slice]]:
    """The first document cut into what one sentence can speak of, by name: prompt, plan, a span, a tag."""
    tokens, roles, stages, spans, _, streams = (field[0].tolist() for _, field in layout.items())
    several = max(stages) > 0

    def kind(i: int) -> tuple[int, int, int, int]:
        return streams[i], stages[i], spans[i], roles[i] if spans[i] == NO_SPAN else Role.CONTENT

    groups = []
    for (stream, stage, span, role), run in groupby(range(len(tokens)), key=kind):
        rows = list(run)
        number = ".".join([str(stage + 1)] * several + [str(span + 1)] * (span != NO_SPAN))
        name = {
            Role.PROMPT: "prompt",
            Role.PLAN: f"plan {number}",
            Role.CONTENT: f"span {number}",
            Role.TAG: Tag(tokens[rows[0]]).text if tokens[rows[0]] < len(Tag) else "tag",
            Role.PAD: "padding",
        }[Role(role)].strip()
        groups.append((f"{name}, noised" if stream == Stream.NOISED else name, slice(rows[0], rows[-1] + 1)))
    return groups


def describe(query: Layout, key: Layout, siblings: Siblings = "sparse") -> list[str]:
    """What each of the `row_groups` sees, a sentence each, read off the mask."""
    mask = dense_mask(query, key, siblings)[0]
    columns = row_groups(key)
    sentences = []
    for name, rows in row_groups(query):
        seen = [(other, mask[rows, at]) for other, at in columns]
        whole = [i for i, (other, part) in enumerate(seen) if other != name and part.all()]
        told = []
        for _, run in groupby(enumerate(whole), key=lambda pair: pair[1] - pair[0]):  # neighbours
            names = [seen[i][0] for _, i in run]
            told.append(", ".join(names) if len(names) < 3 else f"{names[0]} to {names[-1]}")
        for other, part in seen:
            if other == name:
                told += ["itself both ways" if part.all() else "itself causally"] * (part.numel() > 1)
            elif part.any() and not part.all():
                told.append(f"parts of {other}")
        sentences.append(f"{name}: sees {'; '.join(told) or 'itself'}")
    return sentences


def attention_mask(
    query: Layout,
    key: Layout | None = None,
    tokenizer: Tokenizer | None = None,
    siblings: Siblings = "sparse",
    captions: Sequence[str] | None = None,
    width: float = 9.0,
) -> Chart:
    """The mask of the first document: a row per query, cells in the colour of their key's role or white.

    `key` is `query` if not given; without a tokenizer, tokens are numbers. `captions` stand at the right, one
    a row or one for each of the `row_groups` (None: those of `describe`; (): none). `width` is in inches.
    Raises ValueError for another number of captions.
    """
    key = query if key is None else key
    groups = [rows for _, rows in row_groups(query)]
    captions = describe(query, key, siblings) if captions is None else captions
    if len(captions) not in (0, len(groups), query.shape[1]):
        raise ValueError(f"{len(captions)} captions for {query.shape[1]} rows in {len(groups)} groups")
    if len(captions) != len(groups):
        groups = [slice(i, i + 1) for i in range(query.shape[1])]
    mask = dense_mask(query, key, siblings)[0].numpy()  # [Tq, Tk]
    picture = np.where(mask[:, :, None], _colours(key)[None], 1.0)  # [Tq, Tk, 3]
    pixels = {"aspect": "auto", "interpolation": "nearest"}
    cell = min(0.22, (width - (4.0 if captions else 1.2)) / mask.shape[1])
    size = min(8.0, 72 * cell * 0.85)
    with rc_context(STYLE):
        figure = Chart(figsize=(cell * mask.shape[1], cell * mask.shape[0]))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(picture, **pixels)
        axes.set_xticks(range(mask.shape[1]), _written(key, tokenizer), rotation=90, fontsize=size)
        axes.set_yticks(range(mask.shape[0]), _written(query, tokenizer), fontsize=size)
        axes.tick_params(length=0, pad=72 * cell * 0.75 + 1, labeltop=True, labelbottom=False)
        axes.spines[:].set(visible=True, color=FAINT)
        axes.autoscale(False)
        for layout, rules, side in ((query, axes.hlines, 0), (key, axes.vlines, 1)):
            ends = (-0.5, mask.shape[1 - side] - 0.5)
            rules(np.arange(1, layout.shape[1]) - 0.5, *ends, color="white", lw=0.6)
            rules([rows.start - 0.5 for _, rows in row_groups(layout)[1:]], *ends, color=FAINT, lw=0.7)
            rules([at - 0.5 for at in _copies(layout)[1:]], *ends, color=INK, lw=1.4)
            far, near, first, last = (
                -1.15,
                -0.7,
                -0.5,
                layout.shape[1] - 0.5,
            )  # a strip of roles beside the text
            extent = (far, near, last, first) if side == 0 else (first, last, near, far)
            axes.imshow(np.expand_dims(_colours(layout), 1 - side), extent=extent, **pixels, clip_on=False)
        if captions:
            _captions(axes, groups, captions, size, cell, mask.shape[1])
        longest = max(map(len, _written(query, tokenizer))) * 0.62 * size / 72 / cell
        copies = [*_copies(query), query.shape[1]]
        for start, stop in pairwise(copies) if len(copies) > 2 else ():
            name = "noised copy" if query.stream[0, start] == Stream.NOISED else "clean text"
            place = {"rotation": 90, "va": "center", "ha": "right"}
            axes.text(-1.9 - longest, (start + stop - 1) / 2, name, fontsize=8, fontweight="bold", **place)
        present = [role for role in Role if (key.role[0] == role).any()]
        keys = [Patch(color=ROLE_COLOURS[role], label=f"{role.name.lower()} key") for role in present]
        keys.append(Patch(facecolor="white", edgecolor=FAINT, label="forbidden"))
        place = {"loc": "upper left", "bbox_to_anchor": (0, -0.01), "ncols": len(keys)}
        axes.legend(handles=keys, fontsize=8, handlelength=1.2, columnspacing=1.4, **place)
    return figure


def _written(layout: Layout, tokenizer: Tokenizer | None) -> list[str]:
    tokens = layout.token[0].tolist()
    return [str(t) if tokenizer is None else tokenizer.decode([t]).strip() or "␣" for t in tokens]


def _colours(layout: Layout) -> np.ndarray:
    """The colour of each token's role, [T, 3]."""
    return np.array([to_rgb(ROLE_COLOURS[Role(role)]) for role in layout.role[0].tolist()])


def _copies(layout: Layout) -> list[int]:
    """Where the clean text and its noised copy begin."""
    noised = (layout.stream[0] == Stream.NOISED).tolist()
    return [i for i in range(len(noised)) if i == 0 or noised[i] != noised[i - 1]]


def _captions(
    axes: Axes, places: Sequence[slice], captions: Sequence[str], size: float, cell: float, columns: int
) -> None:
    """Sentences beside their rows, moved apart where they would overlap, each tied to its rows by a line."""
    size = max(size, 6.5)
    texts = [textwrap.fill(caption, int(3.2 * 72 / (0.55 * size))) for caption in captions]
    heights = [(text.count("\n") + 1.15) * size * 1.25 / 72 / cell for text in texts]  # in rows
    centres = [(rows.start + rows.stop - 1) / 2 for rows in places]
    for i in range(1, len(centres)):
        centres[i] = max(centres[i], centres[i - 1] + (heights[i - 1] + heights[i]) / 2)
    limit = places[-1].stop - 0.5
    for i in reversed(range(len(centres))):
        centres[i] = min(centres[i], limit - heights[i] / 2)
        limit = centres[i] - heights[i] / 2
    for rows, at, text in zip(places, centres, texts, strict=True):
        x = columns - 0.5 + 0.08 / cell
        axes.plot([x, x], [rows.start - 0.35, rows.stop - 0.65], color=INK, lw=1.1, clip_on=False)
        middle = (rows.start + rows.stop - 1) / 2
        axes.plot([x, x + 0.12 / cell], [middle, at], color="#8A9199", lw=0.6, clip_on=False)
        axes.text(x + 0.16 / cell, at, text, fontsize=size, va="center", linespacing=1.15)


# Training.

CURVES = {
    "plan": ("plan", ROLE_COLOURS[Role.PLAN]),
    "content": ("content, token by token", SPAN_COLOURS[0]),
    "diffusion": ("content, by diffusion (a bound)", ROLE_COLOURS[Role.CONTENT]),
    "whole": ("whole response, by diffusion (a bound)", ROLE_COLOURS[Role.TAG]),
}


def loss_curves(
    log: Mapping[str, Sequence[float]], floor: Mapping[str, float] | None = None, memory: float = 0.95
) -> Chart:
    """Nats per token by role over the steps of `pdref.lab.train.read_log`, as they are (faint) and smoothed.

    `floor` is the source's entropy by column (`plan`, `content`, `diffusion`, `whole`), drawn dashed, and
    `memory` what a running mean keeps from step to step. Raises ValueError for a log without such a column.
    """
    floor = floor or {}
    steps = np.asarray(log["step"])
    with rc_context(STYLE):
        figure = Chart(figsize=(8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for i, (column, (name, colour)) in enumerate(CURVES.items()):
            nats = np.asarray(log.get(column, [math.nan] * len(steps)), dtype=float)
            there = np.isfinite(nats) & (nats > 0)
            if not there.any():
                continue
            x, y = steps[there], nats[there]
            mean = _running_mean(x, y, memory)
            axes.plot(x, y, color=colour, lw=0.6, alpha=0.22)
            bottom = f", floor {floor[column]:.3f}" if column in floor else ""
            axes.plot(x, mean, color=colour, lw=1.8, label=f"{name}: {mean[-1]:.3f}{bottom}", gid=column)
            if column in floor:  # dashes take turns where two floors are one
                axes.axhline(floor[column], color=colour, lw=1.3, ls=(5 * i, (5, 5)), gid=f"floor {column}")
        if not axes.lines:
            raise ValueError(f"the log has none of the columns {', '.join(CURVES)}")
        axes.set(xlabel="step", ylabel="nats per token", yscale="log", xmargin=0)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y", color="#ECEEF0", lw=0.8)
        title = "dashed: the entropy of the source" if floor else None
        axes.legend(title=title, title_fontsize=8.5, fontsize=8.5, alignment="left")
    return figure


def _running_mean(steps: np.ndarray, values: np.ndarray, memory: float) -> np.ndarray:
    """Exponential mean by step, not by value, that weighs its first values fairly."""
    means, total, weight, before = [], 0.0, 0.0, steps[0]
    for step, value in zip(steps, values, strict=True):
        kept = memory ** (step - before)
        total, weight, before = kept * total + value, kept * weight + 1, step
        means.append(total / weight)
    return np.array(means)


# Samplers.

METHODS = {
    "autoregressive": (SPAN_COLOURS[0], "s"),
    "diffusion": (SPAN_COLOURS[1], "D"),
    "planned": (ROLE_COLOURS[Role.CONTENT], "o"),
}
_OTHERS = [(SPAN_COLOURS[3], "^"), (SPAN_COLOURS[4], "v"), (SPAN_COLOURS[5], "P"), (INK, "X")]
AXIS_NAMES = {
    "spans_right": "spans entirely right",
    "documents_right": "documents entirely right",
    "critical_path": "critical path: forwards that wait for one another",
    "seconds": "seconds per document",
    "nfe": "forward evaluations",
}


def latency_quality(
    rows: Sequence[Mapping[str, Any]],
    quality: str = "spans_right",
    latency: str = "critical_path",
    batch: int = 1,
) -> Chart:
    """Rows as points, better to the upper left; a method's step ratios are joined, the dominated area shaded.

    Each row has `method`, `label`, perhaps `step_ratio`, and the columns `quality` (more is better) and
    `latency` (less is better), as `pdref.lab.evaluate.Row` does. A column that holds a mapping, such as
    `seconds`, is read at `batch`. Raises ValueError without rows, KeyError for a row without the column.
    """
    if not rows:
        raise ValueError("no rows: a comparison needs at least one method")
    points = [(_read(row, latency, batch), _read(row, quality, batch)) for row in rows]
    front = pareto(points)
    with rc_context(STYLE):
        figure = Chart(figsize=(8, 4.8), layout="constrained")
        axes = figure.add_subplot()
        methods = list(dict.fromkeys(row["method"] for row in rows))
        others = iter(_OTHERS * len(methods))
        for method in methods:
            colour, marker = METHODS.get(method) or next(others)
            mine = [(point, row) for point, row in zip(points, rows, strict=True) if row["method"] == method]
            mine.sort(key=lambda pair: pair[1].get("step_ratio") or 0)
            x, y = zip(*(point for point, _ in mine), strict=True)
            axes.plot(x, y, color=colour, marker=marker, ms=8, lw=1.4, mec="white", label=method, zorder=3)
            for turn, (point, row) in enumerate(mine):
                ratio = row.get("step_ratio") if len(mine) > 1 else None
                text = row["label"] if ratio is None else f"r = {ratio:g}"
                # Ratios whose points crowd take turns above and below the line.
                offset = (-7, 3) if ratio is None else (0, -14) if turn % 2 else (0, 6)
                place = {"xytext": offset, "textcoords": "offset points", "ha": "right" if ratio is None else "center"}
                axes.annotate(text, point, **place, fontsize=8, color=colour, zorder=4)
        _axes_of_quality(axes, points, quality, latency, batch)
        right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
        edge = [points[i] for i in front]
        x, y = [p[0] for p in edge] + [right], [p[1] for p in edge] + [edge[-1][1]]
        shade = {"facecolor": "#E9ECEF", "edgecolor": "#B9BFC6", "lw": 0.5, "label": "dominated"}
        axes.fill_between(x, bottom, y, step="post", zorder=0, **shade)
        axes.step(x, y, where="post", color="#8A9199", lw=1, ls=(0, (2, 2)), zorder=1)
        axes.legend(fontsize=8.5)
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (latency, quality) points that no other point dominates, by latency."""
    best, front = -math.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front


def _read(row: Mapping[str, Any], column: str, batch: int) -> float:
    value = row[column]
    if isinstance(value, Mapping):
        value = value[batch] if batch in value else value[str(batch)]  # as JSON has it
    return float(value)


def _axes_of_quality(axes: Axes, points: Sequence[tuple[float, float]], quality: str, latency: str, batch: int) -> None:
    x, y = zip(*points, strict=True)
    at_batch = f", batch of {batch}" if latency == "seconds" else ""
    axes.set(xlabel=AXIS_NAMES.get(latency, latency) + at_batch, ylabel=AXIS_NAMES.get(quality, quality))
    if max(x) > 6 * min(x) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(x) / 1.3, max(x) * 1.3)
    else:
        axes.set_xlim(0, max(x) * 1.12)
    spread = max(max(y) - min(y), 0.02)
    bottom, top = min(y) - 0.25 * spread, max(y) + 0.2 * spread
    if min(y) >= 0 and max(y) <= 1:  # shares
        bottom, top = max(bottom, -0.03 * spread), min(top, 1 + 0.06 * spread)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if spread > 0.08 else 1))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_ylim(bottom, top)
    axes.grid(color="#ECEEF0", lw=0.8, zorder=0)


def reveal_order(generation: Generation, tokenizer: Tokenizer) -> Chart:
    """The spans as rows of tokens, coloured by the step (of their phase) that revealed them.

    What a scaffold gives, topics and tags, is left out. Raises ValueError if there are no spans.
    """
    film = frames(generation, tokenizer)
    revealed = {cell.position: frame.step for frame in film for cell in frame.cells if cell.state == "new"}
    written = [cell for cell in film[-1].cells if cell.area == "span" and cell.kind in ("word", "filler")]
    spans = {key: list(run) for key, run in groupby(written, key=lambda cell: (cell.stage, cell.span))}
    if not spans:
        raise ValueError("this generation has no spans")
    columns, last = max(map(len, spans.values())), max(revealed[cell.position] for cell in written)
    topic = topics(film[-1].cells)
    wide = min(0.5, 9 / columns)
    colours = matplotlib.colormaps["viridis"]
    with rc_context(STYLE):
        figure = Chart(figsize=(wide * columns, 0.34 * len(spans)))
        axes = figure.add_axes((0, 0, 1, 1))
        for row, line in enumerate(spans.values()):
            for column, cell in enumerate(line):
                shade = colours((revealed[cell.position] - 1) / max(1, last - 1))
                axes.add_patch(Rectangle((column, row), 1, 1, facecolor=shade, edgecolor="white", lw=1.2))
                text = "·" if cell.kind == "filler" else cell.text.strip()
                size = min(8, 72 * wide / (0.7 * len(text) + 0.4))
                ink = "white" if np.dot(shade[:3], (0.3, 0.59, 0.11)) < 0.55 else INK
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=ink)
        several = len({stage for stage, _ in spans}) > 1
        names = [f"stage {s + 1}: " * several + topic.get((s, k), "") for s, k in spans]
        axes.set_yticks(np.arange(len(spans)) + 0.5, names)
        for label, (_, span) in zip(axes.get_yticklabels(), spans, strict=True):
            label.set(color=SPAN_COLOURS[span % len(SPAN_COLOURS)], fontweight="bold")
        axes.set(xlim=(0, columns), ylim=(len(spans), 0), xlabel="position in the span")
        axes.set_xticks(np.arange(0, columns, 4) + 0.5, [str(i + 1) for i in range(0, columns, 4)])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(1, max(2, last)), colours)
        bar = figure.colorbar(scale, ax=axes, fraction=0.02, pad=0.01)
        bar.set_label("step")
        bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        bar.outline.set_visible(False)
    return figure
