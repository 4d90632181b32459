"""What the attention kernels share: a tile of scores, and its part of a softmax whose other tiles come later.

After some tiles of keys a program holds, for each query, the greatest score m so far, s = sum 2^(score - m) and
a = sum 2^(score - m) v. Another tile is taken in by

    m' = max(m, max score)    s' = s 2^(m - m') + sum 2^(score - m')    a' = a 2^(m - m') + sum 2^(score - m') v

and at the end the output is a / s. Scores are in units of log 2, because 2^x is what the hardware has.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def rows_at(base, at, step):
    """Pointers to the rows `at` of a matrix, which may be larger than 2^31 numbers."""
    return base + at.to(tl.int64) * step


@triton.jit
def load_rows(rows, inside, width, BD: tl.constexpr):
    """The rows that begin at the pointers `rows` [BN], `width` numbers each, with zeros around them: [BN, BD]."""
    d = tl.arange(0, BD)
    return tl.load(rows[:, None] + d[None, :], mask=inside[:, None] & (d[None, :] < width), other=0.0)


@triton.jit
def store_rows(rows, inside, width, tile, BD: tl.constexpr):
    """Write a tile [BN, BD] to the same."""
    d = tl.arange(0, BD)
    tile = tile.to(rows.dtype.element_ty)
    tl.store(rows[:, None] + d[None, :], tile, mask=inside[:, None] & (d[None, :] < width))


@triton.jit
def scores_of(q, k, scale):
    """scale q . k of queries [BM, BD] and keys [BN, BD] in units of log 2, float32 [BM, BN]."""
    return tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)


@triton.jit
def take_in(scores, v, m, s, a):
    """Another tile: scores [BM, BN], -inf where a query may not look, and values [BN, BD]."""
    larger = tl.maximum(m, tl.max(scores, 1))
    base = tl.where(larger == -float("inf"), 0.0, larger)  # so that -inf - base is never NaN
    p = tl.exp2(scores - base[:, None])
    rescale = tl.exp2(m - base)
    s = s * rescale + tl.sum(p, 1)
    a = tl.dot(p.to(v.dtype), v, a * rescale[:, None], input_precision="ieee")
    return larger, s, a


@triton.jit
def finish(m, s, a):
    """Outputs [BM, BD], zeros for a query that saw nothing, and log2 of its partition, +inf for such a one."""
    some = tl.where(s > 0, s, 1.0)
    return a / some[:, None], tl.where(s > 0, m + tl.log2(some), float("inf"))
