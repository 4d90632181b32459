"""A source of five symbols whose joint is known: a plan symbol z, a span x1 x2, a span y1 y2.

The spans depend on each other beyond what z says, unless the plan names everything. <pad> is one of the two symbols
of a span, so that no sampler may treat it as a special case. All that theory says of the source is computed here
from its table, by enumeration, and owes the library nothing.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from scipy.stats import chisquare

from laws.seers import Exact
from pdref.methods.decoding import Speaker
from pdref.methods.denoising import Order
from pdref.text.document import Item
from pdref.text.layout import Grammar, Layout, LayoutBuilder, Role
from pdref.text.mask import Siblings
from pdref.text.tags import Tag
from pdref.text.tokenizer import Tokenizer

Outcome = tuple[int, int, int, int, int]  # z, x1, x2, y1, y2
Law = dict[Outcome, float]
SPANS = ((1, 2), (3, 4))  # which places of an outcome are whose


@dataclass(frozen=True)
class FiveSymbols:
    """The source; `named` makes the plan name all that the spans share."""

    named: bool = False
    grammar: Grammar = Grammar(grid=2, echo=False)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Two plan symbols and one symbol beside <pad>."""
        return Tokenizer.words(["go", "red", "blue", "rest", "a", "1"])

    @cached_property
    def joint(self) -> Law:
        """Probability of every outcome; drawn once, away from 0."""
        table = np.random.default_rng(7).dirichlet(np.full(32, 0.6)).reshape(2, 4, 4) * 0.8 + 0.2 / 32
        if self.named:
            pz = table.sum((1, 2), keepdims=True)
            table = table.sum(2, keepdims=True) * table.sum(1, keepdims=True) / pz
        zs = self.tokenizer.encode("red blue")
        symbols = [int(Tag.PAD), *self.tokenizer.encode("a")]
        outcomes = [(z, *xy) for z in zs for xy in itertools.product(symbols, repeat=4)]
        return dict(zip(outcomes, table.flatten().tolist(), strict=True))

    @cached_property
    def planned(self) -> Law:
        """p(z) p(x | z) p(y | z): the joint that Planned Diffusion can hold."""
        return {
            o: self.chance({0: o[0], 1: o[1], 2: o[2]})
            * self.chance({0: o[0], 3: o[3], 4: o[4]})
            / self.chance({0: o[0]})
            for o in self.joint
        }

    @property
    def total_correlation(self) -> float:
        """TC(x; y | z) in nats: what the plan leaves out."""
        return divergence(self.joint, self.planned)

    def chance(self, known: dict[int, int]) -> float:
        """Probability that the places of `known` hold its symbols."""
        return sum(p for o, p in self.joint.items() if all(o[place] == symbol for place, symbol in known.items()))

    def conditional(self, place: int, known: dict[int, int], temperature: float = 1.0) -> dict[int, float]:
        """p(symbol at `place` | known), sharpened by the temperature."""
        symbols = sorted({o[place] for o in self.joint})
        weights = [self.chance({**known, place: symbol}) ** (1 / temperature) for symbol in symbols]
        return {symbol: w / sum(weights) for symbol, w in zip(symbols, weights, strict=True)}

    # As documents.

    def layout(self, outcome: Outcome) -> Layout:
        """An outcome as a document: a plan of two items, of which the first is called z, and two spans."""
        z, *xy = outcome
        builder = LayoutBuilder(self.tokenizer, self.grammar)
        builder.prompt("go")
        plan = [Item(self.tokenizer.decode([z]), 1), Item("rest", 1)]
        builder.plan(plan, 0)
        for k, item in enumerate(plan):
            builder.open_span(item, 0, k)
            builder.add(xy[2 * k : 2 * k + 2], Role.CONTENT, 0, k)
            builder.close_span(0, k)
        builder.add([Tag.EOS], Role.TAG, 0)
        return builder.build()

    @cached_property
    def layouts(self) -> list[Layout]:
        """Every outcome, in the order of `joint`."""
        return [self.layout(outcome) for outcome in self.joint]

    @cached_property
    def places(self) -> list[int]:
        """Positions of the five symbols."""
        builder = self.layouts[0]
        content = (builder.role[0] == Role.CONTENT).nonzero()[:, 0].tolist()
        return [(builder.token[0] == Tag.TOPIC).nonzero()[0].item() + 1, *content]

    def outcome(self, tokens: Sequence[int]) -> Outcome:
        """The five symbols of a document."""
        return tuple(tokens[place] for place in self.places)  # type: ignore[return-value]

    @cached_property
    def speaker(self) -> Speaker:
        """A model that knows every conditional of the joint exactly."""
        context = self.layouts[0].shape[1] + 1
        chances = torch.tensor(list(self.joint.values()), dtype=torch.float64)
        return Speaker(Exact(self.layouts, len(self.tokenizer), context, chances), self.tokenizer, self.grammar)

    # What a sampler of spans must do, by enumeration of its every draw.

    def sampler_law(
        self,
        order: Order = "entropy",
        at_once: Literal[1, 2] = 1,
        siblings: Siblings = "sparse",
        temperature: float = 1.0,
    ) -> Law:
        """Outcome probabilities of: draw z, then reveal `at_once` tokens of each span a step, in `order`."""
        law: Law = Counter()
        for z, p in self.conditional(0, {}, temperature).items():
            for known, q in self._steps({0: z}, order, at_once, siblings, temperature):
                law[tuple(known[place] for place in range(5))] += p * q  # type: ignore[index]
        return law

    def _steps(
        self, known: dict[int, int], order: Order, at_once: int, siblings: Siblings, temperature: float
    ) -> Iterator[tuple[dict[int, int], float]]:
        masked = [[place for place in span if place not in known] for span in SPANS]
        if not any(masked):
            yield known, 1.0
            return
        chances = {
            place: self.conditional(place, self._visible(known, place, siblings), temperature)
            for span in masked
            for place in span
        }
        for symbols in itertools.product(*chances.values()):
            drawn = dict(zip(chances, symbols, strict=True))
            p = math.prod(chances[place][symbol] for place, symbol in drawn.items())
            for revealed, q in _choices(masked, chances, drawn, order, at_once):
                now = known | {place: drawn[place] for place in revealed}
                for outcome, rest in self._steps(now, order, at_once, siblings, temperature):
                    yield outcome, p * q * rest

    @staticmethod
    def _visible(known: dict[int, int], place: int, siblings: Siblings) -> dict[int, int]:
        [own] = [span for span in SPANS if place in span]
        return {i: symbol for i, symbol in known.items() if siblings == "dense" or i == 0 or i in own}


