"""Attention by PyTorch's own, a tile of queries at a time, each with the key tiles that it may see anything of.

Short spans leave most of a long text's mask empty; what is empty is then neither multiplied nor masked. At small
sizes one call under the whole mask is faster.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pdref.ops.planned_attention.tiles import tiles_of
from pdref.text.mask import EMPTY, FULL, Sight, sees

TILE = 64
PAYS_FROM = 300**2
"""Queries times keys from which on skipping makes up for the extra calls."""


class _Row(NamedTuple):
    """The key tiles of a query tile, and the mask over their keys, None if it is full."""

    tiles: list[int]
    mask: Tensor | None


def pays(q: Tensor, k: Tensor) -> bool:
    """Whether tiles are the faster way; on a GPU their lists would have to be waited for."""
    return q.device.type == "cpu" and q.shape[2] * k.shape[2] >= PAYS_FROM


def planned_attention_tiled(q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
    """Outputs [B, H, T, Dh]; shapes as in the contract."""
    rules = _rules(sight)
    each = 1 if len(rules) > 1 else len(q)  # batch rows with one rule go together
    split = zip(q.split(each), k.split(each), v.split(each), rules, strict=True)
    return torch.cat([_attend(*parts) for parts in split])


def _attend(q: Tensor, k: Tensor, v: Tensor, rows: list[_Row]) -> Tensor:
    keys, values = k.split(TILE, 2), v.split(TILE, 2)  # the gradient of a split is one concatenation
    shared = q.shape[1] != k.shape[1]
    out = []
    for x, (tiles, mask) in zip(q.split(TILE, 2), rows, strict=True):
        y, z = (torch.cat([of[j] for j in tiles], 2) for of in (keys, values))
        out.append(scaled_dot_product_attention(x, y, z, mask, enable_gqa=shared))
    return torch.cat(out, 2)


def _rules(sight: Sight) -> list[list[_Row]]:
    """For each batch row of a rule its query tiles, found once for all layers."""
    if "rows" not in sight.kept:
        kind = tiles_of(sight, TILE, TILE).kind.tolist()
        sight.kept["rows"] = [
            _rows(*parts) for parts in zip(kind, sight.query.unbind(1), sight.key.unbind(1), strict=True)
        ]
    return sight.kept["rows"]


def _rows(kind: list[list[int]], query: Tensor, key: Tensor) -> list[_Row]:
    keys, rows = key.split(TILE, 1), []
    for row, numbers in zip(kind, query.split(TILE, 1), strict=True):
        tiles = [j for j, what in enumerate(row) if what != EMPTY] or [0]  # an attention over nothing is zeros
        seen = torch.cat([keys[j] for j in tiles], 1)
        full = all(row[j] == FULL for j in tiles)
        rows.append(_Row(tiles, None if full else sees(numbers[:, :, None], seen[:, None])))
    return rows
