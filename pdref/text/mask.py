"""Who may attend to whom: one rule over layout fields, and the four forms in which attention wants it.

The rule, row by row (Planned Diffusion, released code; the streams are ours, see `layout`):

1. A clean token (prompt, plan, <sync/>, <eos>, and clean copies of spans) is causal.
2. A noised span, its two tags included, is bidirectional inside itself.
3. It sees the prompt, every earlier stage in full, and all plan items of its own stage.
4. Siblings: "sparse" spans see nothing of each other; "dense" ones form one bidirectional region per stage.
5. Nobody else sees a NOISED token; IN_PLACE spans are seen by later tokens that are not their siblings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

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
    _require_known(siblings)
    causal = query.stream == CLEAN
    same_stage = (key.stage == query.stage) & (key.span != NO_SPAN) & (query.span != NO_SPAN)
    past = (key.position <= query.position) & (key.stream != NOISED) & (causal | ~same_stage)
    region = same_stage if siblings == "dense" else same_stage & (key.span == query.span)
    within = region & (key.stream == query.stream) & ~causal
    return (past | within) & (key.role != PAD)


def dense_mask(query: Layout, key: Layout, siblings: Siblings = "sparse") -> Tensor:
    """The rule as booleans [B, Tq, Tk]."""
    _require_one_device(query, key)
    return may_attend(query.map(lambda f: f[:, :, None]), key.map(lambda f: f[:, None, :]), siblings)


NEVER = 2**31 - 1  # a key's position that no query reaches, and its block or region where it has none
NOWHERE = -1  # the block or region of a query that has none: no key's
MOST_SPANS = 2**16  # in a stage: regions are numbered by stage (up to 10,922 of them), stream and span


@dataclass(frozen=True, eq=False)
class Sight:
    """The rule as three integers a token, for attention that asks it pair by pair and holds no [Tq, Tk] mask:

        may attend  =  (key position <= query position  and  key block != query block)  or  key region == query region

    `query` [3, B, Tq] and `key` [3, B, Tk] are int32, not negative but for `NOWHERE`; their rows are position, block
    and region. A block is a stage whose spans a noised token does not look back on, a region is what a noised token
    sees both ways. B may be 1 for any batch.
    """

    query: Tensor
    key: Tensor
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What an attention derives from the rule once, for all layers."""

    @classmethod
    def of(cls, query: Layout, key: Layout, siblings: Siblings = "sparse") -> Sight:
        """The rule for two layouts, or parts of them. Raises as `dense_mask` does."""
        _require_known(siblings)
        _require_one_device(query, key)

        def region(tokens: Layout) -> Tensor:
            number = (tokens.stage * len(Stream) + tokens.stream) * MOST_SPANS
            return number + tokens.span if siblings == "sparse" else number

        noised = (query.stream != CLEAN) & (query.span != NO_SPAN)
        of_query = query.position, query.stage.where(noised, NOWHERE), region(query).where(noised, NOWHERE)
        real, in_span = key.role != PAD, key.span != NO_SPAN
        of_key = (
            key.position.where(real & (key.stream != NOISED), NEVER),
            key.stage.where(in_span, NEVER),
            region(key).where(real & in_span & (key.stream != CLEAN), NEVER),  # no clean query has a region
        )
        return cls(*(torch.stack(numbers).to(torch.int32) for numbers in (of_query, of_key)))

    @classmethod
    def past(cls, query: Tensor, key: Tensor) -> Sight:
        """Queries at positions [B, Tq] see the keys at positions [B, Tk] up to their own."""

        def numbers(position: Tensor, none: int) -> Tensor:
            return torch.stack([position, *2 * [torch.full_like(position, none)]]).to(torch.int32)

        return cls(numbers(query, NOWHERE), numbers(key, NEVER))

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, Tq, Tk."""
        return *self.query.shape[1:], self.key.shape[2]

    @cached_property
    def dense(self) -> Tensor:
        """The rule for `scaled_dot_product_attention`, [B, 1, Tq, Tk] bool, the same for all heads."""
        return sees(self.query[:, :, None, :, None], self.key[:, :, None, None, :])


def sees(query: Tensor, key: Tensor) -> Tensor:
    """The rule on the integers of a `Sight`, [3, ...] each; what follows the 3 broadcasts."""
    (position, block, region), (key_position, key_block, key_region) = query, key
    return (key_position <= position).logical_and_(key_block != block).logical_or_(key_region == region)


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


def _require_known(siblings: str) -> None:
    if siblings not in ("sparse", "dense"):
        raise ValueError(f"siblings is 'sparse' or 'dense', not {siblings!r}")


def _require_one_device(query: Layout, key: Layout) -> None:
    if query.token.device != key.token.device:
        raise LayoutError(f"queries are on {query.token.device}, keys on {key.token.device}")
