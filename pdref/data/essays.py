"""Essays: longer documents whose global constraints are fixed early and tested late.

A thesis gives each kind of value (entities, attributes, a stance) one value. An essay is sections of paragraphs of
sentences; every paragraph has one sentence of each kind, in one order, and every sentence five words, so a paragraph
is a fixed number of tokens. A sentence states the thesis' value of its kind or, independently with probability
`slip`, another one drawn uniformly: a writer who slips. Headings need no memory: each section has the next of the
`SUBJECTS` in a circle, each paragraph the next of the `ERAS`. So values alone are what a reader may forget.

One essay has many forms, all `PlannedDocument`s: `flat`, `outlined` (an item a section), and `tree`s of any depth up
to sentences, in which every inner span is itself an outline.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

from pdref.data.essays_grammar import ERAS, PARTS, SENTENCE_END, SUBJECTS, VALUES, VERBS
from pdref.data.profiles import Nats, Verdict
from pdref.text.document import Item, PlannedDocument, Span, Stage
from pdref.text.layout import Grammar
from pdref.text.listing import ITEM_END, list_items
from pdref.text.tokenizer import Tokenizer

WORDS = 5  # of a sentence
VALUE_AT = 3  # the place of the value among them
ASKS = "in"  # between a prompt's thesis and the parts that it asks for


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence: its kind, the value it states, and its headings."""

    kind: str
    value: str
    era: str
    subject: str

    @property
    def text(self) -> str:
        """As written."""
        return f"{self.era} {self.subject} {VERBS[self.kind]} {self.value} {SENTENCE_END}"


Paragraph = tuple[Sentence, ...]
Section = tuple[Paragraph, ...]


@dataclass(frozen=True, slots=True)
class Essay:
    """A thesis (a value for each kind) and the sections that were written about it."""

    thesis: dict[str, str]
    sections: tuple[Section, ...]

    @property
    def sentences(self) -> list[Sentence]:
        """All of them, in order."""
        return [sentence for section in self.sections for paragraph in section for sentence in paragraph]

    @property
    def text(self) -> str:
        """All sentences in a line."""
        return _written(self.sentences)

    @property
    def statement(self) -> str:
        """The thesis in words: "town aston guide nell"."""
        return " ".join(f"{kind} {value}" for kind, value in self.thesis.items())


@dataclass(frozen=True, slots=True)
class Violation:
    """The sentence with this number states `stated`, not what the thesis has for its kind, `distance` tokens earlier.

    `kind`, `stated` and `distance` are None where the words are no sentence.
    """

    kind: str | None
    sentence: int
    distance: int | None
    stated: str | None


