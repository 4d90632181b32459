"""Figures of outlines and hierarchies: who reads whom, and how a text grows forward by forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from pdref.lab.player import ROLE_COLOURS, SPAN_COLOURS, frames
from pdref.lab.plots import FAINT, INK, STYLE, Chart
from pdref.methods.generation import Generation
from pdref.text.filling import Filling, filling_mask
from pdref.text.layout import NO_SPAN, Layout, Role, Stream
from pdref.text.tokenizer import Tokenizer

PLAN = ROLE_COLOURS[Role.PLAN]


def filling_masks(layouts: Mapping[Filling, Layout], width: float = 10.0) -> Chart:
    """The mask of the first document of each layout, side by side: a row per query, cells in their key's colour.

    Sections have colours of their own; a rule divides the document from its drafts.
    """
    with rc_context(STYLE):
        sizes = [layout.shape[1] for layout in layouts.values()]
        figure = Chart(figsize=(width, 0.31 * width * max(sizes) / min(sizes)), layout="constrained")
        panels = figure.subplots(1, len(layouts), width_ratios=sizes)
        for axes, (filling, layout) in zip(np.atleast_1d(panels), layouts.items(), strict=True):
            mask = filling_mask(layout, layout, filling)[0, 0].numpy()  # [T, T]
            colours = np.array([to_rgb(_colour(r, s)) for r, s in _fields(layout, "role", "span")])
            axes.imshow(np.where(mask[:, :, None], colours[None], 1.0), interpolation="nearest")
            axes.set_title(f'"{filling}"', fontsize=10)
            axes.set(xlabel="read", ylabel="reads" if axes is np.atleast_1d(panels)[0] else "")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set(visible=True, color=FAINT)
            for start in (i for i, stream in enumerate(layout.stream[0].tolist()) if stream == Stream.NOISED):
                axes.axhline(start - 0.5, color=INK, lw=1)
                axes.axvline(start - 0.5, color=INK, lw=1)
                axes.text(start, -0.8, "drafts", fontsize=8)
                break
        spans = sorted({s for layout in layouts.values() for s in layout.span[0].tolist()} - {NO_SPAN})
        keys = [Patch(color=ROLE_COLOURS[Role.PROMPT], label="prompt"), Patch(color=PLAN, label="outline")]
        keys += [Patch(color=SPAN_COLOURS[k % len(SPAN_COLOURS)], label=f"section {k + 1}") for k in spans]
        figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=8)
    return figure


def growth(generations: Mapping[str, Generation], tokenizer: Tokenizer, width: float = 10.0) -> Chart:
    """When each token of a text came to be: its place in the finished document against the forwards waited for.

    A diagonal is text written token by token, diagonals side by side are sections written at once. Grey is what was
    given or read off, orange what was planned; sections take turns in colour. A draft is drawn faint.
    """
    with rc_context(STYLE):
        figure = Chart(figsize=(width, 3.1), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(generations), sharex=True))
        for axes, (name, generation) in zip(panels, generations.items(), strict=True):
            last: dict[int, int] = {}
            points: list[tuple[int, int, str]] = []
            for frame in frames(generation, tokenizer):
                for cell in frame.cells:
                    if cell.state == "new" and cell.area in ("plan", "span"):
                        given = cell.kind in ("tag", "echo") or (cell.area == "plan" and cell.stage > 0)
                        colour = FAINT if given else PLAN if cell.area == "plan" else _section(cell.span)
                        last[cell.position] = len(points)
                        points.append((frame.forwards, cell.position - generation.prompt_length, colour))
            final = set(last.values())
            for kept, alpha in ((False, 0.3), (True, 1.0)):
                some = [p for i, p in enumerate(points) if (i in final) == kept]
                if some:
                    x, y, colours = zip(*some, strict=True)
                    axes.scatter(x, y, s=5, c=colours, alpha=alpha, marker="s", linewidths=0)
            axes.axvline(generation.critical_path, color=INK, lw=0.8, ls=":")
            axes.set_title(f"{name}\n{generation.critical_path} forwards in a row, {generation.nfe} in all", fontsize=9)
            axes.set(ylim=(len(generation.tokens) - generation.prompt_length + 4, -4), xlabel="forwards waited for")
        panels[0].set_ylabel("place in the document")
    return figure


def _section(span: int) -> str:
    return SPAN_COLOURS[span % len(SPAN_COLOURS)]


def _colour(role: int, span: int) -> str:
    return ROLE_COLOURS[Role(role)] if span == NO_SPAN else _section(span)


def _fields(layout: Layout, *names: str) -> Sequence[tuple[int, ...]]:
    return [*zip(*(getattr(layout, name)[0].tolist() for name in names), strict=True)]
