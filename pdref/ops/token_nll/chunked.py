"""The token loss a chunk of rows at a time: scores are computed, used and forgotten, and computed again backward.

What a chunk needs is two steps, and whoever has a better way to do them passes his own (see `triton`):

    forward:   h, W, y                 -> log Z and the target's score, [n] each
    gradient:  h, W, y, log Z, a, b    -> a p - b 1[v = y], [n, V], in the dtype of h
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

KEPT = 2**23
"""Scores held at a time, 32 MB of float32. A problem that is smaller as a whole keeps its scores for the backward."""


class Steps(NamedTuple):
    """How to do the two steps of a chunk, and how many scores a chunk may hold in each."""

    forward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    forward_scores: int
    gradient_scores: int


def token_nll_torch(hidden: Tensor, unembedding: Tensor, targets: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Nats and log Z, [N] each, zero but for `rows` [R] int64 (None: all); shapes as in the contract."""
    count = len(hidden) if rows is None else len(rows)
    if count * len(unembedding) > KEPT:
        return ChunkedNll.apply(hidden, unembedding, targets, rows, steps())
    scores = _scores(hidden if rows is None else hidden[rows], unembedding)  # [R, V]
    of_rows = targets if rows is None else targets[rows]
    nats = F.cross_entropy(scores, of_rows.clamp_min(0), reduction="none")
    if rows is not None:
        return nats.new_zeros(len(hidden)).index_put((rows,), nats), nats
    of_target = scores.gather(-1, targets.clamp_min(0)[:, None])[:, 0]
    return torch.where(targets < 0, 0.0, nats), nats + of_target


def steps() -> Steps:
    """The two steps by PyTorch."""
    return Steps(_forward, _gradient, KEPT, KEPT)


class ChunkedNll(torch.autograd.Function):
    """Forward and backward over chunks of rows; differentiable once."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, unembedding: Tensor, targets: Tensor, rows: Tensor | None, steps: Steps
    ) -> tuple[Tensor, Tensor]:
        nats, log_z = nll_in_chunks(hidden, unembedding, targets, rows, steps)
        ctx.save_for_backward(hidden, unembedding, targets, log_z)
        ctx.steps = steps
        return nats, log_z

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, of_nats: Tensor, of_log_z: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, unembedding, targets, log_z = ctx.saved_tensors
        d_unembedding = torch.zeros_like(unembedding, dtype=log_z.dtype)
        d_hidden = gradients_in_chunks(*ctx.saved_tensors, of_nats, of_log_z, d_unembedding, ctx.steps)
        return d_hidden, d_unembedding.to(unembedding.dtype), None, None, None


def nll_in_chunks(
    hidden: Tensor, unembedding: Tensor, targets: Tensor, rows: Tensor | None, steps: Steps
) -> tuple[Tensor, Tensor]:
    """Nats and log Z, [N] each, zero but for `rows`."""
    log_z, of_target = hidden.new_zeros(2, len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
    for chunk in _chunks(len(hidden) if rows is None else len(rows), len(unembedding), steps.forward_scores):
        here = chunk if rows is None else rows[chunk]
        log_z[here], of_target[here] = steps.forward(hidden[here], unembedding, targets[here])
    return torch.where(targets < 0, 0.0, log_z - of_target), log_z


def gradients_in_chunks(
    hidden: Tensor,
    unembedding: Tensor,
    targets: Tensor,
    log_z: Tensor,
    of_nats: Tensor,
    of_log_z: Tensor,
    d_unembedding: Tensor,
    steps: Steps,
) -> Tensor:
    """The gradient of `hidden` [N, D] for upstream gradients [N]; that of the unembedding is added to the one given."""
    b = torch.where(targets < 0, 0.0, of_nats)
    a = b + of_log_z
    # Products see weights of at most 1: a small upstream gradient must not vanish in half precision.
    scale = torch.maximum(a.abs(), b.abs())  # [N]
    live = scale.nonzero()[:, 0]
    if not len(live):
        return torch.zeros_like(hidden)
    largest = scale.max()
    everything = len(live) == len(hidden)
    d_hidden = torch.empty_like(hidden) if everything else torch.zeros_like(hidden)
    d_unembedding /= largest
    for chunk in _chunks(len(live), len(unembedding), steps.gradient_scores):
        rows = chunk if everything else live[chunk]
        h, s = hidden[rows], scale[rows, None]
        weights = a[rows] / s[:, 0], b[rows] / s[:, 0]
        gradient = steps.gradient(h, unembedding, targets[rows], log_z[rows], *weights)  # [n, V]
        d_hidden[rows] = (s * (gradient @ unembedding)).to(h.dtype)
        weighted = (s / largest * h).to(h.dtype)
        if h.dtype == d_unembedding.dtype:
            d_unembedding.addmm_(gradient.T, weighted)
        else:
            d_unembedding += gradient.T @ weighted
        del gradient  # before the next chunk's is made
    d_unembedding *= largest
    return d_hidden


def _chunks(rows: int, vocabulary: int, scores: int) -> list[slice]:
    size = max(1, scores // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _forward(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    scores = _scores(hidden, unembedding)  # [n, V]
    of_target = scores.gather(-1, targets.clamp_min(0)[:, None])[:, 0]
    largest = scores.amax(-1, keepdim=True)
    return scores.sub_(largest).exp_().sum(-1).log_() + largest[:, 0], of_target


def _gradient(hidden: Tensor, unembedding: Tensor, targets: Tensor, log_z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    gradient = _scores(hidden, unembedding).sub_(log_z[:, None]).exp_().mul_(a[:, None])  # a p
    gradient.scatter_add_(-1, targets.clamp_min(0)[:, None], -b[:, None])  # b is 0 where there is no target
    return gradient.to(hidden.dtype)


def _scores(hidden: Tensor, unembedding: Tensor) -> Tensor:
    scores = F.linear(hidden, unembedding)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
