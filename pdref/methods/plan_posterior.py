"""Plans too many to sum out: a network q(z | x, c) guesses the plan of a text, and what it guesses bounds log p(x | c).

    w_j = p(x, z_j | c) / q(z_j | x, c),   z_1 .. z_k ~ q
    elbo    E [ 1/k sum_j log w_j ]     =  log p(x | c) - KL(q || p(z | x, c))            (Kingma, Welling 2013)
    iwae    E [ log 1/k sum_j w_j ]     ->  log p(x | c) as k grows, from below           (Burda et al. 2015)

Two ways for a gradient to reach q through its samples, one function (`estimate`):

    reparameterised   z is a function of noise and of q's numbers, and the gradient passes through it. Exact for normal
                      plans; a code is chosen by the largest of its scores plus Gumbel noise, which has no gradient:
                      backward it is replaced by the softmax of the same numbers (straight-through Gumbel-softmax,
                      Jang et al. 2016), which is biased.
    reinforce         E[f(z)] has the gradient E[f(z) d log q(z)], whatever z is: unbiased, and loud. The baseline of a
                      sample is the bound with its log w replaced by the mean of the others': leave-one-out for the
                      elbo (Kool et al. 2019), VIMCO for iwae (Mnih, Rezende 2016).

Posterior collapse: q = p(z) and a text that ignores its plan is a fixed point, and a decoder that sees all of its text
loses little there. Two remedies: `warmth` below 1 makes plans cheap while they learn to mean something, `free` nats of
each plan token cost nothing (Kingma et al. 2016).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pdref.methods.latent_plan import LatentPlan, log_normal, read
from pdref.model.transformer import Config, Transformer
from pdref.ops.impl import Impl

Kind = Literal["elbo", "iwae"]
Gradient = Literal["reparameterised", "reinforce"]


class Guess(NamedTuple):
    """k plans for each of B texts and how probable q found each of their tokens."""

    plan: Tensor  # [k, B, m, ·]
    log_q: Tensor  # [k, B, m] log q(z_i | x, c)


class Estimate(NamedTuple):
    """A bound on log p(x | c), in nats."""

    bound: Tensor  # [B]
    objective: Tensor  # [B], to be ascended: its gradient estimates that of the bound's expectation
    kl: Tensor  # [m] KL(q || p(z)) of each plan token, mean over texts


class Posterior(nn.Module, ABC):
    """q(z | x, c) = prod_i q(z_i | x, c): a transformer reads m places, prompt and text in both directions."""

    def __init__(self, config: Config, length: int, numbers: int) -> None:
        super().__init__()
        self.model = Transformer(config)
        self.places = nn.Parameter(0.1 * torch.randn(length, config.width))  # quiet beside what they read
        self.out = nn.Linear(config.width, numbers)

    @abstractmethod
    def guess(
        self,
        text: Tensor,
        samples: int,
        gradient: Gradient,
        prompt: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Guess:
        """`samples` plans for each of texts [B, T], with a gradient through them if reparameterised."""

    def forward(self, text: Tensor, prompt: Tensor | None = None, impl: Impl = "auto") -> Tensor:
        """What q's laws are made of, [B, m, numbers]."""
        tokens = text if prompt is None else torch.cat([prompt, text], 1)
        B, m = len(tokens), len(self.places)
        x = torch.cat([self.places.expand(B, -1, -1), self.model.embed(tokens)], 1)  # [B, m + P + T, D]
        everyone = torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        return self.out(read(self.model, x, everyone, impl)[:, :m])


