"""Multi-token prediction (Gloeckle et al. 2024, arXiv 2404.19737): every position predicts the next n tokens.

    L = - 1/|Y| sum_{i in Y} sum_{k=1..n} w_k log p_k(x_i | x_{<= i-k})          w_1 = 1

The model is a `MultiToken`; drafting with its heads is in `drafting`. Offsets that run past the end of a document, or
into the padding of a batch, cost nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdref.methods.autoregressive import per_document_mean
from pdref.model.heads import MultiToken
from pdref.ops.impl import Impl
from pdref.ops.multi_token_nll import multi_token_nll
from pdref.ops.multi_token_nll.sequential import sequential_backward
from pdref.text.layout import Layout


def document_nll(model: MultiToken, layout: Layout, impl: Impl = "auto") -> Tensor:
    """Nats [B, T, n] of every response token of clean documents under each head, by the place of the token."""
    hidden = model.ahead(layout.token, layout.position, impl=impl)
    return multi_token_nll(hidden, model.unembed.weight, layout.token, layout.response, impl)


def further_nll(model: MultiToken, layout: Layout, impl: Impl = "auto") -> Tensor:
    """The same of heads 2..n alone, [B, T, n - 1]."""
    z = model.trunk(layout.token, layout.position, impl=impl)
    heads = model.further(z, layout.position, lambda k: layout.token.roll(-k, dims=1), impl=impl)
    hidden = torch.stack([*heads], 2)
    return multi_token_nll(hidden, model.unembed.weight, layout.token, layout.response, impl, first=2)


def objective(model: MultiToken, layout: Layout, further: float = 1.0, impl: Impl = "auto") -> Tensor:
    """The loss L with w_k = `further` for k > 1; a scalar."""
    nats = document_nll(model, layout, impl)
    return per_document_mean(nats[..., 0] + further * nats[..., 1:].sum(-1), layout).mean()


def backward(model: MultiToken, layout: Layout, further: float = 1.0, impl: Impl = "auto") -> Tensor:
    """`objective(...).backward()` head by head, holding one head's activations at a time; returns the nats, detached.

    For heads that read the trunk alone. Raises ValueError for others.
    """
    heads = model.apart(layout.position, impl=impl)
    z = model.trunk(layout.token, layout.position, impl=impl)
    weights = z.new_tensor([1.0] + [further] * (model.n - 1)) / layout.response.sum(1)[:, None, None]  # [B, 1, n]
    return sequential_backward(
        z, heads, model.unembed.weight, layout.token, layout.response, weights / len(weights), impl
    )


def per_offset(nats: Tensor, layout: Layout, first: int = 1) -> Tensor:
    """Mean nats per predicted token of each head, [n], from nats [B, T, n] whose heads start at offset `first`."""
    T, n = nats.shape[1:]
    reached = torch.arange(T, device=nats.device)[:, None] >= torch.arange(first, first + n, device=nats.device)
    counted = layout.response[..., None] & reached  # [B, T, n]
    return nats.detach().sum((0, 1)) / counted.sum((0, 1))
