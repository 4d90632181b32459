"""What a sampler returns: the document, what it cost, and how it came to be."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest
from operator import mul
from typing import Literal

from pdref.text.document import PlannedDocument

Phase = Literal["prompt", "plan", "write", "scaffold", "denoise", "commit"]


@dataclass(frozen=True, slots=True)
class Event:
    """Tokens that were set in one forward: a line of the history."""

    phase: Phase
    positions: tuple[int, ...]
    tokens: tuple[int, ...]

    def before(self, end: int) -> Event:
        """What it set before position `end`."""
        count = bisect_left(self.positions, end)
        return Event(self.phase, self.positions[:count], self.tokens[:count])


@dataclass(slots=True)
class Drafted:
    """How drafting went: of the drafts 1, 2, ... places after the next token, how many were tried and came true.

    A draft is tried if all before it came true. `tokens` were written in so many `forwards`.
    """

    tried: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    tokens: int = 0
    forwards: int = 0

    def count(self, tried: int, accepted: int) -> None:
        """A round in which the first `tried` drafts were looked at and the first `accepted` came true."""
        for counts, n in ((self.tried, tried), (self.accepted, accepted)):
            counts += [0] * (tried - len(counts))
            for j in range(n):
                counts[j] += 1

    @classmethod
    def total(cls, generations: Iterable[Generation]) -> Drafted:
        """Of all requests together."""
        found = cls()
        for drafted in (g.drafted for g in generations if g.drafted is not None):
            found.tried = [sum(pair) for pair in zip_longest(found.tried, drafted.tried, fillvalue=0)]
            found.accepted = [sum(pair) for pair in zip_longest(found.accepted, drafted.accepted, fillvalue=0)]
            found.tokens += drafted.tokens
            found.forwards += drafted.forwards
        return found

    @property
    def acceptance(self) -> list[float]:
        """Shares a_1, a_2, ... of the drafts at each place that came true when those before had."""
        return [accepted / max(1, tried) for accepted, tried in zip(self.accepted, self.tried, strict=True)]

    @property
    def tokens_per_forward(self) -> float:
        """Measured; 1 without drafts."""
        return self.tokens / max(1, self.forwards)

    @property
    def predicted(self) -> float:
        """Tokens a forward if every round went as all do on average: 1 + sum_j prod_{i <= j} a_i."""
        return 1 + sum(accumulate(self.acceptance, mul))


@dataclass(slots=True)
class Generation:
    """One request's result.

    `nfe` counts forward evaluations, a span's forward as one each; the `critical_path` counts those that had to wait
    for one another, so spans denoised side by side count once. `seconds` are the wall clock of the batch, by phase.
    `document` is None when the tokens break the grammar; `problem` then says how. `cuts` names the bounds that
    stopped a runaway plan. `drafted` is None where nobody drafts.
    """

    tokens: list[int]
    prompt_length: int
    document: PlannedDocument | None = None
    problem: str | None = None
    cuts: tuple[str, ...] = ()
    nfe: int = 0
    critical_path: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    history: list[Event] = field(default_factory=list)
    drafted: Drafted | None = None

    @property
    def total_seconds(self) -> float:
        """Wall clock of the batch, all phases."""
        return sum(self.seconds.values())
