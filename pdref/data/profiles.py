"""Profiles: a synthetic corpus whose truth is known.

A prompt gives four facts of a person. The plan opens with the choices that all spans share (pronoun and season),
then names two to four topics. Each span is one sentence of a template grammar. Four documents in ten go on to a
second stage that recalls details which only the first stage's text contains.

The source knows its own probabilities, so a model's nats have a floor, and its own grammar, so every span and every
document is right or wrong. One dial, `difficulty` (1 to 3), sets the templates per topic, the values per fact, the
details per topic and, at 3, shuffles the facts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pdref.data.profiles_grammar import (
    BODY_COUNTS,
    BODY_TOPICS,
    DETAIL_VALUES,
    DETAIL_WEIGHTS,
    DETAILS,
    FACT_VALUES,
    FACTS,
    PRONOUNS,
    RECALL_COUNTS,
    SEASONS,
    SECOND_STAGE,
    SENTENCES,
    TEMPLATE_WEIGHTS,
    TEMPLATES,
)
from pdref.text.document import Item, PlannedDocument, Span, Stage
from pdref.text.layout import Grammar
from pdref.text.tokenizer import Tokenizer

Slots = dict[str, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which spans are right (grammatical, consistent, of the planned length), stage by stage, and what is wrong."""

    spans: tuple[bool, ...]
    problems: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Every span and the plan are right."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Nats:
    """Information in nats, by who pays for it: the plan (its end included), the stages' end, the content."""

    plan: float = 0.0
    tag: float = 0.0
    content: float = 0.0

    @property
    def total(self) -> float:
        """All of the response."""
        return self.plan + self.tag + self.content


