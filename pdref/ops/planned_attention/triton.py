"""Attention in tiles: a program holds its queries and walks the key tiles that its `Sight` does not leave empty.

Full tiles come first and take no mask; in a partial one the rule is asked pair by pair, from three integers a token.
Forward keeps log2 Z of each query, its partition. Backward computes the weights again from it:

    p = 2^(score - log2 Z)      delta = sum_d dO O      dS = p (dO V^T - delta)
    dQ = scale dS K             dK = scale dS^T Q       dV = p^T dO

dQ walks key tiles as the forward does. dK and dV walk the query tiles of a key tile, over all heads that share the
key head: nothing is added up in memory, and every run gives the same result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pdref.ops.online_softmax import finish, load_rows, rows_at, scores_of, store_rows, take_in
from pdref.ops.planned_attention.tiles import tiles_of
from pdref.text.mask import NEVER, NOWHERE, Sight

_NEVER, _NOWHERE = tl.constexpr(NEVER), tl.constexpr(NOWHERE)


class Shape(NamedTuple):
    """A shipped configuration: queries, keys and features of a tile, warps and pipeline stages."""

    BM: int
    BN: int
    BD: int
    num_warps: int
    num_stages: int


class Shapes(NamedTuple):
    """The configurations of the three kernels."""

    forward: Shape
    queries: Shape
    keys: Shape


def shapes(width: int, dtype: torch.dtype) -> Shapes:
    """Tiles of 64 by 64 suit the tensor cores and spans of tens of tokens; warps are chosen so that nothing spills.

    Exact float32 products run on the ordinary cores, whose operands sit in registers: their tiles are small.
    """
    BD = max(16, triton.next_power_of_2(width))
    narrow, wide = BD <= 32, BD > 64
    if dtype == torch.float32:
        shape = Shape(16, 16, BD, 8, 2) if wide else Shape(32, 32, BD, 4 if narrow else 8, 2)
        return Shapes(shape, shape, shape._replace(num_warps=4) if wide else shape)
    return Shapes(
        forward=Shape(64, 64, BD, 8 if wide else 4, 2 if wide else 3),
        queries=Shape(64, 64, BD, 4 if narrow else 8, 2),
        keys=Shape(64, 64, BD, 4, 2) if narrow else Shape(32, 64, BD, 8, 2),
    )


def planned_attention_triton(q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
    """Outputs [B, H, T, Dh]; shapes as in the contract."""
    if q.stride(-1) != 1:
        q = q.contiguous()
    if k.stride(-1) != 1 or k.stride() != v.stride():
        k, v = k.contiguous(), v.contiguous()
    return _Attention.apply(q, k, v, sight)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
        (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
        out = _heads_last(q)
        log2_z = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
        if out.numel():
            shape = shapes(D, q.dtype).forward
            order, counts = tiles_of(sight, shape.BM, shape.BN).by_query
            _forward[(order.shape[1] * B * H,)](
                q, k, v, out, log2_z, *_lists(order, counts), *_numbers(sight, B), D**-0.5, T, S, D, H, H // G,
                *order.shape[1:], *_steps(q), *_steps(k), *_steps(out), **shape._asdict(),
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, log2_z)
        ctx.sight = sight
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, log2_z = ctx.saved_tensors
        (B, H, T, D), (G, S), sight = q.shape, k.shape[1:3], ctx.sight
        if not (q.numel() and k.numel()):
            return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), None
        d_out = d_out if d_out.stride() == out.stride() else _heads_last(d_out).copy_(d_out)
        dq, dk, dv = (_heads_last(x) for x in (q, k, v))
        delta = torch.empty_like(log2_z)
        _, of_queries, of_keys = shapes(D, q.dtype)
        sizes, strides = (D**-0.5, T, S, D, H, H // G), (*_steps(q), *_steps(k), *_steps(out))
        order, counts = tiles_of(sight, of_queries.BM, of_queries.BN).by_query
        _gradient_of_queries[(order.shape[1] * B * H,)](
            q, k, v, out, d_out, dq, log2_z, delta, *_lists(order, counts), *_numbers(sight, B), *sizes,
            *order.shape[1:], *strides, **of_queries._asdict(),
        )  # fmt: skip
        order, counts = tiles_of(sight, of_keys.BM, of_keys.BN).by_key
        _gradient_of_keys[(order.shape[1] * B * G,)](
            q, k, v, d_out, dk, dv, log2_z, delta, *_lists(order, counts), *_numbers(sight, B), *sizes,
            *order.shape[1:], *strides, *_steps(dk), **of_keys._asdict(),
        )  # fmt: skip
        return dq, dk, dv, None


def _heads_last(like: Tensor) -> Tensor:
    """An empty [B, H, T, D] as a transformer's next matrix wants it: a token's heads side by side."""
    return torch.empty_like(like.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _steps(x: Tensor) -> tuple[int, ...]:
    """Strides of batch, head and token; features are contiguous."""
    return x.stride()[:3]


def _lists(order: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, int]:
    """The lists of tiles, and whether each batch row has its own (1) or all have the first one's (0)."""
    return order, counts, int(len(order) > 1)


