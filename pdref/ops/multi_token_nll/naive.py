"""The definition of the multi-token loss: the logits of all heads at once, one step of the equation a line."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_token_nll_naive(hidden: Tensor, unembedding: Tensor, tokens: Tensor, scored: Tensor, first: int) -> Tensor:
    """Nats [B, T, n]; shapes as in the contract."""
    scores = hidden @ unembedding.T  # [B, T, n, V]
    log_p = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(-1)
    tokens = tokens.masked_fill(~scored, 0)
    T, heads = tokens.shape[1], []
    for j in range(hidden.shape[2]):
        k = min(first + j, T)
        nats = -log_p[:, : T - k, j].gather(-1, tokens[:, k:, None])[..., 0]  # [B, T - k], of the tokens k..T-1
        heads.append(F.pad(nats, (k, 0)))  # the first k tokens have no source
    return torch.where(scored[..., None], torch.stack(heads, -1), 0.0)
