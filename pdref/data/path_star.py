"""Path-star: the smallest task that next-token training gets wrong (Bachmann and Nagarajan 2024).

A start node has `degree` arms, each of `length` nodes counting the start. A prompt lists the edges in random
order, then the start and the end of one arm, the goal: "ba ke | ke du | ... / ba lo". The answer is the path
between them, one span under a plan of one item. The prompt decides it, so the source's entropy is zero. Given
the path so far, every node but the second has one candidate; the second has `degree`, and only the goal, read
backwards, tells which. Source: arXiv 2403.06963.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise, product
from math import inf

from pdref.data.profiles import Nats, Verdict
from pdref.text.document import Item, PlannedDocument, Span, Stage
from pdref.text.tokenizer import Tokenizer

TOPIC = "path"
EDGE, QUESTION = "|", "/"  # between edges, and before start and goal
SYLLABLES = tuple(map("".join, product("bdfghjklmnprstvwz", "aeiou")))


@dataclass(frozen=True, slots=True)
class PathStar:
    """The source G(degree, length), its nodes named afresh in every graph from a stock of `names`.

    Its documents are written on a grid of 1. Raises ValueError for fewer than two arms, arms of fewer than
    three nodes (the second would be the goal), or a stock of names too small or larger than `SYLLABLES`.
    """

    degree: int = 2
    length: int = 5
    names: int = 30

    def __post_init__(self) -> None:
        if self.degree < 2 or self.length < 3:
            raise ValueError(f"a path-star has at least 2 arms of at least 3 nodes, not {self.degree} of {self.length}")
        if not self.nodes <= self.names <= len(SYLLABLES):
            raise ValueError(f"{self.names} names: {self.nodes} nodes need as many, and there are {len(SYLLABLES)}")

    @property
    def nodes(self) -> int:
        """Nodes of a graph."""
        return 1 + self.degree * (self.length - 1)

    @property
    def chance(self) -> float:
        """Exact paths of one who follows the edges and guesses the arm."""
        return 1 / self.degree

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
        prompt = f"{f' {EDGE} '.join(edges)} {QUESTION} {start} {path[-1]}"
        return PlannedDocument(prompt, (Stage((Item(TOPIC, self.length),), (Span(" ".join(path)),)),))

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
        """Which nodes of the path are right, place by place; the second is the one that takes foresight."""
        written = document.stages[0].spans[0].text.split()
        path = self.path(document.prompt)
        return tuple(k < len(written) and written[k] == node for k, node in enumerate(path))

    def is_walk(self, document: PlannedDocument) -> bool:
        """Whether every step that is written follows an edge: locally right, wherever it leads."""
        return set(pairwise(document.stages[0].spans[0].text.split())) <= set(self.edges(document.prompt))

    def judge(self, document: PlannedDocument) -> Verdict:
        """Right is the exact path, in one stage of one span, as long as planned."""
        problems = []
        plans = [[str(item) for item in stage.plan] for stage in document.stages]
        if plans != [[f"{TOPIC} {self.length}"]]:
            problems.append(f"the plan is {plans}")
        path = " ".join(self.path(document.prompt))
        right = tuple(span == Span(path) for stage in document.stages for span in stage.spans)
        problems += [f"the path is {path!r}, not {document.text!r}"] * (right != (True,))
        return Verdict(right, tuple(problems))

    def nats(self, document: PlannedDocument) -> Nats:
        """Surprisal of a document's response given its prompt: none if it is right, infinite if it is not."""
        return Nats() if self.judge(document).right else Nats(inf, inf, inf)
