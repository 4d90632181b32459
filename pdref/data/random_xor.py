"""Random bits and their parity: the future is known only jointly.

With a period of 3 this is the random-random-XOR process: two fair bits, then their exclusive or, over and over. After
the first bit of a period the next two tokens are each a fair coin, and yet one decides the other: parallel heads, which
predict each offset on its own, have nothing to learn from it, sequential heads do (pdref/theory/representation.py).
The dial is `period`: `period` - 1 bits have to be held together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pdref.data.token_source import TokenSource
from pdref.theory.hidden_markov import HiddenMarkov, random_xor


@dataclass(frozen=True)
class RandomXor(TokenSource):
    """`period` - 1 fair bits and their parity. A sequence begins anywhere in a period, unless `known_phase`.

    Raises ValueError for a period below 2 (of which there is no bit to repeat).
    """

    period: int = 3
    known_phase: bool = False

    def __post_init__(self) -> None:
        if self.period < 2:
            raise ValueError(f"a period is at least one bit and its parity, not {self.period} tokens")

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return 2

    @cached_property
    def process(self) -> HiddenMarkov:
        """The place in the period and the parity so far as a state."""
        return random_xor(self.period, self.known_phase)

    def sample(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """`count` sequences of `length` tokens, [count, length] int64."""
        device, periods = generator.device, length // self.period + 2
        bits = torch.randint(2, (count, periods, self.period - 1), generator=generator, device=device)
        tokens = torch.cat([bits, bits.sum(-1, keepdim=True) % 2], -1).flatten(1)
        phase = torch.randint(self.period, (count, 1), generator=generator, device=device)
        return tokens.gather(1, torch.arange(length, device=device) + phase * (not self.known_phase))
