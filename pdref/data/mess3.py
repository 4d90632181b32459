"""Mess3: three hidden states whose every nuance shows in the next token (Shai et al. 2024, arXiv 2405.15943).

The law of the next token is an invertible linear function of the belief, so whoever predicts one token as well as
can be knows all that the past says of the future: heads cannot help (pdref/theory/representation.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pdref.data.token_source import TokenSource
from pdref.theory.hidden_markov import HiddenMarkov, mess3


@dataclass(frozen=True)
class Mess3(TokenSource):
    """The state moves to each other state with probability `x`; where it arrives shows with probability `a`.

    Raises ValueError for numbers that are no such probabilities.
    """

    x: float = 0.05
    a: float = 0.85

    def __post_init__(self) -> None:
        if not 0 <= self.x <= 0.5 or not 0 <= self.a <= 1:
            raise ValueError(f"x is at most 1/2 and a is a probability, not {self}")

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return 3

    @cached_property
    def process(self) -> HiddenMarkov:
        """The source itself."""
        return mess3(self.x, self.a)

    def sample(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """`count` sequences of `length` tokens, [count, length] int64."""

        def step(stay: float) -> Tensor:
            """0 with probability `stay`, else 1 or 2 alike."""
            shape, device = (count, length), generator.device
            other = torch.randint(1, 3, shape, generator=generator, device=device)
            return other * (torch.rand(shape, generator=generator, device=device) >= stay)

        start = torch.randint(3, (count, 1), generator=generator, device=generator.device)
        return (start + step(1 - 2 * self.x).cumsum(1) + step(self.a)) % 3  # the states are a ring: moves add up
