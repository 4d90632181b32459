"""The latent-plan factorisation, exactly: the likelihood of a text as a sum over K plans, and which plan it came from.

    log p(x)     = logsumexp_z [ log p(z) + sum_t log p(x_t | x_<t, z) ]
    log p(z | x) = log p(z) + sum_t log p(x_t | x_<t, z) - log p(x)

Its gradient is the posterior-weighted one: d log p(x) = sum_z p(z | x) d log p(x, z). So each token's upstream
gradient in `token_nll` is its plan's posterior, and a plan that the text rules out costs nothing backward.
`impl="torch"` and `impl="triton"` are one call of `token_nll` over all plans, with the latter's kernels; the sums over
t and z that follow read B K T numbers, against the D B K T of its input.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pdref.ops.impl import Impl, choose
from pdref.ops.plan_marginal.naive import plan_marginal_naive
from pdref.ops.token_nll import IGNORE, require_fit, token_nll


class Marginal(NamedTuple):
    """What a text is worth, summed over its plans."""

    log_p: Tensor  # [B] log p(x)
    log_posterior: Tensor  # [B, K] log p(z | x)


def plan_marginal(
    hidden: Tensor, unembedding: Tensor, targets: Tensor, log_prior: Tensor, impl: Impl = "auto"
) -> Marginal:
    """`hidden` [B, K, T, D], `unembedding` [V, D], `targets` [B, T] int64, `log_prior` [B, K] -> `Marginal`.

    hidden[b, z, t] predicts targets[b, t] under plan z; a target of `IGNORE` is padding and counts for no plan. Results
    are float32 for half-precision inputs. A plan of log prior -inf is not computed, has the log posterior -inf and no
    gradient. If every plan of a text is such, so is the text: log p(x) and its posteriors are -inf, without gradient.
    Raises ValueError on misfits.
    """
    require_fit(hidden, unembedding, "B, K, T, D", targets, log_prior)
    B, K, T, _ = hidden.shape
    if not K:
        raise ValueError(f"hidden {list(hidden.shape)} has no plan")
    if targets.shape != (B, T) or targets.dtype != torch.int64:
        raise ValueError(f"targets are int64 {[B, T]}, not {targets.dtype} {list(targets.shape)}")
    if log_prior.shape != (B, K) or not log_prior.is_floating_point():
        raise ValueError(f"log_prior is floating-point {[B, K]}, not {log_prior.dtype} {list(log_prior.shape)}")
    chosen = choose(impl, hidden)
    if chosen == "naive":
        return Marginal(*plan_marginal_naive(hidden, unembedding, targets, log_prior))
    possible = log_prior > -torch.inf  # [B, K]
    of_plans = torch.where(possible[..., None], targets[:, None], IGNORE)  # [B, K, T]
    nats = token_nll(hidden, unembedding, of_plans, chosen)
    # `where` also stops the gradients of impossible plans: among themselves they have -inf less -inf, which is NaN.
    joint = torch.where(possible, log_prior - nats.sum(-1), -torch.inf)  # [B, K]: log p(x, z)
    log_p = joint.logsumexp(1)
    return Marginal(log_p, torch.where(possible, joint - log_p[:, None], -torch.inf))
