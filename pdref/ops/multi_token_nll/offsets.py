"""The shift: which token each head predicts at each position, and the way back.

Head j looks k = first + j places ahead. The tail, positions whose target lies beyond the end, gets `IGNORE`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pdref.ops.token_nll import IGNORE


def ahead(targets: Tensor, n: int = 1, first: int = 1) -> Tensor:
    """`targets` [B, T] by place of the token -> [B, T, n] by place of the prediction: [b, t, j] = targets[b, t + k]."""
    beyond = F.pad(targets, (0, first + n), value=IGNORE)
    return beyond[:, first:].unfold(1, n, 1)[:, : targets.shape[1]]


def at_target(nats: Tensor, first: int = 1) -> Tensor:
    """Nats [B, T, n] by place of the prediction -> [B, T, n] by place of the token: [b, i, j] = nats[b, i - k, j].

    The tail rolls round to the first k tokens, which nobody predicts; it costs nothing, so they get zero.
    """
    return torch.stack([head.roll(k, dims=1) for k, head in enumerate(nats.unbind(-1), first)], -1)


def at_source(values: Tensor, k: int) -> Tensor:
    """`values` [B, T] by place of the token -> by place of the prediction k before it, zero in the tail."""
    return F.pad(values, (0, k))[:, k:]
