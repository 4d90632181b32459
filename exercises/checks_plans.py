"""What the answers to `plans_and_coherence.ipynb` must do, checked by example.

Every check takes your function; where the library has that very function, the check takes the library's without one.
Here is exercise 1, on sums over plans, with what `checks_coherence` and `checks_sections` hold of the others. The right
answers are computed a second time in another form, and so are the well-known wrong ones: a check that fails says which
of them yours agrees with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from checks_coherence import check_planned as check_planned
from checks_coherence import check_relay as check_relay
from checks_coherence import check_violations as check_violations
from checks_sections import check_fill as check_fill
from checks_sums import Array, array, logsumexp, same, teach
from torch import Tensor

from pdref.ops.plan_marginal import plan_marginal
from pdref.ops.token_nll import IGNORE

# Exercise 1: the sum over plans, and the weights in its gradient.

MARGINAL_MISTAKES: dict[str, str] = {
    "each token": "a plan is drawn anew for every token: it is chosen once, so first add up the tokens of each plan",
    "no prior": "the plans are not weighed by their prior: add log p(z)",
    "average of logs": "this is the average of log p(x | z): average p(x | z) itself, or log p(x) comes out too low",
    "best": "only the best plan counts: log p(x) sums over all of them",
    "mean": "the nats are averaged over the tokens: a text's log-probability is the sum over its tokens",
    "padding": "padding counts: leave out the tokens that are not real",
}
POSTERIOR_MISTAKES: dict[str, str] = {
    "probabilities": "the posterior is asked for as logs: these are probabilities",
    "joint": "this is log p(x, z): the posterior of a text sums to 1 over its plans, so subtract log p(x)",
    "likelihood": "the posterior leaves out the prior: p(z | x) is in proportion to p(z) p(x | z)",
    "over texts": "the posterior is normalised over the texts: it sums to 1 over the plans of each",
    "prior": "this is the prior: the posterior knows the text as well",
}
WEIGHTED_MISTAKES: dict[str, str] = {
    "not fixed": "the weights have a gradient of their own: detach them",
    "prior": "the weights are the prior's: a plan counts as far as the text came from it, p(z | x)",
    "best": "all weight is on the best plan: each counts with its p(z | x)",
    "no prior": "log p(z) is missing from what is averaged: the prior would learn nothing",
    "log p(x)": "this is log p(x) itself: average log p(x, z), without a sum over plans inside a logarithm",
    "padding": "padding counts: leave out the tokens that are not real",
}


class _Texts(NamedTuple):
    log_prior: Tensor  # [B, K]
    log_p: Tensor  # [B, K, T]
    real: Tensor  # [B, T]


def check_marginal(marginal: Callable[..., tuple[Tensor, Tensor]] | None = None) -> None:
    """Three texts of four plans, one impossible, one text padded; texts of 3,000 tokens; padding that holds nan."""
    marginal = marginal or _library_marginal
    for what, texts in (("short texts", _texts(6)), ("texts of 3,000 tokens", _texts(3000)), ("nan", _texts(6, True))):
        leaves = texts._replace(log_prior=texts.log_prior.requires_grad_(), log_p=texts.log_p.requires_grad_())
        found = marginal(*leaves)
        assert len(found) == 2, "two tensors are asked for: log p(x) [B] and log p(z | x) [B, K]"
        shapes = [[*x.shape] for x in found]
        assert shapes == [[3], [3, 4]], f"log p(x) is [B] = [3] and log p(z | x) [B, K] = [3, 4], not {shapes}"
        log_p, posterior = map(array, found)
        assert not (what == "nan" and np.isnan(log_p).any()), (
            "padding holds nan here, and 0 times nan is nan: put 0 in its place (masked_fill, torch.where)"
        )
        assert np.isfinite(log_p).all(), (
            f"log p(x) = {log_p[0]} for {what}: p(x) underflows; stay with logs, logsumexp over the plans"
        )
        wrong = {why: _summed(texts, name)[0] for name, why in MARGINAL_MISTAKES.items()} if what != "nan" else {}
        teach(log_p, _summed(texts)[0], wrong, f"log p(x) of {what}")
        wrong = {why: _summed(texts, name)[1] for name, why in POSTERIOR_MISTAKES.items()}
        teach(posterior, _summed(texts)[1], wrong, f"log p(z | x) of {what}")
        teach(_gradients(found[0], leaves), _averaged(texts)[1:], {}, f"gradients of log p(x) of {what}")
    print("marginal: one plan a text, no underflow, impossible plans and padding left out")


def check_weighted(weighted: Callable[..., Tensor]) -> None:
    """Its value, and its gradients at the log prior and at the tokens, which are those of log p(x)."""
    for what, texts in (("short texts", _texts(6)), ("texts of 3,000 tokens", _texts(3000)), ("nan", _texts(6, True))):
        leaves = texts._replace(log_prior=texts.log_prior.requires_grad_(), log_p=texts.log_p.requires_grad_())
        found = weighted(*leaves)
        assert [*found.shape] == [3], f"one number a text: [B] = [3], not {[*found.shape]}"
        assert what == "nan" or not found.isnan().any(), (
            "an impossible plan has weight 0, and 0 times -inf is nan: leave it out with torch.where"
        )
        assert not found.isnan().any(), (
            "padding holds nan here, and 0 times nan is nan: put 0 in its place (masked_fill, torch.where)"
        )
        answer = (array(found), *_gradients(found, leaves))
        wrong = {why: _averaged(texts, name) for name, why in WEIGHTED_MISTAKES.items()} if what != "nan" else {}
        logs = "a weight is negative, or a log: take exp of the log posterior"
        assert (answer[1] >= 0).all() or any(same(answer, each) for each in wrong.values()), logs
        teach(answer, _averaged(texts), wrong, f"value of {what}, gradients at log p(z) and at the tokens")
    print("weighted: the posterior's weights, held fixed, give the gradient of log p(x)")


def _texts(T: int, nan: bool = False) -> _Texts:
    """Plans far enough apart that the posterior is not one of them, and near enough that none rules the others out."""
    draw = torch.Generator().manual_seed(T)
    log_prior = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 3, dtype=torch.float64).log()
    log_prior[1] = torch.tensor([0.6, 0.0, 0.3, 0.1], dtype=torch.float64).log()
    log_p = -0.1 - 2 * torch.rand(3, 4, T, generator=draw, dtype=torch.float64)
    log_p -= (log_p.mean(2, keepdim=True) - log_p.mean((1, 2), keepdim=True)) * (1 - 1 / T)  # sums differ by about 1
    real = torch.arange(T) < torch.tensor([[T], [T], [T - 3]])
    log_p = torch.where(real[:, None] | torch.tensor(not nan), log_p, torch.nan)
    return _Texts(log_prior, log_p.clamp(max=-1e-3), real)


def _summed(texts: _Texts, mistake: str = "") -> tuple[Array, Array]:
    """log p(x) and log p(z | x), text by text, with a mistake or without."""
    sums, posteriors = [], []
    for prior, tokens, real in zip(*(array(field) for field in texts), strict=True):
        counted = tokens if mistake == "padding" else tokens[:, real]  # [K, T of this text]
        of_text = counted.mean(1) if mistake == "mean" else np.array([sum(row) for row in counted])
        joint = of_text if mistake in ("no prior", "likelihood") else of_text + prior
        log_p = logsumexp(joint[None])[0]
        sums.append(
            {
                "each token": logsumexp((prior[:, None] + counted).T).sum(),
                "average of logs": (np.exp(prior) * of_text).sum(),
                "best": joint.max(),
            }.get(mistake, log_p)
        )
        posteriors.append({"joint": joint, "over texts": joint, "prior": prior}.get(mistake, joint - log_p))
    posterior = np.array(posteriors)
    if mistake == "over texts":
        with np.errstate(invalid="ignore"):
            posterior = posterior - logsumexp(posterior.T)
    return np.array(sums), np.exp(posterior) if mistake == "probabilities" else posterior


def _averaged(texts: _Texts, mistake: str = "") -> tuple[Array, ...]:
    """The weighted average of log p(x, z) [B] and its gradients [B, K] and [B, K, T], with a mistake or without."""
    log_prior, log_p, real = (array(field) for field in texts)
    counted = np.ones_like(real) if mistake == "padding" else real
    prior = np.where(np.isneginf(log_prior), 0, log_prior)  # of no weight
    of_text = np.where(counted[:, None], log_p, 0).sum(2)
    log_weight = log_prior if mistake == "prior" else _summed(texts, "padding" if mistake == "padding" else "")[1]
    weight = np.exp(log_weight)
    if mistake == "best":
        weight = (log_weight == log_weight.max(1, keepdims=True)).astype(float)
    joint = of_text + prior * (mistake != "no prior")
    with np.errstate(invalid="ignore"):
        value = (weight * joint).sum(1)
        slope = weight * (1 + joint - value[:, None]) if mistake == "not fixed" else weight
    if mistake == "log p(x)":
        value = _summed(texts)[0]
    return value, slope * (mistake != "no prior"), slope[:, :, None] * counted[:, None]


def _gradients(found: Tensor, leaves: _Texts) -> tuple[Array, ...]:
    assert found.requires_grad, "there is no gradient: stay in torch, and detach the weights at most"
    at = torch.autograd.grad(found.sum(), leaves[:2], allow_unused=True)
    return tuple(array(torch.zeros_like(x) if g is None else g) for g, x in zip(at, leaves[:2], strict=True))


def _library_marginal(log_prior: Tensor, log_p: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Each token as the first of two words whose logits are log-probabilities already."""
    log_p = log_p.masked_fill(~real[:, None], -1)
    words = torch.stack([log_p, torch.log1p(-log_p.exp())], -1)  # [B, K, T, 2]
    targets = torch.where(real, 0, IGNORE)
    return tuple(plan_marginal(words, torch.eye(2, dtype=log_p.dtype), targets, log_prior, impl="naive"))
