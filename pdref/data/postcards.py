"""Postcards: three sentences that share four choices, and a plan that names as many of them as one likes.

    prompt      name season place
    plan        arrival autumn coast | days | evening
    spans       autumn coast with friends        season, place, company
                autumn rain over coast           season, weather, place
                friends watched coast rain       company, verb, place, weather

The prompt says which choices the plan shall name. A shared choice that it does not name is made by each sentence for
itself, and sentences that cannot see each other contradict each other; the verb is no other sentence's business.
There are 108 postcards, so the joint law of the spans given the plan, and with it the price of independence, is a
sum (see `theory.independence`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from pdref.text.document import Item, PlannedDocument, Span, Stage
from pdref.text.layout import Grammar
from pdref.text.tokenizer import Tokenizer

Choices = dict[str, str]

SHARED = ("season", "place", "company", "weather")
CHOICES = (*SHARED, "verb")
LAWS: dict[str, dict[str, float]] = {
    "season": {"summer": 0.5, "autumn": 0.3, "winter": 0.2},
    "place": {"coast": 0.5, "hills": 0.3, "city": 0.2},
    "company": {"friends": 0.6, "family": 0.4},
    "verb": {"watched": 0.6, "loved": 0.4},
}
WEATHER: dict[str, dict[str, float]] = {  # given the season
    "summer": {"sun": 0.7, "rain": 0.2, "snow": 0.1},
    "autumn": {"sun": 0.2, "rain": 0.6, "snow": 0.2},
    "winter": {"sun": 0.1, "rain": 0.2, "snow": 0.7},
}
SENTENCES = {
    "arrival": "{season} {place} with {company}",
    "days": "{season} {weather} over {place}",
    "evening": "{company} {verb} {place} {weather}",
}
GRAMMAR = Grammar(grid=4, echo=False)
UNREADABLE = "unreadable"


def law(choice: str, season: str = "summer") -> dict[str, float]:
    """Probabilities of the words of a choice, in a season."""
    return WEATHER[season] if choice == "weather" else LAWS[choice]


@dataclass(frozen=True)
class Postcards:
    """The source; plans name the choices `named`, in the order of `CHOICES`. Raises ValueError for unknown ones."""

    named: tuple[str, ...] = SHARED

    def __post_init__(self) -> None:
        if unknown := set(self.named) - set(CHOICES):
            raise ValueError(
                f"there is no choice of {', '.join(sorted(unknown))}; a plan may name {', '.join(CHOICES)}"
            )
        object.__setattr__(self, "named", tuple(choice for choice in CHOICES if choice in self.named))

    @property
    def prompt(self) -> str:
        """What the plan shall name."""
        return " ".join(["name", *self.named])

    @cached_property
    def outcomes(self) -> list[tuple[float, Choices]]:
        """Every setting of the choices and its probability."""
        found = []
        for words in product(*(law(name) for name in CHOICES)):
            choices = dict(zip(CHOICES, words, strict=True))
            chance = math.prod(law(name, choices["season"])[word] for name, word in choices.items())
            found.append((chance, choices))
        return found

    @cached_property
    def documents(self) -> list[PlannedDocument]:
        """The postcard of each outcome, in the same order."""
        return [self._document(choices) for _, choices in self.outcomes]

    @cached_property
    def chances(self) -> np.ndarray:
        """The probability of each outcome, [N]."""
        return np.array([chance for chance, _ in self.outcomes])

    def sample(self, count: int, seed: int) -> list[PlannedDocument]:
        """`count` postcards drawn from the source."""
        return random.Random(seed).choices(self.documents, self.chances, k=count)

    def _document(self, choices: Choices) -> PlannedDocument:
        topics = [" ".join(["arrival", *(choices[name] for name in self.named)]), "days", "evening"]
        spans = tuple(Span(sentence.format(**choices)) for sentence in SENTENCES.values())
        return PlannedDocument(self.prompt, (Stage(tuple(Item(topic, 1) for topic in topics), spans),))

    @staticmethod
    def tokenizer() -> Tokenizer:
        """A word-level tokenizer for all postcards, whatever their plans name."""
        words = {word for name in CHOICES for word in law(name)}
        words |= {word for sentence in SENTENCES.values() for word in sentence.split() if word[0] != "{"}
        return Tokenizer.words(words | {*CHOICES, *SENTENCES, "name", "1"})

    @cached_property
    def joint(self) -> np.ndarray:
        """p(z, x(1), x(2), x(3)) as an array [Z, X_1, X_2, X_3]; texts are numbered as they first occur."""
        rows = [(doc.stages[0].plan[0].topic, *(span.text for span in doc.stages[0].spans)) for doc in self.documents]
        numbers = [{text: i for i, text in enumerate(dict.fromkeys(column))} for column in zip(*rows, strict=True)]
        joint = np.zeros([len(texts) for texts in numbers])
        for chance, row in zip(self.chances, rows, strict=True):
            joint[tuple(texts[text] for texts, text in zip(numbers, row, strict=True))] += chance
        return joint

    def contradictions(self, document: PlannedDocument) -> tuple[str, ...]:
        """The choices that a postcard's plan and sentences make differently; `UNREADABLE` for any other text."""
        stage = document.stages[0]
        named = stage.plan[0].topic.split()[1:]
        if len(document.stages) != 1 or len(stage.spans) != len(SENTENCES) or len(named) != len(self.named):
            return (UNREADABLE,)
        made: dict[str, set[str]] = {name: {word} for name, word in zip(self.named, named, strict=True)}
        for sentence, span in zip(SENTENCES.values(), stage.spans, strict=True):
            found = _read(sentence.split(), span.text.split())
            if found is None:
                return (UNREADABLE,)
            for name, word in found.items():
                made.setdefault(name, set()).add(word)
        return tuple(name for name in CHOICES if len(made[name]) > 1)


def _read(sentence: Sequence[str], words: Sequence[str]) -> Choices | None:
    """The choices that `words` state, or None if they are not the sentence."""
    if len(words) != len(sentence):
        return None
    found = {slot[1:-1]: word for slot, word in zip(sentence, words, strict=True) if slot[0] == "{"}
    fixed = all(slot == word for slot, word in zip(sentence, words, strict=True) if slot[0] != "{")
    return found if fixed and all(word in law(name) for name, word in found.items()) else None
