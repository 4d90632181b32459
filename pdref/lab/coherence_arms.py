"""The coherence theorem in transformers: who contradicts the thesis how often, by length, plan and seed.

    python -m pdref.lab.coherence_arms --seeds 3 --out out/coherence_arms.csv

Three writers (`lab.essay_writers`) of equal size learn from equally many tokens of one source: windowed, full
attention, and windowed with a plan in sight. Each is trained once, on the longest essays, and writes all lengths: it
is not told how long an essay is to be. They write at temperature 1, at each place a word of the grammar's class for
it, so that what is counted is contradiction and not lost grammar. They are given

    none            no plan
    own             the plan that the writer itself writes after reading the prompt
    oracle          the thesis
    wrong           another value everywhere
    shuffled        another essay's thesis
    corrupted       each value another one, with probability `share`
    gaps            each value left open, with probability `share`
    reordered       the thesis, last kind first
    mislabelled     each kind given the value of the next kind

The first five at every length, the others at one. A row of the CSV is one of these at one length with one seed; it is
appended as soon as it is known. Rows that are there are not made again: a sweep that was cut trains the writer it was
at once more, from the same seed, and goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from pdref.data.essays import Essays
from pdref.lab import ledger
from pdref.lab.budget import SweepBudget
from pdref.lab.essay_marks import Forced, alike, failures, forced
from pdref.lab.essay_writers import ARMS, GAP, Writer, compose, tokens_of_text, train
from pdref.lab.recipe import HELD_OUT_SEED

GIVEN = {
    "windowed": ("none",),
    "full": ("none",),
    "planned": ("own", "oracle", "wrong", "shuffled"),
}
FAILURES = (
    ("corrupted", 0.1),
    ("corrupted", 0.25),
    ("corrupted", 0.5),
    ("gaps", 0.25),
    ("gaps", 0.5),
    ("reordered", 1.0),
    ("mislabelled", 1.0),
)


@dataclass(frozen=True, slots=True)
class Budget(SweepBudget):
    """What all arms share: the source, the network, the steps.

    A section has four paragraphs; training essays have as many as the longest of `lengths`.
    """

    kinds: int = 2
    values: int = 4
    slip: float = 0.01
    steps: int = 500
    batch: int = 8
    layers: int = 2
    width: int = 48
    heads: int = 2
    rate: float = 4e-3
    muon_rate: float = 5e-3

    def source(self, paragraphs: int) -> Essays:
        """Essays of so many paragraphs. Raises ValueError unless it is a multiple of 4."""
        if paragraphs % 4:
            raise ValueError(f"a section has 4 paragraphs, and {paragraphs} are no whole number of sections")
        return Essays(self.kinds, self.values, paragraphs // 4, 4, self.slip)


@dataclass(frozen=True, slots=True)
class Row:
    """What a writer's essays came to.

    `violations` is the mean of V over essays, `error` its standard error, `variance` that of V over essays and
    `binomial` what it would be if sentences failed independently; `alike` is the correlation between two failures of
    a kind. `wrong` (pi) and `gaps` are shares of plan values that contradict the thesis or are left open. `eps` and
    `eps_first` are the chances, teacher-forced on held-out essays, that a sentence (after the first of its kind, and
    the first) states another value than the writer's source of it: the last mention if windowed, else plan or thesis.
    `nats` are those of a held-out essay of the longest length, `source_nats` what the source pays for the same ones.
    `histogram[v]` essays have V = v, and `disagreement[t]` is the share of violations in paragraph t. Seconds are CPU
    seconds.
    """

    writer: str
    plan: str
    share: float
    paragraphs: int
    seed: int
    budget: str
    essays: int
    violations: float
    error: float
    variance: float
    binomial: float
    alike: float | None
    flawless: float
    malformed: float
    wrong: float
    gaps: float
    eps: float
    eps_first: float
    nats: float
    source_nats: float
    parameters: int
    tokens: int
    train_seconds: float
    write_seconds: float
    histogram: tuple[float, ...]
    disagreement: tuple[float, ...]
    made_with: str

    @property
    def key(self) -> Key:
        """Which row it is."""
        return Key(self.writer, self.plan, self.share, self.paragraphs, self.seed, self.budget)


class Key(NamedTuple):
    """What a row is a row of."""

    writer: str
    plan: str
    share: float
    paragraphs: int
    seed: int
    budget: str


def measure(writer: Writer, known: Forced, budget: Budget, key: Key, essays: int, train_seconds: float) -> Row:
    """Write `essays` essays as `key` says and count."""
    source = budget.source(key.paragraphs)
    started = time.process_time()
    number = HELD_OUT_SEED + 1 + key.seed * 1000 + key.paragraphs  # essays and draws of their own for each length
    asked = source.essays(essays, number)
    theses = [essay.thesis for essay in asked]
    written = compose(writer, asked, key.plan, key.share, number)
    wrong, malformed = failures(source, written.texts, theses)
    V = wrong.sum((1, 2))
    p = wrong.mean(0)
    stated = [plan.get(kind, "") for plan, thesis in zip(written.plans, theses, strict=True) for kind in thesis]
    meant = [value for thesis in theses for value in thesis.values()]
    gaps = np.array([value == GAP for value in stated])
    return Row(
        **key._asdict(),
        essays=essays,
        violations=float(V.mean()),
        error=float(V.std(ddof=1) / essays**0.5),
        variance=float(V.var(ddof=1)),
        binomial=float((p * (1 - p)).sum()),
        alike=alike(wrong),
        flawless=float((V == 0).mean()),
        malformed=malformed,
        wrong=float((np.array([a != b for a, b in zip(stated, meant, strict=True)]) & ~gaps).mean()),
        gaps=float(gaps.mean()),
        **known._asdict(),
        parameters=writer.model.parameter_count,
        tokens=budget.steps * budget.batch * tokens_of_text(writer.source),
        train_seconds=train_seconds,
        write_seconds=time.process_time() - started,
        histogram=tuple(np.bincount(V, minlength=wrong[0].size + 1).tolist()),
        disagreement=tuple(wrong.mean((0, 2)).tolist()),
        made_with=ledger.made_with(),
    )


def wanted(arms: Iterable[str], lengths: Sequence[int], failing: int, seed: int, budget: Budget) -> Iterator[Key]:
    """The rows of a seed, writer by writer; plans fail at the length `failing` (0: not at all)."""
    for arm in arms:
        for paragraphs in lengths:
            for how in GIVEN[arm]:
                yield Key(arm, how, 1.0, paragraphs, seed, str(budget))
        for how, share in FAILURES if arm == "planned" and failing else ():
            yield Key(arm, how, share, failing, seed, str(budget))


def trained(arm: str, budget: Budget, longest: int, seed: int, progress: bool = True) -> tuple[Writer, float]:
    """A writer that has learned, and the CPU seconds it took."""
    started = time.process_time()
    writer = Writer.fresh(ARMS[arm], budget.source(longest), budget.layers, budget.width, budget.heads, seed)
    train(writer, budget.settings(seed), progress)
    writer.model.eval()
    return writer, time.process_time() - started


def table(rows: Iterable[Row]) -> Table:
    """Violations an essay by writer, plan and length, over seeds."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        how = row.plan if row.plan not in ("corrupted", "gaps") else f"{row.plan} {row.share:.0%}"
        found.setdefault((row.writer, how, str(row.paragraphs)), []).append(row)
    heads = ("writer", "plan", "paragraphs", "violations, seed by seed", "flawless", "pi", "gaps", "eps", "alike")
    shown = Table(*heads)
    for key, seeds in found.items():
        means = [np.mean([getattr(row, name) for row in seeds]) for name in ("flawless", "wrong", "gaps", "eps")]
        together = np.mean([row.alike or 0.0 for row in seeds])
        shown.add_row(
            *key, "  ".join(f"{row.violations:.2f}" for row in seeds), *(f"{x:.3f}" for x in means), f"{together:.2f}"
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--lengths", type=int, nargs="+", default=(4, 8, 16, 32), help="in paragraphs")
    parser.add_argument("--failing", type=int, default=16, help="the length at which plans fail, 0 for none")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--essays", type=int, default=400, help="for each row")
    parser.add_argument("--out", type=Path, default=Path("out/coherence_arms.csv"))
    Budget.add_to(parser)
    given = parser.parse_args(arguments)
    budget = Budget.of(given)
    done = {row.key for row in ledger.read(given.out, Row)}
    for seed in range(given.seeds):
        for arm in given.arms:
            keys = [key for key in wanted([arm], given.lengths, given.failing, seed, budget) if key not in done]
            if not keys:
                continue
            writer, seconds = trained(arm, budget, max(*given.lengths, given.failing), seed)
            known = forced(writer)
            for key in tqdm(keys, desc=f"{arm} {seed} writes", unit="row"):
                ledger.append(given.out, measure(writer, known, budget, key, given.essays, seconds))
    Console().print(table(ledger.read(given.out, Row)))


if __name__ == "__main__":
    main()
