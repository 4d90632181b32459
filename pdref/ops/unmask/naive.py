"""The definition of drawing and of revealing, one step of the equation a line."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pdref.ops.unmask.counters import gumbel


def unmask_naive(
    hidden: Tensor,
    unembedding: Tensor,
    seeds: Tensor,
    positions: Tensor,
    step: int,
    temperature: float,
    top_p: float,
    forbidden: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their probabilities and the entropies, [N] each; arguments as in the contract."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    scores = F.linear(hidden.to(wide), unembedding.to(wide))  # [N, V]
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
    return token, p.gather(-1, token[:, None])[:, 0], entropy


def nucleus(log_p: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of tokens whose probability reaches `top_p`, renormalised; [N, V] -> [N, V]."""
    ordered, order = log_p.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()  # probability of the better tokens
    dropped = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return log_p.masked_fill(dropped, -torch.inf).log_softmax(-1)


def most_confident_naive(confidence: Tensor, masked: Tensor, quota: Tensor) -> Tensor:
    """See `most_confident`."""
    order = confidence.masked_fill(~masked, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (rank < quota[:, None]) & masked
