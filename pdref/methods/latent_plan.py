"""A plan as a latent variable: decide what to say, then say it (the course page, "Planning as Latent Variable").

    p(x | c) = sum_z p(z | c) p(x | z, c)            z ~ p(z | c),  then  x_t ~ p(x_t | x_<t, z, c)

One transformer does both. It reads a start vector, the prompt c (which may be empty) and the plan as m vectors, and
then the text; what it makes of the last m vectors before the text says the plan, what it makes of the rest the text:

    reads     start  c_1 .. c_P  z_1 .. z_m  x_1 .. x_{T-1}
    predicts                z_1 .. z_m  x_1  ..  x_T

`CodedPlans` writes m tokens of a codebook of K: one choice among K if m = 1. Few plans are summed out exactly, by
`plan_marginal`; many need a posterior network (`plan_posterior`). `VectorPlans` are m vectors with a normal prior.
Plans that are trees are in `plan_tree`.

A decoder that sees its whole text can work out the plan from it, and the likelihood then asks for no plan at all.
`window` bounds what a text token sees of the text: what reaches further has to go through the plan.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pdref.methods.decoding import Draw
from pdref.model.transformer import Transformer
from pdref.ops.impl import Impl
from pdref.ops.plan_marginal import Marginal, plan_marginal
from pdref.ops.token_nll import token_nll
from pdref.ops.unmask import unmask
from pdref.text.window import within

MOST_PLANS = 4096  # that are summed out for a text


class Joint(NamedTuple):
    """log p(x, z) in its two factors."""

    prior: Tensor  # [..., B, m] log p(z_i | z_<i, c)
    text: Tensor  # [..., B] log p(x | z, c)

    @property
    def total(self) -> Tensor:
        """log p(x, z), [..., B]."""
        return self.prior.sum(-1) + self.text


class Written(NamedTuple):
    """What was sampled: plans [B, m, ...] as the model takes them, and texts [B, T]."""

    plan: Tensor
    text: Tensor


class LatentPlan(nn.Module, ABC):
    """p(z | c) p(x | z, c) for plans of `length` m, written and read by `model`; texts of a batch are equally long.

    Text tokens see the start, the prompt, the plan and the latest `window` tokens of the text, their own among them
    (None: all). Raises ValueError for a plan or a window of nothing.
    """

    def __init__(self, model: Transformer, length: int, window: int | None = None) -> None:
        if length < 1 or (window is not None and window < 1):
            raise ValueError(f"a plan has a length and a window of at least 1, not {length} and {window}")
        super().__init__()
        self.model, self.length, self.window = model, length, window
        self.start = nn.Parameter(torch.randn(model.config.width))

    @abstractmethod
    def vectors(self, plan: Tensor) -> Tensor:
        """What the transformer reads of plans [..., m, ·], [..., m, D]."""

    @abstractmethod
    def log_prior(self, plan: Tensor, hidden: Tensor) -> Tensor:
        """log p(z_i | z_<i, c) [..., m] of plans [..., m, ·] from the states [..., m, D] that predict them."""

    @abstractmethod
    def draw_plan(self, seeds: Tensor, prompt: Tensor | None, draw: Draw, impl: Impl) -> Tensor:
        """A plan from p(z | c) for each of the requests' `seeds` [B], [B, m, ·]."""

    def hidden(self, plan: Tensor, text: Tensor, prompt: Tensor | None = None, impl: Impl = "auto") -> Tensor:
        """States [..., m + T, D] that predict the plans [..., m, ·] and then the texts [..., T].

        `text` and `prompt` [..., P] are expanded to the plans' leading dimensions. Raises ValueError if they are too
        long for the context.
        """
        lead = plan.shape[:-2]
        start = self.start.expand(*lead, 1, -1)
        embed = self.model.embed
        before = [] if prompt is None else [embed(prompt).expand(*lead, -1, -1)]
        x = torch.cat([start, *before, self.vectors(plan), embed(text[..., :-1]).expand(*lead, -1, -1)], -2)
        first = x.shape[-2] - text.shape[-1] + 1  # the place of x_1
        place = torch.arange(x.shape[-2], device=x.device)
        mask = None if self.window is None else within(self.window, place[:, None], place, place < first)
        states = read(self.model, x.flatten(0, -3), mask, impl).unflatten(0, lead)  # [..., S, D]
        return states[..., first - 1 - self.length :, :]

    def log_joint(self, text: Tensor, plan: Tensor, prompt: Tensor | None = None, impl: Impl = "auto") -> Joint:
        """log p(x, z) of texts [B, T] and plans [..., B, m, ·]."""
        hidden = self.hidden(plan, text, prompt, impl)
        of_plan, of_text = hidden.split([self.length, text.shape[-1]], -2)
        targets = text.expand(*of_text.shape[:-1])
        nats = token_nll(of_text, self.model.unembed.weight, targets, impl)  # [..., B, T]
        return Joint(self.log_prior(plan, of_plan), -nats.sum(-1))

    @torch.inference_mode()
    def sample(
        self,
        count: int,
        length: int,
        prompt: Tensor | None = None,
        plan: Tensor | None = None,
        draw: Draw | None = None,
        impl: Impl = "auto",
    ) -> Written:
        """Draw plans and then texts of `length` tokens, for each of `prompt` [count, P]; `plan` may be given.

        At temperature 1 unless `draw` says otherwise. A request is written the same alone as in a batch. Each token
        costs a forward over all before it: for texts of a few tokens no cache pays.
        """
        draw = draw or Draw(temperature=1.0)
        seeds = draw.request_seeds(count).to(self.start.device)
        if plan is None:
            plan = self.draw_plan(seeds, prompt, draw, impl)
        text = seeds.new_zeros(count, length)
        for t in range(length):
            state = self.hidden(plan, text, prompt, impl)[:, self.length + t]
            text[:, t] = drawn(state, self.model.unembed.weight, seeds, seeds.new_tensor(self.length + t), draw, impl)
        return Written(plan, text)


