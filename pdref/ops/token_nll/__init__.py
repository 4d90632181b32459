"""Negative log-likelihood of targets from hidden states, without a score for every token and word in memory.

    log Z[n] = log sum_v exp(h[n] . W[v])        nll[n] = log Z[n] - h[n] . W[y[n]]

For an upstream gradient g[n] of nll and l[n] of log Z, with p = softmax(h W^T):

    d scores = (g + l) p - g 1[v = y]            d h = d scores W            d W = d scores^T h

so any weighting of tokens (1/t, a head's weight, a plan's posterior) is just an upstream gradient. However many
heads, streams or plans a loss has, it is one call: one pass over the unembedding, and one gradient of it.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from pdref.ops.impl import Impl, choose
from pdref.ops.token_nll import chunked
from pdref.ops.token_nll.chunked import Steps, gradients_in_chunks, nll_in_chunks, token_nll_torch
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
    """`hidden` [..., D], `unembedding` [V, D], `targets` [...] int64 -> nats [...], and log Z [...] if `log_partition`.

    Nats are float32 for half-precision inputs. A target of `IGNORE` costs 0 nats and gives no gradient; its row is
    not computed, unless log Z is asked for. Rows whose upstream gradient is zero cost nothing in the backward. (On a
    GPU, finding either kind of row waits for the device once.) Raises ValueError on misfits.
    """
    chosen = _check(hidden, unembedding, targets, impl)
    flat, of_rows = hidden.flatten(0, -2), targets.flatten()
    if chosen == "naive":
        nats, log_z = token_nll_naive(flat, unembedding, of_rows)
    else:
        rows = None if log_partition else _rows(of_rows)
        if chosen == "triton":
            from pdref.ops.token_nll.triton import token_nll_triton as run
        else:
            run = token_nll_torch
        nats, log_z = run(flat, unembedding, of_rows, rows)
    return (nats.view(targets.shape), log_z.view(targets.shape)) if log_partition else nats.view(targets.shape)


def token_nll_backward(
    hidden: Tensor, unembedding: Tensor, targets: Tensor, weights: Tensor, d_unembedding: Tensor, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """Nats [...] and d `hidden` [..., D] of (weights * nats).sum(), forward and backward at once; no graph.

    `weights` [...] are known beforehand. The gradient of the unembedding is added to `d_unembedding` [V, D], float32
    or wider, so that several calls share one. Raises ValueError on misfits.
    """
    chosen = _check(hidden, unembedding, targets, impl)
    if weights.shape != targets.shape or d_unembedding.shape != unembedding.shape:
        raise ValueError(
            f"weights {list(weights.shape)} and d_unembedding {list(d_unembedding.shape)} are not "
            f"{list(targets.shape)} and {list(unembedding.shape)}"
        )
    flat, of_rows = hidden.detach().flatten(0, -2), targets.flatten()
    if chosen == "naive":
        leaves = flat.requires_grad_(), unembedding.detach().requires_grad_()
        with torch.enable_grad():
            nats, _ = token_nll_naive(*leaves, of_rows)
        d_hidden, found = torch.autograd.grad(nats, leaves, weights.flatten().to(nats))
        d_unembedding += found
        return nats.detach().view(targets.shape), d_hidden.view(hidden.shape)
    with torch.no_grad():
        steps = _steps(chosen)
        nats, log_z = nll_in_chunks(flat, unembedding, of_rows, _rows(of_rows), steps)
        upstream = weights.flatten().to(log_z), torch.zeros_like(log_z)
        d_hidden = gradients_in_chunks(flat, unembedding, of_rows, log_z, *upstream, d_unembedding, steps)
    return nats.view(targets.shape), d_hidden.view(hidden.shape)


def require_fit(hidden: Tensor, unembedding: Tensor, dims: str, *beside: Tensor) -> None:
    """Raises ValueError unless `hidden` has the dimensions `dims`, such as "B, T, D", and `unembedding` [V, D] reads
    it: one width, one dtype and, with what stands `beside` them, one device."""
    fits = dims.startswith("...") or hidden.dim() == len(dims.split(","))
    if not fits or not hidden.dim() or unembedding.dim() != 2 or hidden.shape[-1] != unembedding.shape[-1]:
        raise ValueError(
            f"hidden {list(hidden.shape)} and unembedding {list(unembedding.shape)} are not [{dims}], [V, D]"
        )
    if hidden.dtype != unembedding.dtype:
        raise ValueError(f"hidden is {hidden.dtype}, unembedding {unembedding.dtype}: one dtype is needed")
    devices = [str(x.device) for x in (hidden, unembedding, *beside)]
    if len(set(devices)) > 1:
        raise ValueError(f"one device is needed, not {', '.join(devices)}")


def _check(hidden: Tensor, unembedding: Tensor, targets: Tensor, impl: Impl) -> str:
    require_fit(hidden, unembedding, "..., D", targets)
    if targets.shape != hidden.shape[:-1] or targets.dtype != torch.int64:
        raise ValueError(f"targets are int64 {list(hidden.shape[:-1])}, not {targets.dtype} {list(targets.shape)}")
    return choose(impl, hidden)


def _rows(targets: Tensor) -> Tensor | None:
    """The rows that have a target; None for all."""
    rows = (targets >= 0).nonzero()[:, 0]
    return None if len(rows) == len(targets) else rows


def _steps(chosen: str) -> Steps:
    if chosen == "triton":
        from pdref.ops.token_nll.triton import steps

        return steps()
    return chunked.steps()