@dataclass(frozen=True)
class Profiles:
    """The source. `grammar.grid` rounds lengths up; `names_choices=False` leaves pronoun and season out of the plan.

    Raises ValueError for a difficulty other than 1, 2 or 3.
    """

    difficulty: int = 2
    grammar: Grammar = field(default_factory=lambda: Grammar(grid=4, echo=True))
    names_choices: bool = True

    def __post_init__(self) -> None:
        if self.difficulty not in (1, 2, 3):
            raise ValueError(f"difficulty is 1, 2 or 3, not {self.difficulty!r}")

    # What the dial sets.

    @cached_property
    def facts(self) -> dict[str, list[str]]:
        """Values of each fact."""
        return {key: words.split()[: FACT_VALUES[self.difficulty - 1]] for key, words in FACTS.items()}

    @cached_property
    def details(self) -> dict[str, dict[str, float]]:
        """Per topic, its details and their probabilities."""
        count = DETAIL_VALUES[self.difficulty - 1]
        return {t: _normalised(words.split()[:count], DETAIL_WEIGHTS) for t, words in DETAILS.items()}

    @cached_property
    def templates(self) -> dict[str, dict[str, float]]:
        """Per topic, its templates and their probabilities."""
        count = SENTENCES[self.difficulty - 1]
        return {t: _normalised(lines[:count], TEMPLATE_WEIGHTS) for t, lines in TEMPLATES.items()}

    @cached_property
    def lengths(self) -> dict[str, dict[int, float]]:
        """Per topic, the probability of each planned length (in grid cells)."""
        lengths: dict[str, dict[int, float]] = {}
        for topic, templates in self.templates.items():
            chances = lengths[topic] = {}
            for template, chance in templates.items():
                cells = self.cells(template)
                chances[cells] = chances.get(cells, 0.0) + chance
        return lengths

    def cells(self, text: str) -> int:
        """Grid cells that a sentence or template of words needs."""
        return math.ceil(len(text.split()) / self.grammar.grid)

    def tokenizer(self, *more: str) -> Tokenizer:
        """A word-level tokenizer for everything this source can write, and `more` words."""
        words = {word for t in self.templates.values() for line in t for word in line.split() if word[0] != "{"}
        words |= {
            *FACTS,
            *TEMPLATES,
            *SEASONS,
            *(form for forms in PRONOUNS.values() for form in forms.values()),
        }
        words |= {value for values in self.facts.values() for value in values}
        words |= {detail for details in self.details.values() for detail in details}
        return Tokenizer.words(words | {str(n) for n in range(1, 25)} | {*more})

    # Writing.

    def sample(self, count: int, seed: int) -> list[PlannedDocument]:
        """`count` documents drawn from the source."""
        rng = random.Random(seed)
        return [self._document(rng) for _ in range(count)]

    def _document(self, rng: random.Random) -> PlannedDocument:
        facts = {key: rng.choice(values) for key, values in self.facts.items()}
        pairs = list(facts.items())
        if self.difficulty == 3:
            rng.shuffle(pairs)
        prompt = " ".join(f"{key} {value}" for key, value in pairs)
        pronoun, season = rng.choice([*PRONOUNS]), rng.choice(SEASONS)
        slots = facts | PRONOUNS[pronoun] | {"season": season}
        opening = f"opening {pronoun} {season}" if self.names_choices else "opening"

        body = rng.sample(BODY_TOPICS, rng.choice(BODY_COUNTS))
        details = {t: _draw(rng, self.details[t]) for t in ["opening", *body]}
        stages = [self._stage(rng, [(t, opening if t == "opening" else t, details[t]) for t in details], slots)]
        if rng.random() < SECOND_STAGE:
            recalled = rng.sample(body, rng.choice(RECALL_COUNTS))
            stages.append(self._stage(rng, [("recall", f"recall {t}", details[t]) for t in recalled], slots))
        return PlannedDocument(prompt, tuple(stages))

    def _stage(self, rng: random.Random, parts: Iterable[tuple[str, str, str]], slots: Slots) -> Stage:
        plan, spans = [], []
        for kind, topic, detail in parts:
            text = _draw(rng, self.templates[kind]).format(**slots, detail=detail)
            plan.append(Item(topic, self.cells(text)))
            spans.append(Span(text, plan[-1].length * self.grammar.grid - len(text.split())))
        return Stage(tuple(plan), tuple(spans))

    # Reading.

    def judge(self, document: PlannedDocument) -> Verdict:
        """Which spans are grammatical and agree with the prompt, the plan's choices, and what they recall."""
        problems = self._plan_problems(document)
        shared = _facts(document.prompt) | self._choices(document)
        verdicts: list[bool] = []
        details: Slots = {}
        for s, stage in enumerate(document.stages):
            for item, span in zip(stage.plan, stage.spans, strict=True):
                kind, _, about = item.topic.partition(" ")
                found = self._read(kind, span.text)
                if found is not None:
                    details.setdefault(kind, found[1]["detail"])
                wrong = None
                if found is None:
                    wrong = "is not grammatical"
                elif item.length != self.cells(span.text) or span.pads + len(span.text.split()) != self._tokens(item):
                    wrong = "is not as long as planned"
                else:
                    expected = shared | ({"detail": details.get(about, "")} if kind == "recall" else {})
                    clash = [slot for slot in found[1] if slot in expected and found[1][slot] != expected[slot]]
                    wrong = f"contradicts {', '.join(clash)}" if clash else None
                    if not self.names_choices:
                        shared = _shown_choices(found[1]) | shared
                verdicts.append(wrong is None)
                if wrong:
                    problems.append(f"span {item.topic!r} of stage {s} {wrong}: {span.text!r}")
        return Verdict(tuple(verdicts), tuple(problems))

    def nats(self, document: PlannedDocument) -> Nats:
        """Exact surprisal of a document's response given its prompt; infinite if the source cannot write it."""
        if not self.judge(document).right:
            return Nats(math.inf, math.inf, math.inf)
        first, *later = document.stages
        body = len(first.plan) - 1
        plan = self._choice_nats + math.log(len(BODY_COUNTS)) + _ordered_nats(len(BODY_TOPICS), body)
        tag = -math.log(SECOND_STAGE if later else 1 - SECOND_STAGE)
        if later:
            plan += math.log(len(RECALL_COUNTS)) + _ordered_nats(body, len(later[0].plan))
        content = 0.0
        for stage in document.stages:
            for item, span in zip(stage.plan, stage.spans, strict=True):
                kind = item.topic.split()[0]
                template, slots = self._read(kind, span.text) or ("", {})
                length = self.lengths[kind][item.length]
                plan -= math.log(length)
                content -= math.log(self.templates[kind][template] / length)
                if kind != "recall":
                    content -= math.log(self.details[kind][slots["detail"]])
        if not self.names_choices:
            content += math.log(len(PRONOUNS) * len(SEASONS))
        return Nats(plan, tag, content)

    def entropy(self) -> Nats:
        """Expected `nats` of a document, in closed form."""
        body = _mean(BODY_COUNTS)
        spans = {"opening": 1.0, **dict.fromkeys(BODY_TOPICS, body / len(BODY_TOPICS))}
        spans["recall"] = SECOND_STAGE * _mean(RECALL_COUNTS)
        recalls = [_ordered_nats(n, m) for n in BODY_COUNTS for m in RECALL_COUNTS]
        plan = (
            self._choice_nats
            + math.log(len(BODY_COUNTS))
            + _mean([_ordered_nats(len(BODY_TOPICS), n) for n in BODY_COUNTS])
            + SECOND_STAGE * (math.log(len(RECALL_COUNTS)) + _mean(recalls))
            + sum(count * _entropy(self.lengths[kind]) for kind, count in spans.items())
        )
        content = sum(n * (_entropy(self.templates[k]) - _entropy(self.lengths[k])) for k, n in spans.items())
        content += sum(n * _entropy(self.details[k]) for k, n in spans.items() if k != "recall")
        if not self.names_choices:
            content += math.log(len(PRONOUNS) * len(SEASONS))
        return Nats(plan, _entropy({0: SECOND_STAGE, 1: 1 - SECOND_STAGE}), content)

    @property
    def _choice_nats(self) -> float:
        return math.log(len(PRONOUNS) * len(SEASONS)) if self.names_choices else 0.0

    def _tokens(self, item: Item) -> int:
        return item.length * self.grammar.grid

    def _choices(self, document: PlannedDocument) -> Slots:
        words = document.stages[0].plan[0].topic.split()
        if self.names_choices and len(words) == 3 and words[1] in PRONOUNS:
            return PRONOUNS[words[1]] | {"season": words[2]}
        return {}

    def _plan_problems(self, document: PlannedDocument) -> list[str]:
        first, *later = ([item.topic for item in stage.plan] for stage in document.stages)
        problems = []
        opening = first[0].split()
        named = len(opening) == 3 and opening[1] in PRONOUNS and opening[2] in SEASONS
        if opening[0] != "opening" or (not named if self.names_choices else len(opening) != 1):
            problems.append(f"the plan opens with {first[0]!r}")
        body = first[1:]
        if len(body) not in BODY_COUNTS or len(set(body)) != len(body) or not set(body) <= set(BODY_TOPICS):
            problems.append(f"the plan names the topics {body}")
        if len(later) > 1:
            problems.append(f"{len(document.stages)} stages")
        for recalled in later:
            told = {f"recall {topic}" for topic in body}
            if len(recalled) not in RECALL_COUNTS or len(set(recalled)) != len(recalled) or not set(recalled) <= told:
                problems.append(f"the second plan names the topics {recalled}")
        return problems

    def _read(self, kind: str, text: str) -> tuple[str, Slots] | None:
        """The template and slots of a sentence, or None if it is not grammatical."""
        words = text.split()
        for template in self.templates.get(kind, {}):
            slots = _match(template.split(), words)
            if slots is not None and self._admissible(kind, slots):
                return template, slots
        return None

    def _admissible(self, kind: str, slots: Slots) -> bool:
        pronouns = [p for p in PRONOUNS.values() if all(slots.get(form, word) == word for form, word in p.items())]
        facts = all(slots[key] in values for key, values in self.facts.items() if key in slots)
        known = {d for t in self.details.values() for d in t} if kind == "recall" else self.details[kind]
        return bool(pronouns) and facts and slots.get("season", "spring") in SEASONS and slots["detail"] in known


