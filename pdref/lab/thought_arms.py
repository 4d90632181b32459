"""The same intermediate tokens shown, latent or dropped: arms of one network that differ in what is done with them.

    shown     learnt and written as part of the output, a chain of thought         -log p(z | c) - log p(x | z, c)
    latent    never seen: as many tokens of the network's own, summed out          -log sum_z p(z | c) p(x | z, c)
    dropped   a filler in their place                                              -log p(x | filler, c)

All three have the same parameters and read as many tokens. "hidden" is no other network: it is the shown one with its
thoughts cut off from what the reader gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pdref.methods.decoding import Draw
from pdref.methods.latent_plan import CodedPlans

Arm = Literal["shown", "latent", "dropped"]


@dataclass(frozen=True, slots=True)
class Bill:
    """What an arm comes to, on average a text."""

    nats: float  # -log p(x | c), whatever thoughts led there
    transcript: float  # nats of all that is put out
    right: float  # share of sampled texts
    output: int  # tokens that the reader gets
    forwards: int  # that have to wait for one another
    bits: float  # KL(p(z | x, c) || p(z | c)): what a text tells of its thoughts


def arm_nats(arm: Arm, plans: CodedPlans, text: Tensor, thoughts: Tensor, prompt: Tensor | None = None) -> Tensor:
    """What an arm is trained on, nats [B] of texts [B, T] with thoughts [B, m]. Raises ValueError for another arm."""
    if arm == "latent":
        return -plans.marginal(text, prompt).log_p
    if arm not in ("shown", "dropped"):
        raise ValueError(f"an arm is 'shown', 'latent' or 'dropped', not {arm!r}")
    joint = plans.log_joint(text, plans.one_hot(thoughts if arm == "shown" else filler(thoughts)), prompt)
    return -(joint.total if arm == "shown" else joint.text)


def filler(thoughts: Tensor) -> Tensor:
    """Thoughts that say nothing."""
    return torch.zeros_like(thoughts)


@torch.no_grad()
def bill(
    arm: Arm,
    plans: CodedPlans,
    text: Tensor,
    thoughts: Tensor,
    right: Callable[[Tensor], Tensor],
    prompt: Tensor | None = None,
    seed: int = 0,
) -> Bill:
    """Measure a trained arm on held-out texts [B, T]; `right` judges as many sampled ones, [B, T] -> [B] bool."""
    count, T = text.shape
    draw = Draw(temperature=1.0, generator=torch.Generator().manual_seed(seed))
    paid = arm_nats(arm, plans, text, thoughts, prompt).mean()
    given = plans.one_hot(filler(thoughts)) if arm == "dropped" else None
    written = plans.sample(count, T, prompt, given, draw)
    nats, told = paid, 0.0
    if arm != "dropped":
        log_p, log_posterior = plans.marginal(text, prompt)
        nats = -log_p.mean()
        told = (log_posterior.exp() * (log_posterior - plans.log_law(prompt))).sum(-1).mean() / math.log(2)
    m = thoughts.shape[1]
    return Bill(
        float(nats),
        float(paid),
        float(right(written.text).float().mean()),
        T + m * (arm == "shown"),
        T + m * (arm != "dropped"),
        float(told),
    )
