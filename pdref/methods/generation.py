"""What a sampler returns: the document, what it cost, and how it came to be."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
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
class Generation:
    """One request's result.

    `nfe` counts forward evaluations, a span's forward as one each; the `critical_path` counts those that had to wait
    for one another, so spans denoised side by side count once. `seconds` are the wall clock of the batch, by phase.
    `document` is None when the tokens break the grammar; `problem` then says how. `cuts` names the bounds that
    stopped a runaway plan.
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

    @property
    def total_seconds(self) -> float:
        """Wall clock of the batch, all phases."""
        return sum(self.seconds.values())
