"""From hidden states to a drawn token, its probability and the entropy; then which masked positions to reveal.

    p = top_p(softmax(W h / temperature))      token = argmax_v [log p_v + g_v]      H = -sum_v p_v log p_v

g is Gumbel noise from counters: it depends on a request's seed and a token's position alone, so a request draws the
same tokens alone and in a batch, whatever runs beside it. Temperature 0 takes the most probable token; its confidence
is that of temperature 1, since a one-point distribution would be equally sure everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pdref.ops.unmask.counters import gumbel


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
) -> Drawn:
    """Draw a token per row: `hidden` [N, D], `unembedding` [V, D], `seeds` and `positions` [N] int64.

    `forbidden` [F] int64 are tokens that are never drawn. Raises ValueError for a temperature below 0 or a top_p
    outside (0, 1].
    """
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature is at least 0 and top_p in (0, 1], not {temperature} and {top_p}")
    scores = F.linear(hidden, unembedding)  # [N, V]
    if forbidden is not None:
        scores = scores.index_fill(-1, forbidden, -torch.inf)
    log_p = (scores / (temperature or 1.0)).log_softmax(-1)
    if top_p < 1:
        log_p = nucleus(log_p, top_p)
    if temperature == 0:
        token = log_p.argmax(-1)
    else:
        token = (log_p + gumbel(seeds, positions, step, log_p.shape[1]).to(log_p.dtype)).argmax(-1)
    p = log_p.exp()
    entropy = torch.special.entr(p).sum(-1)
    return Drawn(token, p.gather(-1, token[:, None])[:, 0], entropy)


def nucleus(log_p: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of tokens whose probability reaches `top_p`, renormalised; [N, V] -> [N, V]."""
    ordered, order = log_p.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()  # probability of the better tokens
    dropped = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return log_p.masked_fill(dropped, -torch.inf).log_softmax(-1)


def most_confident(confidence: Tensor, masked: Tensor, quota: Tensor) -> Tensor:
    """The `quota` [R] most confident of each row's `masked` [R, L] positions, as booleans [R, L].

    Equal confidences are taken from left to right.
    """
    order = confidence.masked_fill(~masked, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (rank < quota[:, None]) & masked
