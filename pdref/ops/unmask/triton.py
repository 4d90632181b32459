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

from pdref.ops.vocabulary import Tiles, finite, partial_logsumexp, rescale, scores_of_tile, tile_of_program


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
    if hidden.stride(-1) != 1:
        hidden = hidden.contiguous()
    if unembedding.stride(-1) != 1:
        unembedding = unembedding.contiguous()
    (N, D), V = hidden.shape, len(unembedding)
    token = torch.empty(N, dtype=torch.int64, device=hidden.device)
    probability, entropy = torch.empty(2, N, dtype=torch.float32, device=hidden.device)
    if not N:
        return token, probability, entropy
    allowed = torch.ones(V, dtype=torch.int8, device=hidden.device)
    if forbidden is not None:
        allowed.index_fill_(0, forbidden, 0)
    shape = _tiles(hidden.dtype)
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


def _tiles(dtype: torch.dtype) -> Tiles:
    """Fewer rows than the loss: masked positions are few, and the noise needs registers."""
    return Tiles(64, 64, 32, 8, 2) if dtype == torch.float32 else Tiles(64, 128, 64, 8, 3)


def most_confident_triton(confidence: Tensor, masked: Tensor, quota: Tensor) -> Tensor:
    """See `most_confident`."""
    R, L = confidence.shape
    chosen = torch.empty(R, L, dtype=torch.bool, device=confidence.device)
    if chosen.numel():
        _rank[(R, triton.cdiv(L, 64))](
            confidence.contiguous(), masked.contiguous().view(torch.int8), quota.contiguous(), chosen.view(torch.int8),
            L, BL=64,
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
def _rank(confidence, masked, quota, chosen, L, BL: tl.constexpr):
    """A position is chosen if fewer than quota masked positions of its row come before it."""
    row = tl.program_id(0).to(tl.int64) * L
    i = tl.program_id(1) * BL + tl.arange(0, BL)
    mine = tl.load(confidence + row + i, mask=i < L, other=0.0)
    rank = tl.zeros((BL,), tl.int32)
    for start in range(0, L, BL):
        j = start + tl.arange(0, BL)
        c = tl.load(confidence + row + j, mask=j < L, other=0.0)
        rival = tl.load(masked + row + j, mask=j < L, other=0) != 0
        before = (c[None, :] > mine[:, None]) | ((c[None, :] == mine[:, None]) & (j[None, :] < i[:, None]))
        rank += tl.sum((before & rival[None, :]).to(tl.int32), 1)
    mine_masked = tl.load(masked + row + i, mask=i < L, other=0) != 0
    tl.store(chosen + row + i, (mine_masked & (rank < tl.load(quota + tl.program_id(0)))).to(tl.int8), mask=i < L)
