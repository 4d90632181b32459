"""One pass over the vocabulary: each tile of scores leaves five numbers a row, and merging them leaves a drawn token.

With x = score / temperature and m the largest x of the tile, a tile leaves

    m,    s = sum e^(x - m),    u = sum e^(x - m) (x - m),    best = max_v [x + g],    its token and x

from which log Z = m + log s, H = log s - u / s, p = e^(x - log Z). Merging moves s and u to the larger maximum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pdref.ops.vocabulary import finite, in_rows, partial_logsumexp, rescale, scores_of_tile, tile_of_program, tiles


def unmask_triton(
    hidden: Tensor,
    unembedding: Tensor,
    seeds: Tensor,
    positions: Tensor,
    step: int,
    temperature: float,
    forbidden: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their probabilities and the entropies, [N] each; arguments as in the contract."""
    hidden, unembedding = in_rows(hidden), in_rows(unembedding)
    (N, D), V = hidden.shape, len(unembedding)
    token = torch.empty(N, dtype=torch.int64, device=hidden.device)
    probability, entropy = torch.empty(2, N, dtype=torch.float32, device=hidden.device)
    if not N:
        return token, probability, entropy
    allowed = torch.ones(V, dtype=torch.int8, device=hidden.device)
    if forbidden is not None:
        allowed.index_fill_(0, forbidden, 0)
    shape = tiles(hidden, unembedding, most_rows=64)  # masked positions are few, and noise needs registers
    count = triton.cdiv(V, shape.BV)
    partial = torch.empty(5, count, N, dtype=torch.float32, device=hidden.device)
    candidate = torch.empty(count, N, dtype=torch.int32, device=hidden.device)
    _draw_in_tile[shape.grid(N, V)](
        hidden, unembedding, allowed, seeds.contiguous(), positions.contiguous(), *partial, candidate, step,
        1.0 / (temperature or 1.0), N, V, D, hidden.stride(0), unembedding.stride(0),
        GREEDY=temperature == 0, **shape._asdict(),
    )  # fmt: skip
    _merge_draws[(triton.cdiv(N, 128),)](*partial, candidate, token, probability, entropy, N, count, BN=128)
    return token, probability, entropy


def most_confident_triton(confidence: Tensor, masked: Tensor, quota: Tensor) -> Tensor:
    """See `most_confident`."""
    R, L = confidence.shape
    chosen = torch.empty(R, L, dtype=torch.bool, device=confidence.device)
    if chosen.numel():
        _reveal[(R,)](
            confidence.contiguous(), masked.contiguous().view(torch.int8), quota.contiguous(), chosen.view(torch.int8),
            L, BL=max(16, triton.next_power_of_2(L)),
        )  # fmt: skip
    return chosen