@dataclass(frozen=True)
class Essays:
    """The source: `kinds` constraints of `values` values each; `sections` of `paragraphs`; `slip` is its error rate.

    Raises ValueError for a dial outside what the words allow.
    """

    kinds: int = 4
    values: int = 4
    sections: int = 4
    paragraphs: int = 2
    slip: float = 0.0
    grammar: Grammar = field(default_factory=lambda: Grammar(grid=1, echo=True))

    def __post_init__(self) -> None:
        most = {"kinds": len(VERBS), "values": 8, "sections": len(SUBJECTS), "paragraphs": len(ERAS)}
        for dial, high in most.items():
            low = 2 if dial == "values" else 1
            if not low <= getattr(self, dial) <= high:
                raise ValueError(f"{dial} is {low} to {high}, not {getattr(self, dial)!r}")
        if not 0 <= self.slip < 1:
            raise ValueError(f"slip is a probability below 1, not {self.slip!r}")

    # What the dials set.

    @cached_property
    def words(self) -> dict[str, list[str]]:
        """The values of each kind."""
        return {kind: VALUES[kind].split()[: self.values] for kind in [*VERBS][: self.kinds]}

    @property
    def paragraph_tokens(self) -> int:
        """Tokens of a paragraph."""
        return self.kinds * WORDS

    def tokenizer(self, *more: str) -> Tokenizer:
        """A word-level tokenizer for everything this source can write in any form, and `more` words."""
        words = {*VERBS, *VERBS.values(), *SUBJECTS, *ERAS, SENTENCE_END, ITEM_END, *more}
        words |= {value for values in self.words.values() for value in values}
        example = self.essays(1, 0)[0]
        forms = [self.flat(example), self.flat(example, planned=True), *map(self.tree, [example] * 3, (1, 2, 3))]
        plans = [item for form in forms for stage in form.stages for item in stage.plan]
        words |= {word for item in plans for word in str(item).split()}
        words |= {word for form in forms for word in form.prompt.split()}
        return Tokenizer.words(words)

    # Writing.

    def essays(self, count: int, seed: int) -> list[Essay]:
        """`count` essays drawn from the source."""
        rng = random.Random(seed)
        return [self._essay(rng) for _ in range(count)]

    def sample(self, count: int, seed: int) -> list[PlannedDocument]:
        """`count` essays in outlined form."""
        return [self.outlined(essay) for essay in self.essays(count, seed)]

    def _essay(self, rng: random.Random) -> Essay:
        thesis = {kind: rng.choice(values) for kind, values in self.words.items()}
        first = rng.randrange(len(SUBJECTS))
        subjects = [SUBJECTS[(first + k) % len(SUBJECTS)] for k in range(self.sections)]
        return Essay(
            thesis,
            tuple(
                tuple(self._paragraph(rng, thesis, era, subject) for era in ERAS[: self.paragraphs])
                for subject in subjects
            ),
        )

    def _paragraph(self, rng: random.Random, thesis: dict[str, str], era: str, subject: str) -> Paragraph:
        return tuple(Sentence(kind, self._stated(rng, kind, thesis[kind]), era, subject) for kind in thesis)

    def _stated(self, rng: random.Random, kind: str, value: str) -> str:
        if rng.random() < self.slip:
            return rng.choice([other for other in self.words[kind] if other != value])
        return value

    def drafted(self, essay: Essay, seed: int) -> Essay:
        """What writers draft who know the headings and not each other's thesis.

        The first section is the essay's; each other one is true to a thesis of its own, drawn as the essay's was.
        """
        rng = random.Random(seed)
        first, *others = essay.sections
        drafts = [first]
        for section in others:
            own = {kind: rng.choice(values) for kind, values in self.words.items()}
            drafts.append(tuple(self._paragraph(rng, own, p[0].era, p[0].subject) for p in section))
        return Essay(essay.thesis, tuple(drafts))

    # Forms.

    def flat(self, essay: Essay, planned: bool = False) -> PlannedDocument:
        """The thesis as the prompt, then all sentences as one span; `planned` repeats the thesis in its topic."""
        plan, spans = self._stage([(essay.statement if planned else "essay", essay.text)])
        return PlannedDocument(essay.statement, (Stage(plan, spans),))

    def outlined(self, essay: Essay, named: bool = True) -> PlannedDocument:
        """A tree of depth 1: an item and a span for each section."""
        return self.tree(essay, 1, named)

    def tree(self, essay: Essay, depth: int, named: bool = True) -> PlannedDocument:
        """Levels as stages: sections, then paragraphs, then sentences; the spans of the last one are the text.

        The spans of every level before are outlines, and the items that they list are the plan of the next. The topic
        of a section is its subject and, if `named`, what it is to say, a value for each kind; then the prompt is the
        thesis. If not, nobody is told the thesis. The prompt asks for the parts of the text: "town dover in
        8 paragraphs", or "essay in 8 paragraphs". Raises ValueError for a depth outside 1 to 3.
        """
        if not 1 <= depth <= len(PARTS):
            raise ValueError(f"a tree of essays has a depth of 1 to {len(PARTS)}, not {depth!r}")
        said = [*essay.thesis.values()] if named else []
        parts = [(" ".join((section[0][0].subject, *said)), _flattened(section)) for section in essay.sections]
        stages: list[Stage] = []
        for level in range(1, depth + 1):
            children = [(topic, _divided(sentences, level)) for topic, sentences in parts]
            texts = [
                (topic, _written(sentences) if level == depth else self._outline(children_of, level + 1, depth))
                for (topic, sentences), (_, children_of) in zip(parts, children, strict=True)
            ]
            stages.append(Stage(*self._stage(texts)))
            parts = [(_heading(child, level + 1), child) for _, children_of in children for child in children_of]
        asked = f"{ASKS} {len(stages[-1].plan)} {PARTS[depth - 1]}"
        return PlannedDocument(f"{essay.statement if named else 'essay'} {asked}", tuple(stages))

    def _outline(self, children: Sequence[Sequence[Sentence]], level: int, depth: int) -> str:
        """The items of the parts of a span, as its text."""
        texts = [
            self._outline(_divided(child, level), level + 1, depth) if level < depth else _written(child)
            for child in children
        ]
        headings = [_heading(child, level) for child in children]
        return list_items(Item(topic, self._cells(text)) for topic, text in zip(headings, texts, strict=True))

    def _cells(self, text: str) -> int:
        return math.ceil(len(text.split()) / self.grammar.grid)

    def _stage(self, parts: Sequence[tuple[str, str]]) -> tuple[tuple[Item, ...], tuple[Span, ...]]:
        plan = tuple(Item(topic, self._cells(text)) for topic, text in parts)
        texts = (text for _, text in parts)
        spans = (Span(t, i.length * self.grammar.grid - len(t.split())) for i, t in zip(plan, texts, strict=True))
        return plan, tuple(spans)

    # Reading.

    def read(self, text: str) -> list[Sentence | None]:
        """The sentences of a text, five words each; None where the words are no sentence of this source."""
        words = text.split()
        return [self._sentence(words[i : i + WORDS]) for i in range(0, len(words), WORDS)]

    def _sentence(self, words: Sequence[str]) -> Sentence | None:
        if len(words) != WORDS:
            return None
        era, subject, verb, value, end = words
        kind = next((kind for kind in self.words if VERBS[kind] == verb), "")
        right = era in ERAS and subject in SUBJECTS and value in self.words.get(kind, ()) and end == SENTENCE_END
        return Sentence(kind, value, era, subject) if right else None

    def violations(self, text: str, thesis: dict[str, str], between: int = 0) -> list[Violation]:
        """The sentences of `text` that contradict `thesis` or are no sentences; none of that raises.

        A kind that the thesis leaves out is free. Distances are in tokens, from where the thesis' statement has the
        value to where the sentence has its own, with so many tokens `between` the statement and the text.
        """
        found = []
        for i, sentence in enumerate(self.read(text)):
            if sentence is None:
                found.append(Violation(None, i, None, None))
            elif sentence.value != thesis.get(sentence.kind, sentence.value):
                # The statement has its k-th of K values at place 2k + 1 of 2K.
                left = 2 * len(thesis) - (2 * [*thesis].index(sentence.kind) + 1)
                distance = left + between + i * WORDS + VALUE_AT
                found.append(Violation(sentence.kind, i, distance, sentence.value))
        return found

    def thesis(self, document: PlannedDocument) -> dict[str, str]:
        """The thesis that the prompt states; if it states none, of each kind the value that the text states first."""
        said = document.prompt.split(f" {ASKS} ")[0].split()
        if len(said) > 1:
            return dict(zip(said[::2], said[1::2], strict=False))
        text = " ".join(span.text for span in document.stages[-1].spans)
        stated = [(s.kind, s.value) for s in self.read(text) if s is not None]
        return dict(reversed(stated))

    def judge(self, document: PlannedDocument) -> Verdict:
        """Which of the text's spans have the sentences of their place, in order and agreeing with the `thesis`.

        The last stage is the text; its spans may divide the sentences anyhow.
        """
        thesis = self.thesis(document)
        spans, problems, count = [], [], 0
        subject = ""
        for item, span in zip(document.stages[-1].plan, document.stages[-1].spans, strict=True):
            wrong = "" if span.text else "is empty"
            for sentence in self.read(span.text):
                place, kind = divmod(count, self.kinds)
                section, era = divmod(place, self.paragraphs)
                if sentence is None:
                    wrong = wrong or "is not grammatical"
                else:
                    subject = subject or sentence.subject
                    wanted = SUBJECTS[(SUBJECTS.index(subject) + section) % len(SUBJECTS)]
                    if (sentence.era, sentence.subject) != (ERAS[era % len(ERAS)], wanted):
                        wrong = wrong or "is under a wrong heading"
                    elif sentence.kind != [*self.words][kind]:
                        wrong = wrong or "is out of order"
                    elif sentence.value != thesis.get(sentence.kind, sentence.value):
                        wrong = wrong or f"contradicts {sentence.kind}"
                count += 1
            spans.append(not wrong)
            problems += [f"span {item.topic!r} {wrong}: {span.text!r}"] * bool(wrong)
        if count != (wanted := self.sections * self.paragraphs * self.kinds):
            problems.append(f"{count} sentences, not {wanted}")
        return Verdict(tuple(spans), tuple(problems))

    def nats(self, essay: Essay) -> Nats:
        """Exact surprisal of an essay given its thesis; infinite if the source cannot write it.

        `plan` is the choice of the first subject, which an outline makes and a flat text pays in its content;
        `content` is what is stated, slips included.
        """
        right = essay.text == _written(self._headed(essay))
        slips = sum(sentence.value != essay.thesis[sentence.kind] for sentence in essay.sentences)
        if not right or (slips and not self.slip):
            return Nats(math.inf, math.inf, math.inf)
        content = -(len(essay.sentences) - slips) * math.log1p(-self.slip)
        content -= slips * math.log(self.slip / (self.values - 1)) if slips else 0.0
        return Nats(plan=math.log(len(SUBJECTS)), content=content)

    def entropy(self) -> Nats:
        """Expected `nats` of an essay, in closed form."""
        e = self.slip
        each = -(1 - e) * math.log1p(-e) - (e * math.log(e / (self.values - 1)) if e else 0.0)
        return Nats(plan=math.log(len(SUBJECTS)), content=self.sections * self.paragraphs * self.kinds * each)

    def _headed(self, essay: Essay) -> list[Sentence]:
        """What the essay states, under the headings and in the order that the source would give it."""
        first = SUBJECTS.index(essay.sections[0][0][0].subject)
        values = iter(sentence.value for sentence in essay.sentences)
        return [
            Sentence(kind, next(values, ""), era, SUBJECTS[(first + k) % len(SUBJECTS)])
            for k in range(self.sections)
            for era in ERAS[: self.paragraphs]
            for kind in self.words
        ]


def _written(sentences: Sequence[Sentence]) -> str:
    return " ".join(sentence.text for sentence in sentences)


def _flattened(section: Section) -> list[Sentence]:
    return [sentence for paragraph in section for sentence in paragraph]


def _heading(sentences: Sequence[Sentence], level: int) -> str:
    """The topic of a paragraph (level 2) or a sentence (level 3)."""
    first = sentences[0]
    return " ".join((first.era, first.subject, first.kind)[:level])


def _divided(sentences: Sequence[Sentence], level: int) -> list[Sequence[Sentence]]:
    """The parts of a section (level 1), its paragraphs, or of a paragraph, its sentences."""
    if level >= 2:
        return [[sentence] for sentence in sentences]
    return [list(group) for _, group in groupby(sentences, key=lambda sentence: sentence.era)]
