"""The definition of the token loss, one step of the equation a line."""

from __future__ import annotations

from torch import Tensor


def token_nll_naive(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
    """log Z - score of the target; shapes as in the contract."""
    scores = hidden @ unembedding.T  # [N, V]
    log_partition = scores.logsumexp(-1)  # [N]
    return log_partition - scores.gather(-1, targets[:, None])[:, 0]
