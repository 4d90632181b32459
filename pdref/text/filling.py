"""Who reads whom when sections are written token by token under an outline: one rule over layout fields.

Everybody reads the prompt, the whole outline and all earlier stages, and the past of their own section. Beside that:

    "parallel"      nothing of the sibling sections: they can be written side by side
    "sequential"    the sections before: plain causal attention
    "drafts"        all drafts of the stage, in full: sections attend across to each other, and are written side by side

Drafts are a second copy of the sections at the same positions, the layout's second stream (`Stream.NOISED`). They
are written as in "parallel", and nobody but the sections of their own stage reads them.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from pdref.text.layout import NO_SPAN, Layout, Role, Stream

Filling = Literal["parallel", "sequential", "drafts"]


def may_read(query: Layout, key: Layout, filling: Filling) -> Tensor:
    """Whether each query token reads each key token; the fields broadcast against each other.

    Raises ValueError for an unknown `filling`.
    """
    require_known(filling)
    past = key.position <= query.position
    final, draft = key.stream == Stream.CLEAN, key.stream != Stream.CLEAN
    together = (key.stage == query.stage) & (key.span != NO_SPAN) & (query.span != NO_SPAN)
    own = together & (key.span == query.span) & (key.stream == query.stream)
    reads = past & ((final & ~together) | own)
    if filling == "sequential":
        reads = reads | (past & together & final & (query.stream == Stream.CLEAN))
    if filling == "drafts":
        reads = reads | (together & draft & (query.stream == Stream.CLEAN))
    return reads & (key.role != Role.PAD)


def require_known(filling: str) -> None:
    """Raise ValueError for what is none of `Filling`."""
    if filling not in get_args(Filling):
        raise ValueError(f"filling is one of {', '.join(get_args(Filling))}, not {filling!r}")


def filling_mask(query: Layout, key: Layout, filling: Filling) -> Tensor:
    """The rule as attention wants it, [B, 1, Tq, Tk] bool. Raises as `may_read`."""
    return may_read(query.map(lambda f: f[:, None, :, None]), key.map(lambda f: f[:, None, None, :]), filling)
