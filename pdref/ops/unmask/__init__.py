"""From hidden states to a drawn token, its probability and the entropy; then which masked positions to reveal.

    p = top_p(softmax(W h / temperature))      token = argmax_v [log p_v + g_v]      H = -sum_v p_v log p_v

g is Gumbel noise from counters: it depends on a request's seed and a token's position alone, so a request draws the
same tokens alone and in a batch, whatever runs beside it, and by whichever implementation. Temperature 0 takes the
most probable token; its confidence is that of temperature 1, since a one-point distribution would be equally sure
everywhere. Scores are float32 also for half-precision inputs, so that all implementations draw from one distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pdref.ops.impl import Impl, choose
from pdref.ops.unmask.naive import most_confident_naive, unmask_naive

KEPT = 2**22
"""Scores that the torch path holds at a time, 16 MB; noise takes several times as much."""


class Drawn(NamedTuple):
    """What `unmask` returns, [N] each."""

    token: Tensor
    probability: Tensor
    entropy: Tensor


def unmask(
    hidden: Tensor,
    unembedding: Tensor,
    seeds: Tensor,
    positions: Tensor,
    step: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    forbidden: Tensor | None = None,
    impl: Impl = "auto",
) -> Drawn:
    """Draw a token per row: `hidden` [N, D], `unembedding` [V, D], `seeds` and `positions` [N] int64.

    `forbidden` [F] int64 are tokens that are never drawn. A nucleus needs a row's probabilities in order, which one
    pass over the vocabulary does not have: with `top_p` below 1 the kernel is refused, and auto takes torch. Raises
    ValueError for a temperature below 0 or a top_p outside (0, 1].
    """
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature is at least 0 and top_p in (0, 1], not {temperature} and {top_p}")
    if top_p < 1 and impl == "triton":
        raise ValueError(f"impl='triton' draws from all tokens, not from a nucleus of {top_p}; take 'torch'")
    chosen = "torch" if impl == "auto" and top_p < 1 else choose(impl, hidden)
    if chosen == "triton":
        from pdref.ops.unmask.triton import unmask_triton

        return Drawn(*unmask_triton(hidden, unembedding, seeds, positions, step, temperature, forbidden))
    # The definition already does what stock PyTorch can; for many rows, a chunk of them at a time.
    size = max(1, len(hidden) if chosen == "naive" else KEPT // len(unembedding))
    parts = [
        unmask_naive(h, unembedding, s, p, step, temperature, top_p, forbidden)
        for h, s, p in zip(hidden.split(size), seeds.split(size), positions.split(size), strict=True)
    ]
    return Drawn(*parts[0]) if len(parts) == 1 else Drawn(*map(torch.cat, zip(*parts, strict=True)))


def most_confident(confidence: Tensor, masked: Tensor, quota: Tensor, impl: Impl = "auto") -> Tensor:
    """The `quota` [R] most confident of each row's `masked` [R, L] positions, as booleans [R, L].

    Equal confidences are taken from left to right. Nothing waits for the device.
    """
    if choose(impl, confidence) == "triton":
        from pdref.ops.unmask.triton import most_confident_triton

        return most_confident_triton(confidence, masked, quota)
    return most_confident_naive(confidence, masked, quota)
