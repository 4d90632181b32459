"""Tokens as coloured cells in lines of text: what noise hides, which role a token plays.

Where `plots` draws numbers, this draws the text itself. A cell is as wide as its token, so a line reads like
a sentence; long lines wrap. <mask> is a dark cell, a filler a dot.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle

from pdref.lab.player import ROLE_COLOURS
from pdref.lab.plots import FAINT, INK, STYLE, Chart, row_groups
from pdref.text.layout import Layout, Role
from pdref.text.tags import Tag
from pdref.text.tokenizer import Tokenizer

CHARACTER, LINE = 0.078, 0.27  # inches
SIGNS = {int(Tag.PAD): "·", int(Tag.MASK): ""}


def token_strip(lines: Mapping[str, Layout], tokenizer: Tokenizer, aligned: bool = False, width: float = 9.0) -> Chart:
    """The first document of each layout as a line of cells, coloured by role, under its name.

    `aligned` gives a column one width in all lines, as for one text at several noise levels; `width` is in
    inches.
    """
    texts = {name: [_written(token, tokenizer) for token in layout.token[0].tolist()] for name, layout in lines.items()}
    spare = 2 + max(map(len, lines))
    room = int(width / CHARACTER) - spare
    with rc_context(STYLE):
        figure = Chart()
        axes = figure.add_axes((0, 0, 1, 1))
        row = 0
        for name, layout in lines.items():
            widths = [len(text) + 1.4 for text in texts[name]]
            if aligned:
                widths = [max(len(other[i]) for other in texts.values()) + 1.4 for i in range(len(widths))]
            axes.text(-1, row + 0.5, name, ha="right", va="center", fontsize=8.5, fontweight="bold")
            at = 0.0
            for text, size, token, role in zip(
                texts[name], widths, layout.token[0].tolist(), layout.role[0].tolist(), strict=True
            ):
                if at and at + size > room:
                    row, at = row + 1, 0.0
                _cell(axes, at, row, size, text, INK if token == Tag.MASK else _pale(ROLE_COLOURS[Role(role)]))
                at += size
            row += 1
        figure.set_size_inches(width, LINE * row)
        axes.set(xlim=(-spare, room), ylim=(row, 0))
        axes.axis("off")
        _legend(axes, lines)
    return figure


def document_strip(layout: Layout, tokenizer: Tokenizer, width: float = 9.0) -> Chart:
    """The first document of `layout`: prompt, plans and spans on lines of their own."""
    lines = {name: layout.map(lambda field, rows=rows: field[:, rows]) for name, rows in row_groups(layout)}
    return token_strip(lines, tokenizer, width=width)


def _written(token: int, tokenizer: Tokenizer) -> str:
    return SIGNS[token] if token in SIGNS else tokenizer.decode([token]).strip() or "␣"


def _pale(colour: str) -> tuple[float, ...]:
    return tuple(0.45 * channel + 0.55 for channel in to_rgb(colour))


def _cell(axes: Axes, at: float, row: int, size: float, text: str, colour: str | tuple[float, ...]) -> None:
    axes.add_patch(Rectangle((at, row + 0.08), size, 0.84, facecolor=colour, edgecolor="white", lw=1.2))
    axes.text(at + size / 2, row + 0.5, text, ha="center", va="center", fontsize=8)


def _legend(axes: Axes, lines: Mapping[str, Layout]) -> None:
    roles = sorted({role for layout in lines.values() for role in layout.role[0].tolist()})
    handles = [Patch(color=_pale(ROLE_COLOURS[Role(role)]), label=Role(role).name.lower()) for role in roles]
    if any((layout.token[0] == Tag.MASK).any() for layout in lines.values()):
        handles.append(Patch(color=INK, label="<mask>"))
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, -0.01),
        ncols=len(handles),
        fontsize=8,
        edgecolor=FAINT,
    )