class CodePosterior(Posterior):
    """q over the codes of `CodedPlans`; `temperature` is that of the relaxed gradient."""

    def __init__(self, config: Config, codes: int, length: int = 1, temperature: float = 1.0) -> None:
        super().__init__(config, length, codes)
        self.temperature = temperature

    def guess(
        self,
        text: Tensor,
        samples: int,
        gradient: Gradient,
        prompt: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Guess:
        """See `Posterior.guess`."""
        log_q = self(text, prompt).log_softmax(-1)  # [B, m, K]
        uniform = torch.rand(samples, *log_q.shape, generator=generator, device=log_q.device, dtype=log_q.dtype)
        noisy = log_q - (-uniform.clamp(1e-20, 1 - 1e-7).log()).log()  # + Gumbel noise, [k, B, m, K]
        plan = F.one_hot(noisy.argmax(-1), log_q.shape[-1]).to(log_q)
        if gradient == "reparameterised":
            soft = (noisy / self.temperature).softmax(-1)
            plan = plan + soft - soft.detach()  # the value of the choice, the gradient of the softmax
        return Guess(plan, (plan * log_q).sum(-1))


class NormalPosterior(Posterior):
    """q over the vectors of `VectorPlans`: independent normal laws."""

    def __init__(self, config: Config, numbers: int, length: int = 1) -> None:
        super().__init__(config, length, 2 * numbers)

    def law(self, text: Tensor, prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means and log scales, [B, m, d] each."""
        mean, log_scale = self(text, prompt).chunk(2, -1)
        return mean, log_scale

    def guess(
        self,
        text: Tensor,
        samples: int,
        gradient: Gradient,
        prompt: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Guess:
        """See `Posterior.guess`."""
        mean, log_scale = self.law(text, prompt)
        noise = torch.randn(samples, *mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        plan = mean + log_scale.exp() * noise  # [k, B, m, d]
        if gradient == "reinforce":
            plan = plan.detach()
        return Guess(plan, log_normal(plan, mean, log_scale))


def estimate(
    plans: LatentPlan,
    posterior: Posterior,
    text: Tensor,
    prompt: Tensor | None = None,
    samples: int = 4,
    kind: Kind = "elbo",
    gradient: Gradient = "reparameterised",
    baseline: bool = True,
    warmth: float = 1.0,
    free: float = 0.0,
    generator: torch.Generator | None = None,
    impl: Impl = "auto",
) -> Estimate:
    """The bound of a `kind` from `samples` k guesses a text [B, T], and an objective with its gradient.

    With `warmth` or `free` the objective is no longer a bound; they go with the elbo. Raises ValueError for that, for
    unknown names, and for a baseline that has no other sample to be made of.
    """
    if kind not in get_args(Kind) or gradient not in get_args(Gradient):
        raise ValueError(f"kind is one of {get_args(Kind)}, gradient of {get_args(Gradient)}: {kind!r}, {gradient!r}")
    if kind == "iwae" and (warmth != 1 or free):
        raise ValueError("free nats and warm-up change the weights that iwae averages: they go with the elbo")
    if samples < 1 or (gradient == "reinforce" and baseline and samples < 2):
        raise ValueError(f"{samples} samples: a leave-one-out baseline needs two or more, a bound one")
    plan, log_q = posterior.guess(text, samples, gradient, prompt, generator)
    prior, of_text = plans.log_joint(text, plan, prompt, impl)  # [k, B, m] and [k, B]
    ratio = log_q - prior  # its mean over samples is KL(q || p(z))
    kl = ratio.detach().mean((0, 1))  # [m]
    bound = average((of_text - ratio.sum(-1)).detach(), kind)
    charged = warmth * (kl > free if free else torch.ones_like(kl))  # d max(kl, free): nothing below, all above
    log_w = of_text - (charged * ratio).sum(-1)  # [k, B]
    if gradient == "reparameterised":
        return Estimate(bound, average(log_w, kind), kl)
    if kind == "elbo":  # E[d log q] = 0: this part of log w has no gradient in expectation, only noise
        log_w = of_text - (charged * (log_q.detach() - prior)).sum(-1)
    found = average(log_w, kind)
    signal = (found - leave_one_out(log_w, kind) if baseline else _credit(log_w, kind)).detach()  # [k, B]
    score = (signal * log_q.sum(-1)).sum(0)
    return Estimate(bound, found + score - score.detach(), kl)


def average(log_w: Tensor, kind: Kind, dim: int = 0) -> Tensor:
    """Of k samples' log w along `dim`: their mean (elbo), or the log of the mean of w (iwae)."""
    if kind == "elbo":
        return log_w.mean(dim)
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])


def leave_one_out(log_w: Tensor, kind: Kind) -> Tensor:
    """For each sample the bound with its own log w [k, B] replaced by the mean of the others', [k, B]."""
    k = len(log_w)
    others = (log_w.sum(0) - log_w) / (k - 1)  # [k, B]
    own = torch.eye(k, dtype=torch.bool, device=log_w.device)[..., None]
    replaced = torch.where(own, others[:, None], log_w[None])  # [k, k, B]: row j without sample j
    return average(replaced, kind, dim=1)


def _credit(log_w: Tensor, kind: Kind) -> Tensor:
    """What of the bound depends on each sample, [k, B]: its own term of the mean, or all of the log of the mean."""
    return log_w / len(log_w) if kind == "elbo" else average(log_w, kind).expand_as(log_w)
