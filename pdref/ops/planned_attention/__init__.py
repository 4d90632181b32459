"""Attention under a mask, the operation on which every method here runs.

    w[b, h, i, j] = softmax_j( q[b, h, i] . k[b, g(h), j] / sqrt(Dh) )  over the j that mask[b, 0, i, j] allows
    out[b, h, i]  = sum_j w[b, h, i, j] v[b, g(h), j]

g(h) = h // (H / G): consecutive query heads share a key head (grouped-query attention, arXiv 2305.13245).
A query that may see nothing gets zeros.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pdref.ops.impl import Impl, choose
from pdref.ops.planned_attention.naive import planned_attention_naive
from pdref.ops.planned_attention.tiled import pays, planned_attention_tiled
from pdref.text.mask import Sight

WIDEST = 128
"""The widest head that the kernels take. "auto" gives wider ones to PyTorch, and widths that are no multiple of 16,
which the kernels take too but with registers spilled."""


def planned_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | Sight | None = None,
    causal: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """Attend `q` [B, H, T, Dh] to `k`, `v` [B, G, S, Dh]; returns [B, H, T, Dh].

    `mask` says where a query may look: a `Sight`, or booleans that broadcast to [B, 1, T, S]; None lets it look
    everywhere, or at its past if `causal`. The kernels take no booleans: with them "auto" is PyTorch's attention.
    Raises ValueError for shapes, dtypes or devices that do not fit, for an unknown `impl`, and for "triton" with
    booleans or with heads wider than `WIDEST`.
    """
    _check(q, k, v, mask, causal)
    chosen = choose(impl, q)
    if impl == "auto" and chosen == "triton" and (isinstance(mask, Tensor) or q.shape[-1] > WIDEST or q.shape[-1] % 16):
        chosen = "torch"
    if chosen == "triton":
        from pdref.ops.planned_attention.triton import planned_attention_triton

        return planned_attention_triton(q, k, v, _sight(q, k, mask, causal))
    if chosen == "torch" and isinstance(mask, Sight) and pays(q, k):
        return planned_attention_tiled(q, k, v, mask)
    dense = mask.dense if isinstance(mask, Sight) else mask
    if chosen == "naive":
        return planned_attention_naive(q, k, v, dense, causal)
    return scaled_dot_product_attention(q, k, v, dense, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def _sight(q: Tensor, k: Tensor, mask: Tensor | Sight | None, causal: bool) -> Sight:
    if isinstance(mask, Tensor):
        raise ValueError("impl='triton' asks the rule itself: pass a Sight, not a mask of booleans, or take 'torch'")
    if q.shape[-1] > WIDEST:
        raise ValueError(f"impl='triton' takes heads up to {WIDEST} wide, not {q.shape[-1]}; take 'torch'")
    return mask or _plain_sight(q.shape[2], k.shape[2], causal, q.device)


@lru_cache(maxsize=16)
def _plain_sight(T: int, S: int, causal: bool, device: torch.device) -> Sight:
    """Every query sees every key, or its past: what the layers of a forward, and the next step, have in common."""
    with torch.inference_mode(False):
        at = torch.arange(max(T, S), device=device)[None]
        return Sight.past(at[:, :T], at[:, :S]) if causal else Sight.past(at[:, :T], torch.zeros_like(at[:, :S]))


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Sight | None, causal: bool) -> None:
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
    found = mask.query if isinstance(mask, Sight) else mask
    if causal or found.device != q.device or found.dtype != (torch.int32 if isinstance(mask, Sight) else torch.bool):
        raise ValueError(
            f"mask is boolean, on {q.device}, and never together with causal; got {found.dtype} {found.device}"
        )
    wanted, shape = (q.shape[0], 1, q.shape[2], k.shape[2]), mask.shape
    fits = len(shape) >= 2 and all(m in (1, n) for m, n in zip(shape[::-1], wanted[::-1], strict=False))
    if isinstance(mask, Sight):
        fits = shape[0] in (1, q.shape[0]) and shape[1:] == (q.shape[2], k.shape[2])
    if not fits:
        raise ValueError(f"mask {list(shape)} does not broadcast to [B, 1, T, S] = {list(wanted)}")
