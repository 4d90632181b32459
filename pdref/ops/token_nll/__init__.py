"""Negative log-likelihood of targets from hidden states, without a score for every token and word in memory.

    log Z[n] = log sum_v exp(h[n] . W[v])        nll[n] = log Z[n] - h[n] . W[y[n]]

For an upstream gradient g[n] of nll and l[n] of log Z, with p = softmax(h W^T):

    d scores = (g + l) p - g 1[v = y]            d h = d scores W            d W = d scores^T h

so any weighting of tokens (1/t, a head's weight, a plan's posterior) is just an upstream gradient.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from pdref.ops.impl import Impl, choose
from pdref.ops.token_nll.chunked import token_nll_torch
from pdref.ops.token_nll.naive import token_nll_naive

IGNORE = -1


@overload
def token_nll(
    hidden: Tensor, unembedding: Tensor, targets: Tensor, impl: Impl = ..., log_partition: Literal[False] = ...
) -> Tensor: ...
@overload
def token_nll(
    hidden: Tensor, unembedding: Tensor, targets: Tensor, impl: Impl = ..., *, log_partition: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def token_nll(
    hidden: Tensor, unembedding: Tensor, targets: Tensor, impl: Impl = "auto", log_partition: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """`hidden` [N, D], `unembedding` [V, D], `targets` [N] int64 -> nats [N], and log Z [N] if `log_partition`.

    Nats are float32 for half-precision inputs. A target of `IGNORE` costs 0 nats and gives no gradient. Rows whose
    upstream gradient is zero cost nothing in the backward (on a GPU, finding them waits for the device once).
    Raises ValueError on misfits.
    """
    if hidden.dim() != 2 or unembedding.dim() != 2 or hidden.shape[1] != unembedding.shape[1]:
        raise ValueError(
            f"hidden {list(hidden.shape)} and unembedding {list(unembedding.shape)} are not [N, D], [V, D]"
        )
    if hidden.dtype != unembedding.dtype or not hidden.device == unembedding.device == targets.device:
        raise ValueError(
            f"hidden is {hidden.dtype} on {hidden.device}, unembedding {unembedding.dtype} on {unembedding.device}, "
            f"targets on {targets.device}: one dtype and one device are needed"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets are int64 [N], not {targets.dtype} {list(targets.shape)}")
    chosen = choose(impl, hidden)
    if chosen == "triton":
        from pdref.ops.token_nll.triton import token_nll_triton as run
    else:
        run = token_nll_naive if chosen == "naive" else token_nll_torch
    nats, log_z = run(hidden, unembedding, targets)
    return (nats, log_z) if log_partition else nats
