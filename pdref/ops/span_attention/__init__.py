"""Attention while decoding: many requests' unfinished spans, each after its own request's past.

    keys of span k  =  past[owner_k, :past_k]  followed by  own[k, :length_k]
    out[k, h, i]    =  sum_j softmax_j( q[k, h, i] . key_j / sqrt(Dh) ) value_j

Spans of one request share its past in the cache; the kernel reads it where it lies, PyTorch's attention wants a copy
for each span. Every query of a span sees all of these keys: a span is bidirectional. A token after its past is a span
of length one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pdref.ops.impl import Impl, choose
from pdref.ops.planned_attention import WIDEST
from pdref.ops.span_attention.naive import span_attention_naive


@dataclass(frozen=True, eq=False)
class Reach:
    """What K spans, padded to `width` L, may read: whose past, how much of it, and how many tokens of their own.

    `owner`, `past` and `length` are int64 [K].
    """

    owner: Tensor
    past: Tensor
    length: Tensor
    width: int

    def select(self, rows: Tensor) -> Reach:
        """Only some of the spans."""
        return Reach(self.owner[rows], self.past[rows], self.length[rows], self.width)

    @cached_property
    def longest(self) -> int:
        """The longest past, P."""
        return int(self.past.max())

    @cached_property
    def mask(self) -> Tensor | None:
        """Which of P slots and L own tokens each span sees, [K, 1, 1, P + L] bool; None for all of them."""
        at = torch.arange(max(self.longest, self.width), device=self.past.device)
        parts = at[: self.longest] < self.past[:, None], at[: self.width] < self.length[:, None]
        mask = torch.cat(parts, 1)[:, None, None]
        return None if mask.all() else mask


def span_attention(q: Tensor, own: Tensor, past: Tensor, reach: Reach, impl: Impl = "auto") -> Tensor:
    """Attend `q` [K, H, L, Dh] to `past` [B, 2G, C, Dh] and `own` [K, 2G, L, Dh]; returns [K, H, L, Dh].

    Both hold G key heads, then G value heads, as the cache does. Queries beyond a span's length get what a query
    there would see. The kernel has no backward: where a gradient is wanted, "auto" is PyTorch's attention. Raises
    ValueError for shapes, dtypes or devices that do not fit, for an unknown `impl`, and for "triton" where a gradient
    is wanted or heads are wider than `WIDEST`.
    """
    _check(q, own, past, reach)
    chosen = choose(impl, q)
    if chosen == "naive":
        return span_attention_naive(q, own, past, reach.owner, reach.past, reach.length)
    wanted = torch.is_grad_enabled() and (q.requires_grad or own.requires_grad or past.requires_grad)
    if impl == "triton" and wanted:
        raise ValueError("impl='triton' reads a cache without gradients: decode under torch.no_grad()")
    if impl == "triton" and q.shape[-1] > WIDEST:
        raise ValueError(f"impl='triton' takes heads up to {WIDEST} wide, not {q.shape[-1]}; take 'torch'")
    if chosen == "triton" and not wanted and q.shape[-1] <= WIDEST:
        from pdref.ops.span_attention.triton import span_attention_triton

        return span_attention_triton(q, own, past, reach.owner, reach.past, reach.length)
    copies = past[:, :, : reach.longest].index_select(0, reach.owner)  # [K, 2G, P, Dh]
    k, v = torch.cat([copies, own], 2).chunk(2, 1)
    return scaled_dot_product_attention(q, k, v, reach.mask, enable_gqa=q.shape[1] != k.shape[1])


def _check(q: Tensor, own: Tensor, past: Tensor, reach: Reach) -> None:
    K, H, L, D = q.shape if q.dim() == 4 else (0, 0, 0, 0)
    fits = own.dim() == past.dim() == 4 and own.shape[1] == past.shape[1] and own.shape[1] % 2 == 0
    if not (D and fits and own.shape == (K, own.shape[1], L, D) and past.shape[3] == D):
        raise ValueError(
            f"q {list(q.shape)}, own {list(own.shape)}, past {list(past.shape)} are not "
            "[K, H, L, Dh], [K, 2G, L, Dh], [B, 2G, C, Dh]"
        )
    if H % (own.shape[1] // 2):
        raise ValueError(f"{H} query heads cannot share {own.shape[1] // 2} key heads evenly")
    if not q.dtype == own.dtype == past.dtype or not q.device == own.device == past.device:
        raise ValueError(
            f"q, own, past differ: {q.dtype} {q.device}, {own.dtype} {own.device}, {past.dtype} {past.device}"
        )
    if len(reach.owner) != K or reach.width != L:
        raise ValueError(f"the reach is of {len(reach.owner)} spans of {reach.width} tokens, q of {K} of {L}")
