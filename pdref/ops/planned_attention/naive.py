"""The definition of masked attention, one step of the equation a line."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor


def planned_attention_naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(Dh) under the mask) v; shapes as in the contract."""
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()[None, None]
    q = rearrange(q, "b (g r) t d -> b g r t d", g=k.shape[1])  # r query heads share key head g
    scores = einsum(q, k, "b g r t d, b g s d -> b g r t s") / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(-3), -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)  # a row that may see nothing is 0/0
    return rearrange(einsum(weights, v, "b g r t s, b g s d -> b g r t d"), "b g r t d -> b (g r) t d")
