"""The token loss in tiles: no program holds more scores than one tile, and none leaves the chip forward.

Forward, each tile of scores leaves its (m, s) and, where it holds a row's target, that score; a second kernel merges
a row's tiles. Backward, the tiles are computed again and leave a p - b 1[v = y] for a chunk of rows, whose two
products with W and h are ordinary matrix products; `chunked` does these.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pdref.ops.token_nll.chunked import ChunkedNll, Steps
from pdref.ops.vocabulary import in_rows, partial_logsumexp, rescale, scores_of_tile, tile_of_program, tiles

NO_LIMIT = 2**62
GRADIENT_SCORES = 2**26
"""Scores whose gradients are held at a time backward: 128 MB in half precision, enough to fill a GPU."""


def token_nll_triton(
    hidden: Tensor, unembedding: Tensor, targets: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Nats and log Z, [N] each, zero but for `rows` [R] int64 (None: all); shapes as in the contract."""
    return ChunkedNll.apply(hidden, unembedding, targets, rows, steps())


def steps() -> Steps:
    """The two steps by our kernels."""
    return Steps(_forward, _gradient, NO_LIMIT, GRADIENT_SCORES)


def _forward(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    hidden, unembedding = in_rows(hidden), in_rows(unembedding)
    (N, D), V = hidden.shape, len(unembedding)
    log_z, of_target = torch.empty(2, N, dtype=torch.float32, device=hidden.device)
    if not N:
        return log_z, of_target
    shape = tiles(hidden, unembedding)
    count = triton.cdiv(V, shape.BV)
    partial = torch.empty(2, count, N, dtype=torch.float32, device=hidden.device)  # m and s of each tile
    of_target.zero_()  # rows without a target are in no tile
    _tile_forward[shape.grid(N, V)](
        hidden, unembedding, targets.contiguous(), partial[0], partial[1], of_target, N, V, D, hidden.stride(0),
        unembedding.stride(0), **shape._asdict(),
    )  # fmt: skip
    _merge[(triton.cdiv(N, 128),)](partial[0], partial[1], log_z, N, count, BN=128)
    return log_z, of_target


def _gradient(hidden: Tensor, unembedding: Tensor, targets: Tensor, log_z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    hidden, unembedding = in_rows(hidden), in_rows(unembedding)
    (N, D), V = hidden.shape, len(unembedding)
    gradient = torch.empty(N, V, dtype=hidden.dtype, device=hidden.device)
    shape = tiles(hidden, unembedding)
    _tile_gradient[shape.grid(N, V)](
        hidden, unembedding, targets.contiguous(), log_z, a, b, gradient, N, V, D, hidden.stride(0),
        unembedding.stride(0), **shape._asdict(),
    )  # fmt: skip
    return gradient


@triton.jit
def _tile_forward(hidden, unembedding, targets, partial_m, partial_s, of_target, N, V, D, stride_n, stride_v,
                  BN: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    tile, n, v = tile_of_program(N, BN, BV)
    scores = scores_of_tile(hidden, unembedding, n, v, N, V, D, stride_n, stride_v, BN, BV, BD)
    m, s = partial_logsumexp(scores)
    at = tile * N + n
    tl.store(partial_m + at, m, mask=n < N)
    tl.store(partial_s + at, s, mask=n < N)
    y = tl.load(targets + n, mask=n < N, other=-1)
    here = (y >= tile * BV) & (y < tile * BV + BV)
    tl.store(of_target + n, tl.sum(tl.where(v[None, :] == y[:, None], scores, 0.0), 1), mask=(n < N) & here)


@triton.jit
def _merge(partial_m, partial_s, log_z, N, tiles, BN: tl.constexpr):
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.full((BN,), -float("inf"), tl.float32)
    s = tl.zeros((BN,), tl.float32)
    for tile in range(0, tiles):
        at = tile * N + n
        m_tile = tl.load(partial_m + at, mask=n < N, other=0.0)
        larger = tl.maximum(m, m_tile)
        s = s * rescale(m, larger) + tl.load(partial_s + at, mask=n < N, other=1.0) * rescale(m_tile, larger)
        m = larger
    tl.store(log_z + n, m + tl.log(s), mask=n < N)


@triton.jit
def _tile_gradient(hidden, unembedding, targets, log_z, a, b, gradient, N, V, D, stride_n, stride_v,
                   BN: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    _, n, v = tile_of_program(N, BN, BV)
    scores = scores_of_tile(hidden, unembedding, n, v, N, V, D, stride_n, stride_v, BN, BV, BD)
    p = tl.exp(scores - tl.load(log_z + n, mask=n < N, other=0.0)[:, None])
    y = tl.load(targets + n, mask=n < N, other=-1)
    of_p = tl.load(a + n, mask=n < N, other=0.0)
    of_target = tl.load(b + n, mask=n < N, other=0.0)
    d_scores = of_p[:, None] * p - tl.where(v[None, :] == y[:, None], of_target[:, None], 0.0)
    at = n[:, None].to(tl.int64) * V + v[None, :]
    tl.store(gradient + at, d_scores.to(gradient.dtype.element_ty), mask=(n[:, None] < N) & (v[None, :] < V))