class CodedPlans(LatentPlan):
    """Plans of m tokens of K codes each; as tensors, one-hot rows [..., m, K] or, relaxed, weights of the codes.

    Every place of a plan has code vectors of its own, so that what a code says need not be put together with its place.
    """

    def __init__(self, model: Transformer, codes: int, length: int = 1, window: int | None = None) -> None:
        super().__init__(model, length, window)
        if codes < 1:
            raise ValueError(f"a codebook has codes: not {codes}")
        self.codes = codes
        self.codebook = nn.Parameter(torch.randn(length, codes, model.config.width))
        self.prior = nn.Linear(model.config.width, codes, bias=False)
        nn.init.zeros_(self.prior.weight)  # favouring a code before codes mean anything, it would take all texts

    def vectors(self, plan: Tensor) -> Tensor:
        """See `LatentPlan.vectors`."""
        return torch.einsum("...mk,mkd->...md", plan, self.codebook)

    def log_prior(self, plan: Tensor, hidden: Tensor) -> Tensor:
        """See `LatentPlan.log_prior`."""
        return (plan * self.prior(hidden).log_softmax(-1)).sum(-1)

    def one_hot(self, plan: Tensor) -> Tensor:
        """Code numbers [..., m] int64 as plans [..., m, K]."""
        return F.one_hot(plan, self.codes).to(self.start)

    @property
    def plans(self) -> Tensor:
        """All K^m plans as code numbers, [K^m, m], the last code fastest. Raises ValueError if they are too many."""
        if self.codes**self.length > MOST_PLANS:
            raise ValueError(f"{self.codes}^{self.length} plans are too many to sum out: take a posterior network")
        return torch.tensor(list(product(range(self.codes), repeat=self.length)), device=self.start.device)

    def marginal(self, text: Tensor, prompt: Tensor | None = None, impl: Impl = "auto") -> Marginal:
        """log p(x | c) [B] and log p(z | x, c) [B, K^m] of texts [B, T], by summing out all plans."""
        every = self.one_hot(self.plans)  # [K^m, m, K]
        before = None if prompt is None else prompt[:, None]
        hidden = self.hidden(every.expand(len(text), *every.shape), text[:, None], before, impl)
        of_plan, of_text = hidden.split([self.length, text.shape[1]], -2)
        log_prior = self.log_prior(every, of_plan).sum(-1)  # [B, K^m]
        return plan_marginal(of_text, self.model.unembed.weight, text, log_prior, impl)

    def log_law(self, prompt: Tensor | None = None, impl: Impl = "auto") -> Tensor:
        """log p(z | c) of all plans for each prompt [B, P], [B, K^m]; [1, K^m] without prompts."""
        every, count = self.one_hot(self.plans), 1 if prompt is None else len(prompt)
        no_text = self.plans.new_zeros(1)
        before = None if prompt is None else prompt[:, None]
        hidden = self.hidden(every.expand(count, *every.shape), no_text, before, impl)
        return self.log_prior(every, hidden[..., : self.length, :]).sum(-1)

    def draw_plan(self, seeds: Tensor, prompt: Tensor | None, draw: Draw, impl: Impl) -> Tensor:
        """See `LatentPlan.draw_plan`; code after code, each knowing those before it."""
        plan = self.start.new_zeros(len(seeds), self.length, self.codes)
        no_text = seeds.new_zeros(len(seeds), 1)
        for i in range(self.length):
            state = self.hidden(plan, no_text, prompt, impl)[:, i]
            plan[:, i] = self.one_hot(drawn(state, self.prior.weight, seeds, seeds.new_tensor(i), draw, impl))
        return plan


