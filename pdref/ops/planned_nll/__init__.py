"""The two terms of the Planned Diffusion loss (arXiv 2510.18087), from the hidden states of a two-stream forward.

    clean[i]     = -log p(y_i | y_<i)                the token before i in the clean stream predicts it
    diffusion[i] = -(1/t_i) log p(y_i | M_i(Y_t))    the masked token i in the noised copy predicts itself

Only tokens of the response have a clean term, and only masked ones a diffusion term. `impl="torch"` and
`impl="triton"` are one call of `token_nll` over the rows of both streams that carry loss, with the latter's kernels;
all others, of the prompt, the padding and what is not masked, are skipped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdref.ops.impl import Impl, choose
from pdref.ops.multi_token_nll.offsets import ahead, at_target
from pdref.ops.planned_nll.naive import planned_nll_naive
from pdref.ops.token_nll import IGNORE, require_fit, token_nll
from pdref.text.layout import NO_SPAN, Layout


def planned_nll(
    hidden: Tensor, unembedding: Tensor, layout: Layout, masked: Tensor, times: Tensor, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """Nats (clean, diffusion), [B, T] each, of documents in a `layout` [B, T], token by token.

    `hidden` [B, T + U, D] belongs to the documents followed by `layout.span_copy()` with <mask> where `masked` [B, T]
    is True; `times` [B, T] are the noise levels t, of which those of masked tokens are read. Nats are zero where there
    is no term, and float32 for half-precision inputs. Raises ValueError on misfits and for masks outside spans.
    """
    copy, index = layout.span_copy()  # [B, U]
    _check(hidden, unembedding, layout, masked, times, copy.shape[1])
    chosen = choose(impl, hidden)
    if chosen == "naive":
        return planned_nll_naive(hidden, unembedding, layout, masked, times)
    following = ahead(layout.token.masked_fill(~layout.response, IGNORE))[..., 0]  # [B, T]
    own = copy.token.masked_fill(~(masked.gather(1, index) & copy.real), IGNORE)  # [B, U]
    nats = token_nll(hidden, unembedding, torch.cat([following, own], 1), chosen)  # [B, T + U]
    of_clean, of_copy = nats.split([layout.shape[1], copy.shape[1]], 1)
    of_masked = nats.new_zeros(layout.shape).scatter_add(1, index, of_copy)  # fillers of the copy add zero
    return at_target(of_clean[..., None])[..., 0], of_masked / times.masked_fill(~masked, 1.0)


def _check(hidden: Tensor, unembedding: Tensor, layout: Layout, masked: Tensor, times: Tensor, copied: int) -> None:
    require_fit(hidden, unembedding, "B, T + U, D", layout.token, masked, times)
    B, T = layout.shape
    if hidden.shape[:2] != (B, T + copied):
        raise ValueError(
            f"hidden {list(hidden.shape)} is not [B, T + U, D] of a layout [{B}, {T}] whose spans hold U = {copied}"
        )
    if masked.shape != layout.shape or masked.dtype != torch.bool:
        raise ValueError(f"masked is bool {[B, T]}, not {masked.dtype} {list(masked.shape)}")
    if times.shape != layout.shape or not times.is_floating_point():
        raise ValueError(f"times are floating-point {[B, T]}, not {times.dtype} {list(times.shape)}")
    if (masked & (layout.span == NO_SPAN)).any():
        raise ValueError("masked marks tokens outside spans, which have no noised copy")
