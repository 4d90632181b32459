"""Texts whose plans are known: a text in parts, each of which leans to two words that were chosen before it.

    p(z) = p(a) prod_i p(b_i | a)            p(x | z) = prod_i prod_t p(x_{i,t} | b_i)

Part i has R words of its own. Under option b a token is word b or word b + 1 (mod R) of them, each with probability
(1 - noise) / 2, or else any word. Options share words, so one token does not tell the plan. Three kinds of plan by
three dials: one part has one choice, a mixture of `options` texts; several `parts` have a choice each; `tops` above 1
put one more choice over them, and a part takes the option of the same number with probability `faith`, another one
otherwise: a tree. Few enough to enumerate, so p(x), posteriors and the information between plan and text are exact,
in float64.
"""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product
from typing import NamedTuple

import torch
from torch import Tensor

LETTERS = string.ascii_letters
LARGEST = 10**7  # numbers in an enumeration: beyond this it is refused


class Told(NamedTuple):
    """Texts and the plans that they were written by."""

    text: Tensor  # [B, T] int64
    plan: Tensor  # [B, m] int64


@dataclass(frozen=True)
class Leanings:
    """`parts` of `length` tokens, each of `words` R of its own, and a plan: an option each and a top choice, if any.

    Tokens i R to i R + R - 1 are the words of part i. Plans are rows of m numbers: the top choice, if `tops` is more
    than 1, then the option of each part. Raises ValueError for more options than words, more tops than options, parts
    without tokens, or numbers that are no probabilities.
    """

    options: int = 3
    parts: int = 1
    tops: int = 1
    length: int = 6
    words: int = 5
    noise: float = 0.2
    faith: float = 0.8

    def __post_init__(self) -> None:
        if not 2 <= self.options <= self.words or self.vocabulary > len(LETTERS):
            raise ValueError(f"{self.words} words give 2 to {self.words} options, in {len(LETTERS)} letters: {self}")
        if not 1 <= self.tops <= self.options or self.parts < 1 or self.length < 1:
            raise ValueError(f"a top choice favours an option, a part has tokens: not {self}")
        if not 0 <= self.noise <= 1 or not 0 <= self.faith <= 1:
            raise ValueError(f"noise and faith are probabilities, not {self.noise} and {self.faith}")

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return self.parts * self.words

    @property
    def text_length(self) -> int:
        """T."""
        return self.parts * self.length

    @cached_property
    def option_law(self) -> Tensor:
        """p(b | a), [A, C]; tops are equally likely, and options without a top."""
        A, C = self.tops, self.options
        if A == 1:
            return torch.full((1, C), 1 / C, dtype=torch.float64)
        own = torch.eye(A, C, dtype=torch.float64)
        return self.faith * own + (1 - self.faith) / (C - 1) * (1 - own)

    @cached_property
    def word_law(self) -> Tensor:
        """p(x | b) of a part's words, [C, R]."""
        first = torch.eye(self.words, dtype=torch.float64)[: self.options]
        return (1 - self.noise) / 2 * (first + first.roll(1, 1)) + self.noise / self.words

    @cached_property
    def _every(self) -> Tensor:
        """All plans with their top choices, [P, 1 + n]."""
        if self.tops * self.options**self.parts > LARGEST:
            raise ValueError(f"{self.tops} x {self.options}^{self.parts} plans are too many to enumerate")
        return torch.tensor(list(product(range(self.tops), *[range(self.options)] * self.parts)))

    @property
    def plans(self) -> Tensor:
        """All plans, [P, m] int64, the last choice fastest. Raises ValueError if they are too many."""
        return self._every if self.tops > 1 else self._every[:, 1:]

    @cached_property
    def log_prior(self) -> Tensor:
        """log p(z) of all plans, [P]."""
        top, options = self._every[:, 0], self._every[:, 1:]
        return self.option_law[top[:, None], options].log().sum(-1) - math.log(self.tops)

    def log_text(self, text: Tensor) -> Tensor:
        """log p(x | z) of `text` [B, T] under all plans, [B, P]. Raises ValueError for texts of another shape."""
        if not self._own(text).all():
            raise ValueError(f"part i of a text has the tokens {self.words} i to {self.words} i + {self.words - 1}")
        return self._log_words(self._parts(text) % self.words)

    def _parts(self, text: Tensor) -> Tensor:
        if text.dim() != 2 or text.shape[1] != self.text_length:
            raise ValueError(f"texts are [B, {self.text_length}], not {list(text.shape)}")
        return text.unflatten(1, (self.parts, self.length))  # [B, n, L]

    def _own(self, text: Tensor) -> Tensor:
        """Whether tokens [B, T] are words of their part, [B, n, L]."""
        return self._parts(text) // self.words == torch.arange(self.parts)[:, None]

    def _log_words(self, words: Tensor) -> Tensor:
        """log p(x | z) of words [B, n, L] under all plans, [B, P]."""
        of_options = self.word_law.log()[:, words].sum(-1)  # [C, B, n]
        return torch.stack([of_options[self._every[:, 1 + i], :, i] for i in range(self.parts)]).sum(0).T

    def log_joint(self, text: Tensor) -> Tensor:
        """log p(x, z) of `text` [B, T] with all plans, [B, P]."""
        return self.log_prior + self.log_text(text)

    def log_p(self, text: Tensor) -> Tensor:
        """log p(x), [B]."""
        return self.log_joint(text).logsumexp(-1)

    def posterior(self, text: Tensor) -> Tensor:
        """p(z | x) over all plans, [B, P]."""
        return self.log_joint(text).softmax(-1)

    def best(self, text: Tensor) -> Tensor:
        """The most probable plan of each text, [B, m]."""
        return self.plans[self.log_joint(text).argmax(-1)]

    @cached_property
    def _laws(self) -> tuple[Tensor, Tensor]:
        """Texts up to the order of tokens within parts: how many are alike [S], and p(x, z) of one of them [S, P]."""
        bags = torch.tensor(list(combinations_with_replacement(range(self.words), self.length)))  # [S1, L]
        count = len(bags) ** self.parts
        if count * len(self._every) > LARGEST:
            raise ValueError(f"{count} kinds of texts and {len(self._every)} plans are too many to enumerate")
        repeats = (bags[..., None] == torch.arange(self.words)).sum(1)  # [S1, R]
        orders = math.lgamma(self.length + 1) - torch.lgamma(repeats + 1.0).sum(-1)
        kinds = torch.cartesian_prod(*[torch.arange(len(bags))] * self.parts).view(-1, self.parts)
        return orders[kinds].sum(-1).double().exp().round(), (self.log_prior + self._log_words(bags[kinds])).exp()

    @property
    def entropy(self) -> float:
        """H(x) in nats: what a text costs the source. Raises ValueError where texts are too many to enumerate."""
        ways, joint = self._laws
        return float((ways * torch.special.entr(joint.sum(-1))).sum())

    def bits(self, choice: int | None = None) -> float:
        """I(z; x) of the whole plan, or of one choice of it (a column of `plans`), in bits. Raises as `entropy`."""
        ways, joint = self._laws
        if choice is not None:
            column = self.plans[:, choice]
            joint = joint.new_zeros(len(joint), int(column.max()) + 1).index_add_(1, column, joint)
        of_plans = torch.special.entr(ways @ joint).sum()
        both = (ways * torch.special.entr(joint).sum(-1)).sum()
        return float(of_plans + self.entropy - both) / math.log(2)

    def sample(self, count: int, generator: torch.Generator) -> Told:
        """`count` texts [count, T] and their plans [count, m], on the CPU."""
        top = torch.randint(self.tops, (count,), generator=generator)
        option = self.option_law[top].multinomial(self.parts, replacement=True, generator=generator)  # [B, n]
        law = self.word_law[option].flatten(0, 1)  # [B n, R]
        words = law.multinomial(self.length, replacement=True, generator=generator).view(count, self.parts, -1)
        text = words + self.words * torch.arange(self.parts)[:, None]
        return Told(text.flatten(1), torch.cat([top[:, None], option], 1) if self.tops > 1 else option)

    def coherent(self, text: Tensor) -> Tensor:
        """Whether each part keeps to the two words of one option, [B] bool."""
        words = self._parts(text) % self.words
        option = torch.arange(self.options)[:, None, None, None]
        kept = ((words == option) | (words == (option + 1) % self.words)).all(-1).any(0)  # [B, n]
        return (kept & self._own(text).all(-1)).all(-1)

    def spell(self, text: Tensor) -> list[str]:
        """Texts [B, T] as letters, parts apart."""
        return [" ".join("".join(LETTERS[x] for x in part) for part in row) for row in self._parts(text).tolist()]
