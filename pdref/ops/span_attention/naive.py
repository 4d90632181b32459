"""The definition of attention while decoding, a span at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from pdref.ops.planned_attention.naive import planned_attention_naive


def span_attention_naive(q: Tensor, own: Tensor, past: Tensor, owner: Tensor, slots: Tensor, length: Tensor) -> Tensor:
    """Softmax over the owner's first `slots` keys and the span's own `length`; shapes as in the contract."""
    out = []
    for span, b, p, n in zip(range(len(q)), owner.tolist(), slots.tolist(), length.tolist(), strict=True):
        entries = torch.cat([past[b, :, :p], own[span, :, :n]], 1)  # [2G, p + n, Dh]
        k, v = entries[None].chunk(2, 1)
        out.append(planned_attention_naive(q[span, None], k, v, None, False))
    return torch.cat(out) if out else torch.zeros_like(q)
