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

KEPT = 2**22
"""Scores held at a time, 16 MB of float32. A problem that is smaller as a whole keeps its scores for the backward."""


class Steps(NamedTuple):
    """How to do the two steps of a chunk, and how many scores a chunk may hold in each."""

    forward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    forward_scores: int
    gradient_scores: int


def token_nll_torch(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats and log Z, [N] each; shapes as in the contract."""
    if hidden.shape[0] * unembedding.shape[0] <= KEPT:
        scores = F.linear(hidden, unembedding)  # [N, V]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        of_target = targets.clamp_min(0)
        nats = F.cross_entropy(scores, of_target, reduction="none")
        return torch.where(targets < 0, 0.0, nats), nats + scores.gather(-1, of_target[:, None])[:, 0]
    return ChunkedNll.apply(hidden, unembedding, targets, Steps(_forward, _gradient, KEPT, KEPT))


class ChunkedNll(torch.autograd.Function):
    """Forward and backward over chunks of rows; differentiable once."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, unembedding: Tensor, targets: Tensor, steps: Steps
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        log_z, of_target = hidden.new_empty(2, len(hidden), dtype=wide)
        for rows in _chunks(len(hidden), len(unembedding), steps.forward_scores):
            log_z[rows], of_target[rows] = steps.forward(hidden[rows], unembedding, targets[rows])
        ctx.save_for_backward(hidden, unembedding, targets, log_z)
        ctx.steps = steps
        return torch.where(targets < 0, 0.0, log_z - of_target), log_z

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, of_nats: Tensor, of_log_z: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, unembedding, targets, log_z = ctx.saved_tensors
        b = torch.where(targets < 0, 0.0, of_nats)
        a = b + of_log_z
        # Products see weights of at most 1: a small upstream gradient must not vanish in half precision.
        scale = torch.maximum(a.abs(), b.abs())  # [N]
        live = scale.nonzero()[:, 0]
        largest = scale.max() if len(live) else scale.new_ones(())
        everything = len(live) == len(hidden)
        d_hidden = torch.empty_like(hidden) if everything else torch.zeros_like(hidden)
        d_unembedding = torch.zeros_like(unembedding, dtype=log_z.dtype)
        for chunk in _chunks(len(live), len(unembedding), ctx.steps.gradient_scores):
            rows = chunk if everything else live[chunk]
            h, s = hidden[rows], scale[rows, None]
            weights = a[rows] / s[:, 0], b[rows] / s[:, 0]
            gradient = ctx.steps.gradient(h, unembedding, targets[rows], log_z[rows], *weights)  # [n, V]
            d_hidden[rows] = (s * (gradient @ unembedding)).to(h.dtype)
            weighted = (s / largest * h).to(h.dtype)
            if h.dtype == d_unembedding.dtype:
                d_unembedding.addmm_(gradient.T, weighted)
            else:
                d_unembedding += gradient.T @ weighted
            del gradient  # before the next chunk's is made
        return d_hidden, d_unembedding.mul_(largest).to(unembedding.dtype), None, None


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