@triton.jit
def mix(h):
    """Spread every bit of a 32-bit word over all others; see `counters.mix`."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)


@triton.jit
def gumbel_of_tile(seeds, positions, step, v):
    """Standard Gumbel noise [BN, BV] for seeds and positions [BN] and words [BV]; see `counters.gumbel`."""
    stride: tl.constexpr = 0x9E3779B9
    h = mix(seeds.to(tl.uint32))
    h = mix(h ^ ((positions.to(tl.uint32) + 1) * stride))
    h = mix(h ^ ((step.to(tl.uint32) + 1) * stride))
    h = mix(h[:, None] ^ ((v.to(tl.uint32) + 1) * stride)[None, :])
    u = ((h >> 9).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    return -tl.log(-tl.log(u))


@triton.jit(do_not_specialize=["step", "inverse_temperature"])
def _draw_in_tile(hidden, unembedding, allowed, seeds, positions, partial_m, partial_s, partial_u, partial_best,
                  partial_x, candidate, step, inverse_temperature, N, V, D, stride_n, stride_v,
                  GREEDY: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    tile, n, v = tile_of_program(N, BN, BV)
    scores = scores_of_tile(hidden, unembedding, n, v, N, V, D, stride_n, stride_v, BN, BV, BD)
    may = tl.load(allowed + v, mask=v < V, other=0)
    x = tl.where(may[None, :] != 0, scores * inverse_temperature, -float("inf"))
    at = tile * N + n
    inside = n < N

    m, s = partial_logsumexp(x)
    below = x - finite(m)[:, None]
    u = tl.sum(tl.exp(below) * tl.where(x == -float("inf"), 0.0, below), 1)
    tl.store(partial_m + at, m, mask=inside)
    tl.store(partial_s + at, s, mask=inside)
    tl.store(partial_u + at, u, mask=inside)

    perturbed = x
    if not GREEDY:
        seed = tl.load(seeds + n, mask=inside, other=0)
        position = tl.load(positions + n, mask=inside, other=0)
        perturbed = x + gumbel_of_tile(seed, position, step, v)
    best, which = tl.max(perturbed, 1, return_indices=True)  # the first of equals
    tl.store(partial_best + at, best, mask=inside)
    drawn = tl.sum(tl.where(tl.arange(0, BV)[None, :] == which[:, None], x, 0.0), 1)
    tl.store(partial_x + at, drawn, mask=inside)
    tl.store(candidate + at, tile * BV + which, mask=inside)


@triton.jit
def _merge_draws(partial_m, partial_s, partial_u, partial_best, partial_x, candidate, token, probability, entropy, N,
                 tiles, BN: tl.constexpr):  # fmt: skip
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = n < N
    m = tl.full((BN,), -float("inf"), tl.float32)
    best = tl.full((BN,), -float("inf"), tl.float32)
    s, u, x = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    drawn = tl.zeros((BN,), tl.int32)
    for tile in range(0, tiles):
        at = tile * N + n
        m_tile = tl.load(partial_m + at, mask=inside, other=0.0)
        s_tile = tl.load(partial_s + at, mask=inside, other=1.0)
        u_tile = tl.load(partial_u + at, mask=inside, other=0.0)
        larger = tl.maximum(m, m_tile)
        u = _moved(u, s, m, larger) + _moved(u_tile, s_tile, m_tile, larger)
        s = s * rescale(m, larger) + s_tile * rescale(m_tile, larger)
        m = larger
        best_tile = tl.load(partial_best + at, mask=inside, other=-float("inf"))
        better = best_tile > best
        best = tl.where(better, best_tile, best)
        drawn = tl.where(better, tl.load(candidate + at, mask=inside, other=0), drawn)
        x = tl.where(better, tl.load(partial_x + at, mask=inside, other=0.0), x)
    tl.store(token + n, drawn.to(tl.int64), mask=inside)
    tl.store(probability + n, tl.exp(x - m) / s, mask=inside)
    tl.store(entropy + n, tl.log(s) - u / s, mask=inside)


@triton.jit
def _moved(u, s, m, larger):
    """sum e^(x - m) (x - m), relative to a larger maximum."""
    lower = tl.where(s > 0, m - finite(larger), 0.0)  # where nothing was summed, m is -inf
    return rescale(m, larger) * (u + s * lower)


@triton.jit
def _reveal(confidence, masked, quota, chosen, L, BL: tl.constexpr):
    """The quota-th greatest confidence, bit by bit; then all above it, and equals from the left."""
    at = tl.program_id(0).to(tl.int64) * L + tl.arange(0, BL)
    inside = tl.arange(0, BL) < L
    rival = tl.load(masked + at, mask=inside, other=0) != 0
    wanted = tl.load(quota + tl.program_id(0)).to(tl.int32)
    key = in_order(tl.load(confidence + at, mask=inside, other=0.0))
    least = tl.zeros((), tl.uint32)
    for bit in tl.static_range(31, -1, -1):
        tried = least | tl.full((), 1 << bit, tl.uint32)
        enough = tl.sum((rival & (key >= tried)).to(tl.int32), 0) >= wanted
        least = tl.where(enough, tried, least)
    above = rival & (key > least)
    equal = rival & (key == least)
    left = wanted - tl.sum(above.to(tl.int32), 0)
    reveal = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= left))
    tl.store(chosen + at, reveal.to(tl.int8), mask=inside)


@triton.jit
def in_order(x):
    """Words of 32 bits that are ordered as the floats are; 0.0 and -0.0 are equal."""
    bits = (x.to(tl.float32) + 0.0).to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)
