"""The definition of the Planned Diffusion loss: all logits of both streams, one step of the formula a line."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pdref.text.layout import Layout


def planned_nll_naive(
    hidden: Tensor, unembedding: Tensor, layout: Layout, masked: Tensor, times: Tensor
) -> tuple[Tensor, Tensor]:
    """Nats (clean, diffusion), [B, T] each; shapes as in the contract."""
    copy, index = layout.span_copy()  # [B, U]
    scores = hidden @ unembedding.T  # [B, T + U, V]
    log_p = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(-1)
    clean, noised = log_p.split([layout.shape[1], copy.shape[1]], 1)

    next_token = -clean[:, :-1].gather(-1, layout.token[:, 1:, None])[..., 0]  # [B, T-1]: y_i from y_<i
    own_token = -noised.gather(-1, copy.token[..., None])[..., 0] * copy.real  # [B, U]: y_i from M_i(Y_t)
    own_token = torch.zeros_like(clean[..., 0]).scatter_add(1, index, own_token)  # [B, T]

    times = times.masked_fill(~masked, 1.0)
    return F.pad(next_token, (1, 0)) * layout.response, own_token * masked / times
