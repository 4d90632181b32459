"""Learning latent plans and looking into them: bits, units in use, agreement with the plans that texts were written by.

Plans have no names of their own, so they are compared with known ones up to relabelling: by the best one-to-one
matching of labels, and by the adjusted Rand index, which needs no matching and is 0 for labels by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from pdref.lab.probes import exact_bits
from pdref.methods.latent_plan import CodedPlans
from pdref.methods.plan_posterior import CodePosterior, estimate
from pdref.model.transformer import Config, Transformer

WARM_UP = 20  # steps
QUIET = 0.1


def trunk(vocabulary: int, places: int, width: int = 32, layers: int = 1, seed: int = 0) -> Transformer:
    """A small transformer that hears a plan: its embedded tokens are small beside the vectors of the plan.

    With both of one size, what a text says of itself is learnt first, and plans that mean nothing yet die meanwhile.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Transformer(Config(vocabulary, places, layers, width, heads=4, key_heads=4))
    with torch.no_grad():
        model.embed.weight.mul_(QUIET)
    return model


class Match(NamedTuple):
    """How well found labels name the true ones."""

    label: Tensor  # [K] the true label that each found one stands for
    accuracy: float
    adjusted: float  # Rand index: 1 for the same partition, 0 expected by chance


def learn(modules: Sequence[nn.Module], loss: Callable[[int], Tensor], steps: int, rate: float = 1e-2) -> list[float]:
    """Adam with a warm-up and a linear decay on `loss(step)`, a scalar; returns the losses."""
    adam = torch.optim.Adam([p for module in modules for p in module.parameters()], rate, (0.9, 0.98), fused=True)
    losses = []
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate * min((step + 1) / WARM_UP, 1 - step / steps)
        value = loss(step)
        adam.zero_grad()
        value.backward()
        adam.step()
        losses.append(value.item())
    return losses


def bits(posterior: Tensor) -> Tensor:
    """I(z; x) in bits of laws [N, ..., K] of z given each of N texts: H(mean law) - mean H(law), [...]."""
    return exact_bits(posterior.movedim(0, -2))


def active_units(means: Tensor, least: float = 0.01) -> int:
    """Units whose posterior mean [N, ...] moves with the text: Var_x E[u | x] > `least` (Burda et al. 2015)."""
    return int((means.var(0) > least).sum())


def match(true: Tensor, found: Tensor) -> Match:
    """Match labels `found` [N] to `true` [N], as one-to-one as their numbers allow, so that most texts agree."""
    K, L = int(found.max()) + 1, int(true.max()) + 1
    size = max(K, L)
    table = torch.bincount(found * size + true, minlength=size * size).view(size, size)  # [found, true]
    _, label = linear_sum_assignment(table.numpy(), maximize=True)
    label = torch.from_numpy(label)
    accuracy = table[torch.arange(size), label].sum() / len(true)
    return Match(label[:K], float(accuracy), _adjusted_rand(table.double()))


def _adjusted_rand(table: Tensor) -> float:
    """(index - expected) / (largest - expected), in pairs of texts (Hubert, Arabie 1985)."""

    def pairs(n: Tensor) -> Tensor:
        return (n * (n - 1) / 2).sum()

    index, rows, columns = pairs(table), pairs(table.sum(0)), pairs(table.sum(1))
    expected = rows * columns / pairs(table.sum())
    return float((index - expected) / ((rows + columns) / 2 - expected))


def summed_elbo(plans: CodedPlans, posterior: CodePosterior, text: Tensor) -> Tensor:
    """The expected elbo [B] of texts [B, T]: sum_z q(z | x) log p(x, z) / q(z | x) over all K^m plans, no sampling."""
    every = plans.one_hot(plans.plans)[:, None].expand(-1, len(text), -1, -1)  # [K^m, B, m, K]
    log_q = (every * posterior(text).log_softmax(-1)).sum((-1, -2))  # [K^m, B]
    return (log_q.exp() * (plans.log_joint(text, every).total - log_q)).sum(0)


class Noise(NamedTuple):
    """A gradient estimator against the exact gradient, in units of that one's length."""

    bias: float  # |mean - exact|
    spread: float  # root of the variance of one draw, summed over coordinates


def gradient_noise(
    plans: CodedPlans, posterior: CodePosterior, text: Tensor, repeats: int, samples: int = 4, seed: int = 0, **how: Any
) -> Noise:
    """Measure the gradient of the elbo at all of q's parameters, `how` as in `estimate`, over `repeats` draws."""
    parameters = list(posterior.parameters())

    def flat(loss: Tensor) -> Tensor:
        found = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    exact, generator = flat(summed_elbo(plans, posterior, text)), torch.Generator().manual_seed(seed)
    draws = torch.stack(
        [
            flat(estimate(plans, posterior, text, samples=samples, generator=generator, **how).objective)
            for _ in range(repeats)
        ]
    )
    size = exact.norm()
    return Noise(float((draws.mean(0) - exact).norm() / size), float(draws.var(0).sum().sqrt() / size))