def _choices(
    masked: list[list[int]],
    chances: dict[int, dict[int, float]],
    drawn: dict[int, int],
    order: Order,
    at_once: int,
) -> Iterator[tuple[list[int], float]]:
    """Which places a step reveals, and how probably."""
    if order == "random":
        ways = [list(itertools.combinations(span, min(at_once, len(span)))) for span in masked]
        for way in itertools.product(*ways):
            yield [place for part in way for place in part], 1 / math.prod(map(len, ways))
        return
    sure: dict[str, Callable[[int], float]] = {
        "entropy": lambda place: sum(p * math.log(p) for p in chances[place].values()),
        "confidence": lambda place: chances[place][drawn[place]],
    }
    yield [place for span in masked for place in sorted(span, key=sure[order], reverse=True)[:at_once]], 1.0


def divergence(p: Law, q: Law) -> float:
    """KL(p || q) in nats."""
    return sum(p[o] * math.log(p[o] / q[o]) for o in p)


def p_value(outcomes: Iterable[Outcome], law: Law) -> float:
    """Chi-square test of drawn outcomes against a law; rare outcomes share a bin."""
    counts = Counter(outcomes)
    total = counts.total()
    assert set(counts) <= set(law), "an outcome that the law excludes"
    often = [o for o in law if law[o] * total >= 5]
    observed = [counts[o] for o in often]
    expected = [law[o] * total for o in often]
    if len(often) < len(law):
        observed.append(total - sum(observed))
        expected.append(total - sum(expected))
    return float(chisquare(observed, expected).pvalue)