def _shown_choices(slots: Slots) -> Slots:
    """The season, and all forms of the pronoun, that a sentence shows; a form that two pronouns share tells neither."""
    forms = {form: word for form, word in slots.items() if form in ("sub", "obj", "pos")}
    who = [pronoun for pronoun in PRONOUNS.values() if forms and forms.items() <= pronoun.items()]
    return {slot: slots[slot] for slot in ("season",) if slot in slots} | (who[0] if len(who) == 1 else {})


def _match(pattern: Sequence[str], words: Sequence[str]) -> Slots | None:
    """Bind a template's slots to words; a slot that stands twice must be the same twice."""
    if len(pattern) != len(words):
        return None
    slots: Slots = {}
    for expected, word in zip(pattern, words, strict=True):
        if expected[0] == "{":
            if slots.setdefault(expected[1:-1], word) != word:
                return None
        elif expected != word:
            return None
    return slots


def _facts(prompt: str) -> Slots:
    words = prompt.split()
    return dict(zip(words[::2], words[1::2], strict=False))


def _normalised(values: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    total = sum(weights[: len(values)])
    return {value: weight / total for value, weight in zip(values, weights, strict=False)}


def _draw(rng: random.Random, chances: dict[str, float]) -> str:
    return rng.choices(list(chances), list(chances.values()))[0]


def _ordered_nats(things: int, taken: int) -> float:
    """-log of the chance of one ordered choice of `taken` out of `things`."""
    return math.log(math.perm(things, taken))


def _entropy(chances: dict) -> float:
    return -sum(p * math.log(p) for p in chances.values() if p)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
