"""Counter-based random numbers: a number is a hash of what it is for, so no order of draws can change it.

Words are 32 bits wide, held in int64, mixed by the finaliser of MurmurHash3 (Appleby, public domain).
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_STRIDE = 0x9E3779B9  # the golden ratio in 32 bits: neighbouring counters land far apart


def gumbel(seeds: Tensor, positions: Tensor, step: int, width: int) -> Tensor:
    """Standard Gumbel noise [N, width], float32, for `seeds` and `positions` [N] int64 at a denoising step."""
    columns = torch.arange(width, device=seeds.device)
    u = uniform(seeds[:, None], positions[:, None], step, columns)
    return -(-u.log()).log()


def uniform(seeds: Tensor, positions: Tensor, step: int, lane: Tensor | int) -> Tensor:
    """Uniform numbers strictly inside (0, 1), float32; the arguments broadcast."""
    h = mix(seeds & _WORD)
    for word in (positions, step, lane):
        h = mix(h ^ ((word + 1) * _STRIDE & _WORD))
    return ((h >> 9) + 0.5) * 2.0**-23  # 23 bits: the largest is 1 - 2^-24, which float32 holds


def mix(h: Tensor) -> Tensor:
    """Spread every bit of a 32-bit word over all others."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B & _WORD
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & _WORD
    return h ^ (h >> 16)