class VectorPlans(LatentPlan):
    """Plans of m vectors of d numbers, [..., m, d], standard normal before anything is said."""

    def __init__(self, model: Transformer, numbers: int, length: int = 1, window: int | None = None) -> None:
        super().__init__(model, length, window)
        self.numbers = numbers
        self.project = nn.Linear(numbers, model.config.width)

    def vectors(self, plan: Tensor) -> Tensor:
        """See `LatentPlan.vectors`."""
        return self.project(plan)

    def log_prior(self, plan: Tensor, hidden: Tensor) -> Tensor:
        """See `LatentPlan.log_prior`; the same whatever was read."""
        return log_normal(plan, torch.zeros_like(plan), torch.zeros_like(plan))

    def draw_plan(self, seeds: Tensor, prompt: Tensor | None, draw: Draw, impl: Impl) -> Tensor:
        """See `LatentPlan.draw_plan`; a temperature widens or narrows the normal law, and 0 takes its mean."""
        noise = [
            torch.randn(self.length, self.numbers, generator=torch.Generator().manual_seed(seed), device="cpu")
            for seed in seeds.tolist()
        ]
        return draw.temperature**0.5 * torch.stack(noise).to(self.start)


def log_normal(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log density of normal laws, summed over the last dimension, [..., d] -> [...]."""
    standard = (x - mean) / log_scale.exp()
    return (-0.5 * (standard**2 + math.log(2 * math.pi)) - log_scale).sum(-1)


def read(model: Transformer, x: Tensor, mask: Tensor | None = None, impl: Impl = "auto") -> Tensor:
    """Hidden states [B, S, D] of vectors x [B, S, D] in place of embedded tokens; without a mask it reads causally.

    Raises ValueError for more vectors than the context.
    """
    S, room = x.shape[1], model.config.context
    if room < S:
        raise ValueError(f"start, prompt, plan and text are {S} places, the context has {room}")
    turn = torch.view_as_complex(model.turns[:S]).expand(len(x), -1, -1, -1)
    for block in model.blocks:
        x = block.forward(x, turn, mask, mask is None, None, impl)
    return model.norm.forward(x)


def drawn(states: Tensor, weight: Tensor, seeds: Tensor, places: Tensor, draw: Draw, impl: Impl) -> Tensor:
    """A token [...] for each of `states` [..., D], with the noise of its request's seed [...] and its place [...]."""
    shape = states.shape[:-1]
    rows = (x.expand(shape).flatten() for x in (seeds, places))
    return unmask(states.flatten(0, -2), weight, *rows, 0, draw.temperature, draw.top_p, impl=impl).token.view(shape)
