"""What every kernel over the vocabulary shares: a tile of scores, its log-sum-exp, and how tiles are merged.

A program computes the scores of BN rows and BV words, a plain tiled product, and keeps of them what its op needs:
at least their maximum m and s = sum exp(score - m). Two tiles merge into one by

    m = max(m1, m2)        s = s1 exp(m1 - m) + s2 exp(m2 - m)

which is associative: any number of tiles, in any order, give log Z = m + log s. Programs next to each other share
the words and differ in rows, so that the unembedding, the larger operand, is read from memory about once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tiles(NamedTuple):
    """A shipped configuration: rows, words and features of a tile, warps and pipeline stages."""

    BN: int
    BV: int
    BD: int
    num_warps: int
    num_stages: int

    def grid(self, N: int, V: int) -> tuple[int]:
        """One program a tile."""
        return (triton.cdiv(N, self.BN) * triton.cdiv(V, self.BV),)


def tiles(hidden: Tensor, unembedding: Tensor, most_rows: int = 128) -> Tiles:
    """Half precision fills the tensor cores; float32 is multiplied exactly (IEEE) by the ordinary ones.

    Where rows do not begin at multiples of 16 features, features are loaded one by one through registers, of which
    the smaller tile leaves enough.
    """
    if hidden.dtype == torch.float32:
        return Tiles(64, 64, 32, 4 if most_rows > 64 else 8, 2)
    aligned = all(n % 16 == 0 for n in (hidden.shape[1], hidden.stride(0), unembedding.stride(0)))
    return Tiles(most_rows, 128, 64, 8, 3) if aligned else Tiles(64, 128, 32, 8, 3)


def in_rows(x: Tensor) -> Tensor:
    """A matrix whose rows are contiguous, as the kernels read them; a copy only where it has to be."""
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def tile_of_program(N, BN: tl.constexpr, BV: tl.constexpr):
    """The vocabulary tile of this program, and the rows [BN] and words [BV] of its tile; rows vary fastest."""
    row_tiles = tl.cdiv(N, BN)
    tile = tl.program_id(0) // row_tiles
    n = tl.program_id(0) % row_tiles * BN + tl.arange(0, BN)
    v = tile * BV + tl.arange(0, BV)
    return tile, n, v


@triton.jit
def scores_of_tile(hidden, unembedding, n, v, N, V, D, stride_n, stride_v, BN: tl.constexpr, BV: tl.constexpr,
                   BD: tl.constexpr):  # fmt: skip
    """Scores [BN, BV] in float32, -inf beyond the vocabulary; features are contiguous."""
    h = hidden + n[:, None].to(tl.int64) * stride_n
    w = unembedding + v[None, :].to(tl.int64) * stride_v
    scores = tl.zeros((BN, BV), tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        x = tl.load(h + d[None, :], mask=(n[:, None] < N) & (d[None, :] < D), other=0.0)  # [BN, BD]
        y = tl.load(w + d[:, None], mask=(v[None, :] < V) & (d[:, None] < D), other=0.0)  # [BD, BV]
        scores = tl.dot(x, y, scores, input_precision="ieee")
    return tl.where(v[None, :] < V, scores, -float("inf"))


@triton.jit
def partial_logsumexp(scores):
    """m and s of each row of a tile; s is 0 where every score is -inf."""
    m = tl.max(scores, 1)
    return m, tl.sum(tl.exp(scores - finite(m)[:, None]), 1)


@triton.jit
def rescale(m, larger):
    """exp(m - larger), 0 for m = -inf: what a sum relative to m is worth relative to a larger maximum."""
    return tl.exp(m - finite(larger))


@triton.jit
def finite(m):
    """m, but 0 instead of -inf, so that -inf - m is never NaN."""
    return tl.where(m == -float("inf"), 0.0, m)