def _numbers(sight: Sight, B: int) -> tuple[Tensor, Tensor, int, int, int, int]:
    """A rule's integers, and their strides by kind and by batch row."""
    query, key = sight.query.contiguous(), sight.key.contiguous()
    (of_query, query_b, _), (of_key, key_b, _) = (x.expand(-1, B, -1).stride() for x in (query, key))
    return query, key, of_query, query_b, of_key, key_b


@triton.jit
def _tile_and_head(tiles, heads):
    """Which tile, batch row and head a program works on; tiles of a head stand side by side."""
    head = tl.program_id(0) // tiles
    return tl.program_id(0) % tiles, (head // heads).to(tl.int64), head % heads


@triton.jit
def _list_of(order, counts, separate, b, tile, tiles, length):
    """Where a tile's list begins, and where its full and its partial ones end."""
    row = b * separate * tiles + tile
    return order + row * length, tl.load(counts + 2 * row), tl.load(counts + 2 * row + 1)


@triton.jit
def _rule_of(numbers, at, tokens, of_kind, none):
    """Position, block and region of the tokens `at`; `none`, which nothing matches, beyond the last."""
    inside = at < tokens
    position = tl.load(numbers + at, mask=inside, other=none)
    block = tl.load(numbers + of_kind + at, mask=inside, other=none)
    return position, block, tl.load(numbers + 2 * of_kind + at, mask=inside, other=none)


@triton.jit
def _sees(position, block, region, key_position, key_block, key_region):
    """The rule of `pdref.text.mask.Sight`; queries and keys broadcast."""
    return ((key_position <= position) & (key_block != block)) | (key_region == region)


@triton.jit
def _forward(q, k, v, out, log2_z, order, counts, separate, query, key, of_query, query_b, of_key, key_b, scale,
             T, S, D, H, share, M, N, qb, qh, qt, kb, kg, ks, ob, oh, ot,
             BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    tile, b, h = _tile_and_head(M, H)
    t = tile * BM + tl.arange(0, BM)
    k += b * kb + h // share * kg
    v += b * kb + h // share * kg
    q_tile = load_rows(rows_at(q + b * qb + h * qh, t, qt), t < T, D, BD)
    order, full, some = _list_of(order, counts, separate, b, tile, M, N)
    m = tl.full((BM,), -float("inf"), tl.float32)
    s = tl.zeros((BM,), tl.float32)
    a = tl.zeros((BM, BD), tl.float32)
    for i in range(0, full):
        j = tl.load(order + i) * BN + tl.arange(0, BN)
        scores = scores_of(q_tile, load_rows(rows_at(k, j, ks), j < S, D, BD), scale)
        m, s, a = take_in(scores, load_rows(rows_at(v, j, ks), j < S, D, BD), m, s, a)
    position, block, region = _rule_of(query + b * query_b, t[:, None], T, of_query, _NOWHERE)
    for i in range(full, some):
        j = tl.load(order + i) * BN + tl.arange(0, BN)
        key_position, key_block, key_region = _rule_of(key + b * key_b, j[None, :], S, of_key, _NEVER)
        seen = _sees(position, block, region, key_position, key_block, key_region)
        scores = scores_of(q_tile, load_rows(rows_at(k, j, ks), j < S, D, BD), scale)
        scores = tl.where(seen, scores, -float("inf"))
        m, s, a = take_in(scores, load_rows(rows_at(v, j, ks), j < S, D, BD), m, s, a)
    out_tile, z = finish(m, s, a)
    store_rows(rows_at(out + b * ob + h * oh, t, ot), t < T, D, out_tile, BD)
    tl.store(log2_z + (b * H + h) * T + t, z, mask=t < T)


@triton.jit
def _gradient_of_queries(q, k, v, out, d_out, dq, log2_z, delta, order, counts, separate, query, key,
                         of_query, query_b, of_key, key_b, scale, T, S, D, H, share, M, N, qb, qh, qt, kb, kg, ks,
                         ob, oh, ot, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    tile, b, h = _tile_and_head(M, H)
    t = tile * BM + tl.arange(0, BM)
    k += b * kb + h // share * kg
    v += b * kb + h // share * kg
    q_tile = load_rows(rows_at(q + b * qb + h * qh, t, qt), t < T, D, BD)
    d_out_tile = load_rows(rows_at(d_out + b * ob + h * oh, t, ot), t < T, D, BD)
    out_tile = load_rows(rows_at(out + b * ob + h * oh, t, ot), t < T, D, BD)
    z = tl.load(log2_z + (b * H + h) * T + t, mask=t < T, other=0.0)
    d = tl.sum(d_out_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
    tl.store(delta + (b * H + h) * T + t, d, mask=t < T)
    order, full, some = _list_of(order, counts, separate, b, tile, M, N)
    dq_tile = tl.zeros((BM, BD), tl.float32)
    for i in range(0, full):
        j = tl.load(order + i) * BN + tl.arange(0, BN)
        k_tile = load_rows(rows_at(k, j, ks), j < S, D, BD)
        v_tile = load_rows(rows_at(v, j, ks), j < S, D, BD)
        p = tl.exp2(scores_of(q_tile, k_tile, scale) - z[:, None])
        dp = tl.dot(d_out_tile, tl.trans(v_tile), input_precision="ieee")
        dq_tile = tl.dot((p * (dp - d[:, None])).to(k_tile.dtype), k_tile, dq_tile, input_precision="ieee")
    position, block, region = _rule_of(query + b * query_b, t[:, None], T, of_query, _NOWHERE)
    for i in range(full, some):
        j = tl.load(order + i) * BN + tl.arange(0, BN)
        k_tile = load_rows(rows_at(k, j, ks), j < S, D, BD)
        v_tile = load_rows(rows_at(v, j, ks), j < S, D, BD)
        key_position, key_block, key_region = _rule_of(key + b * key_b, j[None, :], S, of_key, _NEVER)
        seen = _sees(position, block, region, key_position, key_block, key_region)
        p = tl.where(seen, tl.exp2(scores_of(q_tile, k_tile, scale) - z[:, None]), 0.0)
        dp = tl.dot(d_out_tile, tl.trans(v_tile), input_precision="ieee")
        dq_tile = tl.dot((p * (dp - d[:, None])).to(k_tile.dtype), k_tile, dq_tile, input_precision="ieee")
    store_rows(rows_at(dq + b * ob + h * oh, t, ot), t < T, D, dq_tile * scale, BD)


@triton.jit
def _gradient_of_keys(q, k, v, d_out, dk, dv, log2_z, delta, order, counts, separate, query, key, of_query,
                      query_b, of_key, key_b, scale, T, S, D, H, share, N, M, qb, qh, qt, kb, kg, ks, ob, oh, ot,
                      gb, gg, gs, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    tile, b, g = _tile_and_head(N, H // share)
    j = tile * BN + tl.arange(0, BN)
    k_tile = load_rows(rows_at(k + b * kb + g * kg, j, ks), j < S, D, BD)
    v_tile = load_rows(rows_at(v + b * kb + g * kg, j, ks), j < S, D, BD)
    key_position, key_block, key_region = _rule_of(key + b * key_b, j[:, None], S, of_key, _NEVER)
    order, full, some = _list_of(order, counts, separate, b, tile, N, M)
    dk_tile = tl.zeros((BN, BD), tl.float32)
    dv_tile = tl.zeros((BN, BD), tl.float32)
    for h in range(g * share, g * share + share):
        for i in range(0, some):
            t = tl.load(order + i) * BM + tl.arange(0, BM)
            q_tile = load_rows(rows_at(q + b * qb + h * qh, t, qt), t < T, D, BD)
            d_out_tile = load_rows(rows_at(d_out + b * ob + h * oh, t, ot), t < T, D, BD)
            z = tl.load(log2_z + (b * H + h) * T + t, mask=t < T, other=0.0)
            d = tl.load(delta + (b * H + h) * T + t, mask=t < T, other=0.0)
            # Weights lie on their side, [BN, BM], as both products want them. Queries beyond the last have d_out 0.
            p = tl.exp2(scores_of(k_tile, q_tile, scale) - z[None, :])
            if i >= full:
                position, block, region = _rule_of(query + b * query_b, t[None, :], T, of_query, _NOWHERE)
                p = tl.where(_sees(position, block, region, key_position, key_block, key_region), p, 0.0)
            dv_tile = tl.dot(p.to(d_out_tile.dtype), d_out_tile, dv_tile, input_precision="ieee")
            dp = tl.dot(v_tile, tl.trans(d_out_tile), input_precision="ieee")
            dk_tile = tl.dot((p * (dp - d[None, :])).to(q_tile.dtype), q_tile, dk_tile, input_precision="ieee")
    store_rows(rows_at(dk + b * gb + g * gg, j, gs), j < S, D, dk_tile * scale, BD)
    store_rows(rows_at(dv + b * gb + g * gg, j, gs), j < S, D, dv_tile, BD)
