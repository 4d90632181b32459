"""The definition of the marginal over plans: the logits of all plans at once, one step of the equation a line."""

from __future__ import annotations

import torch
from torch import Tensor


def plan_marginal_naive(
    hidden: Tensor, unembedding: Tensor, targets: Tensor, log_prior: Tensor
) -> tuple[Tensor, Tensor]:
    """log p(x) [B] and log p(z | x) [B, K]; shapes as in the contract."""
    scores = hidden @ unembedding.T  # [B, K, T, V]
    log_p = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(-1)
    at = targets.clamp_min(0)[:, None, :, None].expand(*hidden.shape[:3], 1)  # every plan is asked for the same text
    of_tokens = log_p.gather(-1, at)[..., 0] * (targets >= 0)[:, None]  # [B, K, T]

    possible = log_prior > -torch.inf
    joint = (log_prior + of_tokens.sum(-1)).masked_fill(~possible, -torch.inf)  # [B, K]: log p(x, z)
    log_p_x = joint.logsumexp(1)
    return log_p_x, (joint - log_p_x[:, None]).masked_fill(~possible, -torch.inf)  # Bayes' rule
