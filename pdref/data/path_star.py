"""Path-star: the smallest task that next-token training gets wrong (Bachmann and Nagarajan 2024).

A start node has `degree` arms, each of `length` nodes counting the start. A prompt lists the edges in random
order, then the start and the end of one arm, the goal: "ba ke | ke du | ... / ba lo". The answer is the path
between them, one span under a plan of one item. The prompt decides it, so the source's entropy is zero. Given
the path so far, every node but the second has one candidate; the second has `degree`, and only the goal, read
backwards, tells which. Source: arXiv 2403.06963.

Variants. The answer may be written `reversed`, from the goal back to the start, where every node is a look-up. The
plan may name the second node ("arm"), or hold the path, from the start ("forwards") or from the goal ("backwards"):
all three put the decision into the plan, but only the last is easy to write. `teacherless` shows a model nothing of
the path it is to predict.

Three traps. Evaluation: the two ways to be marked, given the true path so far and alone, are kept apart as two
`Marks` (the paper's released code writes both under one name, and the mean over places for each place). Averages:
runs either solve the task or stay at chance, so count the solved ones, seed by seed. Repetition: on a fixed set of
graphs a model can learn second nodes by heart; `sample` with a new seed never ends.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import inf
from typing import Literal, get_args

from pdref.data.profiles import Nats, Verdict
from pdref.text.document import Item, PlannedDocument, Span, Stage
from pdref.text.layout import Layout, Role
from pdref.text.tokenizer import Tokenizer

Plan = Literal["length", "arm", "forwards", "backwards"]
TOPIC = "path"
EDGE, QUESTION = "|", "/"  # between edges, and before start and goal
SYLLABLES = tuple(map("".join, product("bdfghjklmnprstvwz", "aeiou")))


@dataclass(frozen=True, slots=True)
class Marks:
    """Shares of a set of answers: nodes right at each written place, plans, whole documents, and paths along edges."""

    places: tuple[float, ...]
    plans: float
    exact: float
    walks: float

    def solved(self, share: float = 0.95) -> bool:
        """Whether a run counts as one that solved the task."""
        return self.exact >= share


def teacherless(layout: Layout) -> Layout:
    """The layout [B, T] with <mask> for every token of a path; targets are the tokens of `layout`.

    A causal model then predicts all nodes from the prompt and the plan, and nothing of the path helps it to predict
    the rest (arXiv 2403.06963). Generation is one forward on a layout whose paths are masked.
    """
    return layout.masked(layout.role == Role.CONTENT)


@dataclass(frozen=True, slots=True)
class PathStar:
    """The source G(degree, length), its nodes named afresh in every graph from a stock of `names`.

    `reversed` and `plan` choose a variant; the graphs of a seed are the same in all of them.
    Its documents are written on a grid of 1. Raises ValueError for fewer than two arms, arms of fewer than
    three nodes (the second would be the goal), a stock of names too small or larger than `SYLLABLES`, or a plan
    that is none of `Plan`.
    """

    degree: int = 2
    length: int = 5
    names: int = 30
    reversed: bool = False
    plan: Plan = "length"

    def __post_init__(self) -> None:
        if self.degree < 2 or self.length < 3:
            raise ValueError(f"a path-star has at least 2 arms of at least 3 nodes, not {self.degree} of {self.length}")
        if not self.nodes <= self.names <= len(SYLLABLES):
            raise ValueError(f"{self.names} names: {self.nodes} nodes need as many, and there are {len(SYLLABLES)}")
        if self.plan not in get_args(Plan):
            raise ValueError(f"a plan is one of {', '.join(get_args(Plan))}, not {self.plan!r}")

    @property
    def nodes(self) -> int:
        """Nodes of a graph."""
        return 1 + self.degree * (self.length - 1)

    @property
    def guesses(self) -> bool:
        """Whether something must be written of an arm before anything written tells which."""
        return self.plan != "backwards" and not (self.reversed and self.plan == "length")

    @property
    def chance(self) -> float:
        """Exact documents of one who looks up edges, either way, and guesses the arm where several edges lead on."""
        return 1 / self.degree if self.guesses else 1.0

    def chances(self, forced: bool) -> tuple[float, ...]:
        """The same one's share of nodes right at each written place, given the true plan and path so far or alone.

        The guess falls into the plan where the plan holds it. Start and goal are in the prompt and always right.
        """
        chances = [1.0] * self.length
        if self.guesses and not self.reversed:
            chances[1] = self.chance if not forced or self.plan == "length" else 1.0
            chances[2:-1] = [1.0 if forced else self.chance] * (self.length - 3)
        return tuple(chances)

    def tokenizer(self, *more: str) -> Tokenizer:
        """A word-level tokenizer for everything this source can write, and `more` words."""
        return Tokenizer.words({*SYLLABLES[: self.names], EDGE, QUESTION, TOPIC, str(self.length), *more})

    def sample(self, count: int, seed: int) -> list[PlannedDocument]:
        """`count` documents drawn from the source."""
        rng = random.Random(seed)
        return [self._document(rng) for _ in range(count)]

    def _document(self, rng: random.Random) -> PlannedDocument:
        start, *others = rng.sample(SYLLABLES[: self.names], self.nodes)
        arms = [(start, *others[k :: self.degree]) for k in range(self.degree)]
        edges = [f"{a} {b}" for arm in arms for a, b in pairwise(arm)]
        rng.shuffle(edges)
        path = rng.choice(arms)
        return self._told(f"{f' {EDGE} '.join(edges)} {QUESTION} {start} {path[-1]}", path, self._ordered(path))

    def answered(self, prompt: str, written: Sequence[str]) -> PlannedDocument:
        """A document of the true plan and the nodes `written` for a path, such as a model's best given the true past.

        Raises ValueError for a prompt that asks for no path.
        """
        return self._told(prompt, self.path(prompt), written)

    def _told(self, prompt: str, path: Sequence[str], written: Sequence[str]) -> PlannedDocument:
        return PlannedDocument(prompt, (Stage((self._item(path),), (Span(" ".join(written)),)),))

    def _item(self, path: Sequence[str]) -> Item:
        decision = {"length": (), "arm": path[1:2], "forwards": path, "backwards": path[::-1]}[self.plan]
        return Item(" ".join((TOPIC, *decision)), self.length)

    def _ordered(self, path: Sequence[str]) -> Sequence[str]:
        return path[::-1] if self.reversed else path

    # Reading.

    def edges(self, prompt: str) -> list[tuple[str, str]]:
        """The edges that a prompt lists. Raises ValueError for text that is no such prompt."""
        listed, *question = prompt.split(f" {QUESTION} ")
        pairs = [tuple(edge.split()) for edge in listed.split(f" {EDGE} ")]
        if any(len(pair) != 2 for pair in (*pairs, *(q.split() for q in question))) or len(question) != 1:
            raise ValueError(f"a prompt is 'a b {EDGE} b c {EDGE} ... {QUESTION} start goal', not {prompt!r}")
        return pairs  # type: ignore[return-value]

    def path(self, prompt: str) -> tuple[str, ...]:
        """The path that a prompt asks for, read backwards from the goal. Raises ValueError without one."""
        before = {b: a for a, b in self.edges(prompt)}
        start, goal = prompt.split()[-2:]
        path = [goal]
        while path[0] != start:
            if path[0] not in before or len(path) > len(before):
                raise ValueError(f"no path leads from {start!r} to {goal!r} in {prompt!r}")
            path.insert(0, before[path[0]])
        return tuple(path)

    def marks(self, document: PlannedDocument) -> tuple[bool, ...]:
        """Which nodes of the path are right, place by written place; written forwards, the second takes foresight."""
        written = document.stages[0].spans[0].text.split()
        path = self._ordered(self.path(document.prompt))
        return tuple(k < len(written) and written[k] == node for k, node in enumerate(path))

    def is_walk(self, document: PlannedDocument) -> bool:
        """Whether every step that is written follows an edge: locally right, wherever it leads."""
        written = self._ordered(document.stages[0].spans[0].text.split())
        return set(pairwise(written)) <= set(self.edges(document.prompt))

    def mark(self, answers: Iterable[PlannedDocument | None]) -> Marks:
        """The shares of a set of answers; None, text that is no document, is wrong everywhere.

        Raises ValueError for no answers.
        """
        rows = [self._row(answer) for answer in answers]
        if not rows:
            raise ValueError("no answers to mark")
        places, *shares = zip(*rows, strict=True)
        return Marks(tuple(map(_share, zip(*places, strict=True))), *map(_share, shares))

    def _row(self, answer: PlannedDocument | None) -> tuple[tuple[bool, ...], bool, bool, bool]:
        if answer is None:
            return (False,) * self.length, False, False, False
        return self.marks(answer), self._plans_well(answer), self.judge(answer).right, self.is_walk(answer)

    def _plans_well(self, document: PlannedDocument) -> bool:
        return [stage.plan for stage in document.stages] == [(self._item(self.path(document.prompt)),)]

    def judge(self, document: PlannedDocument) -> Verdict:
        """Right is the exact path, in one stage of one span, under the plan of the variant."""
        problems = []
        if not self._plans_well(document):
            problems.append(f"the plan is {[[str(item) for item in stage.plan] for stage in document.stages]}")
        path = " ".join(self._ordered(self.path(document.prompt)))
        right = tuple(span == Span(path) for stage in document.stages for span in stage.spans)
        problems += [f"the path is {path!r}, not {document.text!r}"] * (right != (True,))
        return Verdict(right, tuple(problems))

    def nats(self, document: PlannedDocument) -> Nats:
        """Surprisal of a document's response given its prompt: none if it is right, infinite if it is not."""
        return Nats() if self.judge(document).right else Nats(inf, inf, inf)


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)
