"""Delayed copy: each token repeats the one `delay` places before, now and then with an error.

The dial is `delay`, the true dependency length: the next `delay` tokens each copy a different token of the past, so a
head of every offset up to `delay` asks the hidden state for one more of them, and a head beyond asks for nothing new
(pdref/theory/representation.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pdref.data.token_source import TokenSource
from pdref.theory.hidden_markov import HiddenMarkov, delayed_copy

MOST_STATES = 1024


@dataclass(frozen=True)
class DelayedCopy(TokenSource):
    """x_t = x_{t-delay}, or with probability `noise` another of the `symbols` tokens; the first `delay` are uniform.

    Raises ValueError for a delay below 1, noise outside 0..1, or fewer than two symbols.
    """

    delay: int = 4
    noise: float = 0.1
    symbols: int = 2

    def __post_init__(self) -> None:
        if self.delay < 1 or not 0 <= self.noise <= 1 or self.symbols < 2:
            raise ValueError(f"a delay is at least 1, noise a probability, and symbols 2 or more, not {self}")

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return self.symbols

    @cached_property
    def process(self) -> HiddenMarkov:
        """The last `delay` tokens as a state. Raises ValueError for more than `MOST_STATES`."""
        if self.symbols**self.delay > MOST_STATES:
            raise ValueError(f"{self} has {self.symbols**self.delay} states; at most {MOST_STATES} are enumerated")
        return delayed_copy(self.delay, self.noise, self.symbols)

    def sample(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """`count` sequences of `length` tokens, [count, length] int64."""
        device, rounds = generator.device, -(-length // self.delay)
        shape = (count, rounds, self.delay)
        steps = torch.randint(1, self.symbols, shape, generator=generator, device=device)
        steps *= torch.rand(shape, generator=generator, device=device) < self.noise
        steps[:, :1] = torch.randint(self.symbols, (count, 1, self.delay), generator=generator, device=device)
        return (steps.cumsum(1) % self.symbols).flatten(1)[:, :length]  # errors add up from copy to copy
