"""Multi-token prediction (Gloeckle et al. 2024, arXiv 2404.19737): n heads read the offsets 1..n from one position.

    L = - sum_i sum_{k=1..n} log p_k(x_i | h[i-k, k])        p_k = softmax(unembedding h[., k])

Head 1 predicts the next token: n = 1 is the ordinary autoregressive loss. `offsets` is the one place that shifts and
that knows the tail, the last positions whose targets lie beyond the end. `impl="torch"` and `impl="triton"` are one
call of `token_nll` over the rows of all heads that count, with the latter's kernels; the paper's way of holding the
logits of one head at a time is `sequential`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdref.ops.impl import Impl, choose
from pdref.ops.multi_token_nll.naive import multi_token_nll_naive
from pdref.ops.multi_token_nll.offsets import ahead, at_target
from pdref.ops.token_nll import IGNORE, require_fit, token_nll


def multi_token_nll(
    hidden: Tensor, unembedding: Tensor, tokens: Tensor, scored: Tensor, impl: Impl = "auto", first: int = 1
) -> Tensor:
    """Nats [B, T, n] of every scored token under each head, by the place of the token that is predicted.

    `hidden` [B, T, n, D] is what the heads make of each position, `unembedding` [V, D] theirs in common, `tokens`
    [B, T] int64, `scored` [B, T] bool. nats[b, i, j] = -log p(tokens[b, i] | hidden[b, i - k, j]) with k = first + j,
    and zero where i < k or token i is not scored; they are float32 for half-precision inputs.

    Whether the place i - k is real is not asked: in batches that are padded on the right, what stands before a real
    token is real. What is padding must not be scored. Raises ValueError on misfits.
    """
    require_fit(hidden, unembedding, "B, T, n, D", tokens, scored)
    if tokens.shape != hidden.shape[:2] or tokens.dtype != torch.int64:
        raise ValueError(f"tokens are int64 {list(hidden.shape[:2])}, not {tokens.dtype} {list(tokens.shape)}")
    if scored.shape != tokens.shape or scored.dtype != torch.bool:
        raise ValueError(f"scored is bool {list(tokens.shape)}, not {scored.dtype} {list(scored.shape)}")
    if first < 1:
        raise ValueError(f"heads look ahead: the first offset is at least 1, not {first}")
    chosen = choose(impl, hidden)
    if chosen == "naive":
        return multi_token_nll_naive(hidden, unembedding, tokens, scored, first)
    targets = ahead(tokens.masked_fill(~scored, IGNORE), hidden.shape[2], first)
    return at_target(token_nll(hidden, unembedding, targets, chosen), first)
