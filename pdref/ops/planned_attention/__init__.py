"""Attention under a mask, the operation on which every method here runs.

    w[b, h, i, j] = softmax_j( q[b, h, i] . k[b, g(h), j] / sqrt(Dh) )  over the j that mask[b, 0, i, j] allows
    out[b, h, i]  = sum_j w[b, h, i, j] v[b, g(h), j]

g(h) = h // (H / G): consecutive query heads share a key head (grouped-query attention, arXiv 2305.13245).
A query that may see nothing gets zeros.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pdref.ops.planned_attention.naive import planned_attention_naive

Impl = Literal["naive", "torch", "auto"]


def planned_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, impl: Impl = "auto"
) -> Tensor:
    """Attend `q` [B, H, T, Dh] to `k`, `v` [B, G, S, Dh]; returns [B, H, T, Dh].

    `mask` is boolean, broadcastable to [B, 1, T, S], True where a query may look; None lets it look everywhere, or
    at its past if `causal`. Raises ValueError for shapes, dtypes or devices that do not fit and for an unknown `impl`.
    """
    _check(q, k, v, mask, causal, impl)
    if impl == "naive":
        return planned_attention_naive(q, k, v, mask, causal)
    return scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, impl: str) -> None:
    if impl not in ("naive", "torch", "auto"):
        raise ValueError(f"impl is 'naive', 'torch' or 'auto', not {impl!r}")
    if not q.dim() == k.dim() == 4 or k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)} are not [B, H, T, Dh], [B, G, S, Dh]"
        )
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k.shape[1]} key heads evenly")
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise ValueError(f"q, k, v differ: {q.dtype} {q.device}, {k.dtype} {k.device}, {v.dtype} {v.device}")
    if mask is None:
        return
    if causal or mask.dtype != torch.bool or mask.device != q.device:
        raise ValueError(
            f"mask is boolean, on {q.device}, and never together with causal; got {mask.dtype} {mask.device}"
        )
    wanted = (q.shape[0], 1, q.shape[2], k.shape[2])
    if mask.dim() < 2 or any(m not in (1, n) for m, n in zip(mask.shape[::-1], wanted[::-1], strict=False)):
        raise ValueError(f"mask {list(mask.shape)} does not broadcast to [B, 1, T, S] = {list(wanted)}")
