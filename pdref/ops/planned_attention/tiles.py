"""Which tiles of a `Sight` are empty and which are full, told from a few integers a tile and never from the mask.

A tile is BM queries by BN keys. Each side is summed up in its least and greatest position, block and region, and two
such summaries tell what the rule leaves of the tile. What is called EMPTY is empty, so attention may skip it; what is
called FULL is full, so it needs no mask; PARTIAL is all that the summaries cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pdref.text.mask import FULL, NEVER, NOWHERE, PARTIAL, Sight

POSITION, BLOCK, REGION = 0, 1, 2  # the rows of a Sight's integers


@dataclass(frozen=True, eq=False)
class Tiles:
    """What the rule leaves of each tile, `kind` [B, M, N] for M query tiles and N key tiles, int32."""

    kind: Tensor

    @cached_property
    def by_query(self) -> tuple[Tensor, Tensor]:
        """The key tiles of each query tile, [B, M, N] int32: full ones first, then partial, then empty ones.

        And how many are full and how many are not empty, [B, M, 2] int32.
        """
        return _in_order(self.kind)

    @cached_property
    def by_key(self) -> tuple[Tensor, Tensor]:
        """The query tiles of each key tile in the same order, [B, N, M], and the two counts, [B, N, 2]."""
        return _in_order(self.kind.transpose(1, 2))


def tiles_of(sight: Sight, BM: int, BN: int) -> Tiles:
    """The tiles of a rule, found once for all layers; no step waits for the device."""
    if (BM, BN) not in sight.kept:
        last = sight.query[..., -1:].expand(-1, -1, -sight.query.shape[-1] % BM)
        query = _summary(torch.cat([sight.query, last], -1).unflatten(-1, (-1, BM)))
        beyond = (0, -sight.key.shape[-1] % BN)
        key = _summary(torch.nn.functional.pad(sight.key, beyond, value=NEVER).unflatten(-1, (-1, BN)))
        sight.kept[BM, BN] = Tiles(_kind(query, key))
    return sight.kept[BM, BN]


class _Summary(NamedTuple):
    """Of the tokens of each tile that have a number at all: the least and greatest; and whether every token has one."""

    low: Tensor  # [3, B, tiles]
    high: Tensor
    every: Tensor


def _summary(numbers: Tensor) -> _Summary:
    """From [3, B, tiles, tokens]."""
    low = torch.where(numbers == NOWHERE, NEVER, numbers).amin(-1)
    high = torch.where(numbers == NEVER, NOWHERE, numbers).amax(-1)
    return _Summary(low, high, (numbers.amin(-1) > NOWHERE) & (numbers.amax(-1) < NEVER))


def _kind(query: _Summary, key: _Summary) -> Tensor:
    q, k = _Summary(*(x.unsqueeze(-1) for x in query)), _Summary(*(x.unsqueeze(-2) for x in key))  # [3, B, M, N]
    overlap = (k.low <= q.high) & (q.low <= k.high)
    one = k.every & q.every & (k.low == q.high) & (q.low == k.high)  # both sides have one number, the same
    some = (k.low[POSITION] <= q.high[POSITION]) & ~one[BLOCK] | overlap[REGION]
    past = k.every[POSITION] & (k.high[POSITION] <= q.low[POSITION])
    full = past & ~overlap[BLOCK] | one[REGION]
    return torch.where(full, FULL, PARTIAL * some).to(torch.int32)


def _in_order(kind: Tensor) -> tuple[Tensor, Tensor]:
    counts = torch.stack([(kind == FULL).sum(-1), (kind >= PARTIAL).sum(-1)], -1)
    order = kind.contiguous().argsort(dim=-1, descending=True, stable=True)
    return order.to(torch.int32), counts.to(torch.int32)
