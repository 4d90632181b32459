"""Probes: how many bits about the future a reader of limited means gets out of frozen hidden states.

    I_V(h; F) = H(F) - min_{q in V} E[-log q(F | h)]             (V-information; Xu et al. 2020, arXiv 2002.10689)

V is the family of the probe: linear, or with one inner layer. Information as such would not tell two networks apart,
since a state that differs for every past keeps all of it, unreadable or not; what a probe of small means can use does.

The probe is fitted on some states and judged on others, so the figure is low if anything; below zero it says that the
probe knows less than one that ignores the state. It learns from, and is judged by, the exact law of the future at
each place instead of one draw from it: the expectation is the same, and much of the chance is gone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Probe:
    """A family of readers and how they are fitted: Adam on all states at once, with a linear decay.

    `inner` hidden units, 0 for a linear probe. Raises ValueError for numbers below what makes sense.
    """

    inner: int = 0
    steps: int = 200
    rate: float = 3e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.inner < 0 or self.steps < 1 or self.rate <= 0:
            raise ValueError(f"a probe has no fewer than 0 hidden units, and steps to fit them in: {self}")

    def bits(self, states: Tensor, laws: Tensor, held_out: Tensor, held_out_laws: Tensor) -> Tensor:
        """Bits [R] that R probes, one for each of R networks, read out of states that they were not fitted on.

        Fitted on `states` [R, N, D] with the laws of their futures `laws` [R, N, C] (one row of 0 and 1 for a label),
        judged on `held_out` [R, M, D] and its laws. Raises ValueError for shapes that do not belong together.
        """
        if states.dim() != 3 or states.shape[:2] != laws.shape[:2] or held_out.shape[:2] != held_out_laws.shape[:2]:
            raise ValueError(
                f"states {list(states.shape)}, {list(held_out.shape)} and laws {list(laws.shape)}, "
                f"{list(held_out_laws.shape)} are not [R, N, D] and [R, N, C], twice"
            )
        states, held_out = (x.detach().float() for x in (states, held_out))
        middle, size = states.mean(1, keepdim=True), states.std(1, keepdim=True) + 1e-6
        laws = laws.float()
        with torch.enable_grad():
            read = self._fitted((states - middle) / size, laws)
        with torch.no_grad():
            log_q = read((held_out - middle) / size)  # [R, M, C]
            cost = -(held_out_laws * log_q).sum(-1).mean(-1)
        return (entropy(held_out_laws.mean(1)) - cost) / math.log(2)

    def _fitted(self, states: Tensor, laws: Tensor) -> Reader:
        reader = Reader(*states.shape[::2], self.inner, laws.mean(1), self.seed)
        adam = torch.optim.Adam(reader.parameters(), self.rate)
        for step in range(self.steps):
            adam.param_groups[0]["lr"] = self.rate * (1 - step / self.steps)
            loss = -(laws * reader(states)).sum(-1).mean(-1).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return reader


class Reader(nn.Module):
    """R probes of states [R, N, D], from the start as good as one that ignores them: it says `base` [R, C]."""

    def __init__(self, count: int, width: int, inner: int, base: Tensor, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        if inner:  # the same for every network
            first = torch.randn(width, inner, generator=generator) / math.sqrt(width)
            self.first = nn.Parameter(first.repeat(count, 1, 1))
            self.shift = nn.Parameter(torch.randn(inner, generator=generator).repeat(count, 1, 1))
        self.inner = inner
        self.last = nn.Parameter(torch.zeros(count, inner or width, base.shape[-1]))
        self.base = nn.Parameter(base.clamp(min=1e-6).log().unsqueeze(1))

    def forward(self, states: Tensor) -> Tensor:
        """log q [R, N, C]."""
        if self.inner:
            states = F.gelu(torch.baddbmm(self.shift, states, self.first))
        return torch.baddbmm(self.base, states, self.last).log_softmax(-1)


def entropy(laws: Tensor) -> Tensor:
    """H in nats over the last dimension."""
    return torch.special.entr(laws).sum(-1)


def exact_bits(laws: Tensor) -> Tensor:
    """What all of the past says on the same places: H(mean law) - mean H(law), [..., N, C] -> [...], in bits."""
    return (entropy(laws.mean(-2)) - entropy(laws).mean(-1)) / math.log(2)


def shuffled(laws: Tensor, seed: int = 0) -> Tensor:
    """The control: laws [R, N, C] dealt out to other places, in the same way for all. A probe should find nothing."""
    return laws[:, torch.randperm(laws.shape[1], generator=torch.Generator().manual_seed(seed))]
