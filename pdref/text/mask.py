"""Who may attend to whom: one rule over layout fields, and the four forms in which kernels want it.

The rule, row by row (Planned Diffusion, released code; the streams are ours, see `layout`):

1. A clean token (prompt, plan, <sync/>, <eos>, and clean copies of spans) is causal.
2. A noised span, its two tags included, is bidirectional inside itself.
3. It sees the prompt, every earlier stage in full, and all plan items of its own stage.
4. Siblings: "sparse" spans see nothing of each other; "dense" ones form one bidirectional region per stage.
5. Nobody else sees a NOISED token; IN_PLACE spans are seen by later tokens that are not their siblings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pdref.text.layout import NO_SPAN, Layout, LayoutError, Role, Stream

Siblings = Literal["sparse", "dense"]

# As plain integers: a compiled FlexAttention takes `tensor == Stream.CLEAN` for the constant False.
CLEAN, NOISED, PAD = int(Stream.CLEAN), int(Stream.NOISED), int(Role.PAD)


def may_attend(query: Layout, key: Layout, siblings: Siblings = "sparse") -> Tensor:
    """Whether each query token may attend to each key token; the fields broadcast against each other.

    Raises ValueError for an unknown `siblings`.
    """
    if siblings not in ("sparse", "dense"):
        raise ValueError(f"siblings is 'sparse' or 'dense', not {siblings!r}")
    causal = query.stream == CLEAN
    same_stage = (key.stage == query.stage) & (key.span != NO_SPAN) & (query.span != NO_SPAN)
    past = (key.position <= query.position) & (key.stream != NOISED) & (causal | ~same_stage)
    region = same_stage if siblings == "dense" else same_stage & (key.span == query.span)
    within = region & (key.stream == query.stream) & ~causal
    return (past | within) & (key.role != PAD)


def dense_mask(query: Layout, key: Layout, siblings: Siblings = "sparse") -> Tensor:
    """The rule as booleans [B, Tq, Tk]."""
    if query.token.device != key.token.device:
        raise LayoutError(f"queries are on {query.token.device}, keys on {key.token.device}")
    return may_attend(query.map(lambda f: f[:, :, None]), key.map(lambda f: f[:, None, :]), siblings)


def sdpa_mask(query: Layout, key: Layout, siblings: Siblings = "sparse") -> Tensor:
    """The rule for `scaled_dot_product_attention`, [B, 1, Tq, Tk], the same for all heads."""
    return dense_mask(query, key, siblings)[:, None]


def flex_mask_mod(query: Layout, key: Layout, siblings: Siblings = "sparse") -> Callable[..., Tensor]:
    """The rule as a FlexAttention `mask_mod(b, h, q, k)`."""

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return may_attend(query.map(lambda f: f[b, q]), key.map(lambda f: f[b, k]), siblings)

    return mask_mod


EMPTY, PARTIAL, FULL = 0, 1, 2


def tile_map(query: Layout, key: Layout, block: int, siblings: Siblings = "sparse") -> Tensor:
    """What the rule leaves of each `block` x `block` tile: EMPTY, PARTIAL or FULL, int64 [B, Tq/block, Tk/block].

    Tiles at the ragged edge are judged by the tokens they have.
    """
    mask = dense_mask(query, key, siblings)
    edge = (0, -mask.shape[2] % block, 0, -mask.shape[1] % block)
    some, every = (
        torch.nn.functional.pad(mask, edge, value=fill).unflatten(2, (-1, block)).unflatten(1, (-1, block))
        for fill in (False, True)
    )
    return some.any(dim=4).any(dim=2).long() + every.all(dim=4).all(dim=2).long()
