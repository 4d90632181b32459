"""Words that begin with a choice and end in a token that matters to nothing: what an n-token loss weighs.

A word of `length` tokens opens with a choice among `branches`; all tokens but the last spell out the branch, and the
last is drawn afresh from as many symbols. A next-token loss charges choice and last token alike, ln(branches) each. A
loss over n offsets charges the choice to every head that looks across it from before, and the last token n times:

    nats a word = ln(branches) (n (n + 1) / 2 + n)        for n < length

(Gloeckle et al. 2024, arXiv 2404.19737, on choice points). The dial is `length`: how long a choice binds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pdref.data.token_source import TokenSource
from pdref.theory.hidden_markov import HiddenMarkov, choice_words


@dataclass(frozen=True)
class ChoicePoints(TokenSource):
    """Token place * branches + value, so that a token tells its place in the word; sequences begin with a word.

    Raises ValueError for fewer than two branches, or words without room for a choice and a last token.
    """

    branches: int = 4
    length: int = 8

    def __post_init__(self) -> None:
        if self.branches < 2 or self.length < 2:
            raise ValueError(f"a word has 2 branches and 2 tokens or more, not {self}")

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return self.branches * self.length

    @cached_property
    def process(self) -> HiddenMarkov:
        """The branch and the place in the word as a state."""
        return choice_words(self.branches, self.length)

    def sample(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """`count` sequences of `length` tokens, [count, length] int64."""
        device, words = generator.device, -(-length // self.length)
        value, last = torch.randint(self.branches, (2, count, words, 1), generator=generator, device=device)
        values = torch.cat([value.expand(-1, -1, self.length - 1), last], -1)
        return (values + torch.arange(self.length, device=device) * self.branches).flatten(1)[:, :length]
