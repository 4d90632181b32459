"""The paper's order of work (Gloeckle et al. 2024, figure 2): the trunk once, then head by head forward and backward.

A joint forward holds what every head keeps for its backward, n times as much as one head; here each head's graph is
gone before the next begins, and what they all want of the trunk is summed at its output. The paper saves the logits
so; `multi_token_nll` never holds them all in any case, and what is left to save are the activations of the heads.

    for each head:  d trunk += backward(weights . nats of the head)
    once:           backward through the trunk
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pdref.ops.impl import Impl
from pdref.ops.multi_token_nll.offsets import ahead, at_source, at_target
from pdref.ops.token_nll import IGNORE, token_nll_backward


def sequential_backward(
    trunk: Tensor,
    heads: Sequence[Callable[[Tensor], Tensor]],
    unembedding: Tensor,
    tokens: Tensor,
    scored: Tensor,
    weights: Tensor,
    impl: Impl = "auto",
) -> Tensor:
    """Leaves the gradients of `(weights * nats).sum().backward()` and returns the nats [B, T, n], detached.

    `trunk` [B, T, D] is the trunk's output with its graph, `heads` map [B, T, D] to [B, T, D], head k reading offset k;
    `weights` broadcast to [B, T, n]; the rest is as in `multi_token_nll`. Gradients are added to `.grad`, as
    `backward` does; all heads add to one gradient of the unembedding. Raises ValueError on misfits.
    """
    shape = (*tokens.shape, len(heads))
    if weights.dim() > 3 or any(w not in (1, n) for w, n in zip(weights.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(f"weights {list(weights.shape)} do not broadcast to [B, T, n] = {list(shape)}")
    weights = weights.expand(shape)
    output = trunk.detach().requires_grad_(trunk.requires_grad)
    d_unembedding = _gradient_of(unembedding)
    nats = []
    for k, head in enumerate(heads, 1):
        hidden = head(output)  # [B, T, D]
        targets = ahead(tokens.masked_fill(~scored, IGNORE), first=k)[..., 0]  # [B, T]
        weight = at_source(weights[..., k - 1], k)
        of_head, d_hidden = token_nll_backward(hidden, unembedding, targets, weight, d_unembedding, impl)
        if hidden.requires_grad:
            hidden.backward(d_hidden)
        nats.append(at_target(of_head[..., None], k))
        del hidden, d_hidden  # before the next head's are made
    if output.grad is not None:
        trunk.backward(output.grad)
    if unembedding.requires_grad and unembedding.grad is not d_unembedding:
        unembedding.backward(d_unembedding.to(unembedding.dtype))
    return torch.cat(nats, -1)


def _gradient_of(unembedding: Tensor) -> Tensor:
    """Where to add: a leaf's own `.grad`, made if need be, so that no second one of its size exists."""
    wide = torch.promote_types(unembedding.dtype, torch.float32)
    if unembedding.requires_grad and unembedding.is_leaf and unembedding.dtype == wide:
        if unembedding.grad is None:
            unembedding.grad = torch.zeros_like(unembedding)
        return unembedding.grad
    return torch.zeros_like(unembedding, dtype=wide)
