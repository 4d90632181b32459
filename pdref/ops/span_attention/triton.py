"""Attention while decoding, in tiles: a program reads a span's past where its owner keeps it, then the span's own keys.

Its queries are those of all heads that share a key head, so that the past is read once for them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pdref.ops.online_softmax import finish, load_rows, rows_at, scores_of, store_rows, take_in


class Shape(NamedTuple):
    """A shipped configuration: queries, keys and features of a tile, warps and pipeline stages."""

    BM: int
    BN: int
    BD: int
    num_warps: int
    num_stages: int


def shape_of(queries: int, width: int, dtype: torch.dtype) -> Shape:
    """As few rows as a tensor core takes for one token, up to 64 for longer spans."""
    BD = max(16, triton.next_power_of_2(width))
    if dtype == torch.float32:
        return Shape(16, 16 if BD > 64 else 32, BD, 4, 2)
    return Shape(min(64, max(16, triton.next_power_of_2(queries))), 64, BD, 4, 2)


def span_attention_triton(q: Tensor, own: Tensor, past: Tensor, owner: Tensor, slots: Tensor, length: Tensor) -> Tensor:
    """Softmax over the owner's first `slots` keys and the span's own `length`; shapes as in the contract."""
    q, own, past = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, own, past))
    (K, H, L, D), G = q.shape, own.shape[1] // 2
    out = torch.empty(K, L, H, D, dtype=q.dtype, device=q.device).transpose(1, 2)
    if out.numel():
        shape = shape_of(H // G * L, D, q.dtype)
        tiles = triton.cdiv(H // G * L, shape.BM)
        _forward[(tiles * K * G,)](
            q, own, past, out, owner, slots, length, D**-0.5, L, D, G, H // G, tiles, *q.stride()[:3],
            *own.stride()[:3], *past.stride()[:3], *out.stride()[:3], **shape._asdict(),
        )  # fmt: skip
    return out


@triton.jit
def _read(entries, kv, step, count, q_tile, scale, D, m, s, a, BN: tl.constexpr, BD: tl.constexpr):
    """Take in `count` keys from `entries` on and as many values, which begin `kv` further on."""
    for start in range(0, count, BN):
        j = start + tl.arange(0, BN)
        scores = scores_of(q_tile, load_rows(rows_at(entries, j, step), j < count, D, BD), scale)
        scores = tl.where(j[None, :] < count, scores, -float("inf"))
        m, s, a = take_in(scores, load_rows(rows_at(entries + kv, j, step), j < count, D, BD), m, s, a)
    return m, s, a


@triton.jit
def _forward(q, own, past, out, owner, slots, length, scale, L, D, G, share, tiles, qb, qh, qt, nb, ng, ns, pb, pg, ps,
             ob, oh, ot, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    span = (tl.program_id(0) // tiles // G).to(tl.int64)
    g = tl.program_id(0) // tiles % G
    row = tl.program_id(0) % tiles * BM + tl.arange(0, BM)  # the rows are the group's heads, L tokens each
    inside, h, t = row < share * L, g * share + row // L, row % L
    q_tile = load_rows(q + span * qb + h * qh + t * qt, inside, D, BD)
    m = tl.full((BM,), -float("inf"), tl.float32)
    s = tl.zeros((BM,), tl.float32)
    a = tl.zeros((BM, BD), tl.float32)
    b = tl.load(owner + span)
    m, s, a = _read(past + b * pb + g * pg, G * pg, ps, tl.load(slots + span), q_tile, scale, D, m, s, a, BN, BD)
    m, s, a = _read(own + span * nb + g * ng, G * ng, ns, tl.load(length + span), q_tile, scale, D, m, s, a, BN, BD)
    out_tile, _ = finish(m, s, a)
    store_rows(out + span * ob + h * oh + t * ot, inside, D, out_tile, BD)
