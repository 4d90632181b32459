"""The definition of the token loss, one step of the equation a line."""

from __future__ import annotations

import torch
from torch import Tensor


def token_nll_naive(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats and log Z, [N] each; shapes as in the contract. A negative target costs nothing."""
    scores = hidden @ unembedding.T  # [N, V]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    log_partition = scores.logsumexp(-1)  # [N]
    of_target = scores.gather(-1, targets.clamp_min(0)[:, None])[:, 0]
    return torch.where(targets < 0, 0.0, log_partition - of_target), log_partition
