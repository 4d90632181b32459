"""Negative log-likelihood of targets from hidden states.

nll[n] = log sum_v exp(h[n] . W[v]) - h[n] . W[y[n]]
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pdref.ops.token_nll.naive import token_nll_naive

Impl = Literal["naive", "torch", "auto"]


def token_nll(hidden: Tensor, unembedding: Tensor, targets: Tensor, impl: Impl = "auto") -> Tensor:
    """`hidden` [N, D], `unembedding` [V, D], `targets` [N] int64 -> nats [N]. Raises ValueError on misfits."""
    if hidden.dim() != 2 or unembedding.dim() != 2 or hidden.shape[1] != unembedding.shape[1]:
        raise ValueError(
            f"hidden {list(hidden.shape)} and unembedding {list(unembedding.shape)} are not [N, D], [V, D]"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets are int64 [N], not {targets.dtype} {list(targets.shape)}")
    if impl not in ("naive", "torch", "auto"):
        raise ValueError(f"impl is 'naive', 'torch' or 'auto', not {impl!r}")
    if impl == "naive":
        return token_nll_naive(hidden, unembedding, targets)
    return F.cross_entropy(F.linear(hidden, unembedding), targets, reduction="none")
