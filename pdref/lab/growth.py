"""How violations grow with length: fitted exponents, intervals, and the theory's curves at measured errors.

Everything is read from the rows of `lab.coherence_arms`, whose histograms of V say what each essay came to: a
bootstrap over essays and seeds needs nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pdref.data.essays import VALUE_AT, WORDS, Essays
from pdref.lab.coherence_arms import Budget, Row
from pdref.theory import coherence


class Interval(NamedTuple):
    """An estimate and its 95% interval."""

    mean: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether `value` lies in it."""
        return self.low <= value <= self.high


def violations(rows: Iterable[Row]) -> Interval:
    """Mean V of an essay over the essays of all `rows`: seeds of one setting, whose networks are taken as given."""
    histogram = np.sum([row.histogram for row in rows], axis=0)
    v, n = np.arange(len(histogram)), histogram.sum()
    mean = histogram @ v / n
    half = 1.96 * np.sqrt(histogram @ (v - mean) ** 2 / (n - 1) / n)
    return Interval(float(mean), float(mean - half), float(mean + half))


def exponent(rows: Iterable[Row], resamples: int = 4000, seed: int = 0) -> Interval:
    """The slope of ln V against ln T by least squares over the lengths of `rows`, by bootstrap.

    A resample draws seeds, then the essays of each seed and length. Raises ValueError where fewer than two lengths,
    or a length without any violation, leave no slope.
    """
    found: dict[int, dict[int, Sequence[float]]] = {}
    for row in rows:
        found.setdefault(row.paragraphs, {})[row.seed] = row.histogram
    lengths, seeds = sorted(found), sorted({s for by_seed in found.values() for s in by_seed})
    if len(lengths) < 2:
        raise ValueError(f"a slope needs two lengths, not {lengths}")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(seeds), size=(resamples, len(seeds)))
    drawn = np.concatenate([np.arange(len(seeds))[None], drawn])  # the first is the estimate itself
    logs = []
    for length in lengths:
        means = np.stack([_resampled(found[length][s], resamples, rng) for s in seeds], 1)  # [1 + R, seeds]
        mean = np.take_along_axis(means, drawn, 1).mean(1)
        if mean[0] == 0:
            raise ValueError(f"no violations in {length} paragraphs: ln 0")
        logs.append(np.log(np.maximum(mean, 1e-12)))
    slopes = np.polyfit(np.log(lengths), np.stack(logs), 1)[0]
    return Interval(float(slopes[0]), *map(float, np.quantile(slopes[1:], (0.025, 0.975))))


def _resampled(histogram: Sequence[float], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """The mean V of the essays, then of resamples of them, [1 + R]."""
    counts = np.asarray(histogram)
    n, v = counts.sum(), np.arange(len(counts))
    return np.concatenate([[counts @ v / n], rng.multinomial(int(n), counts / n, resamples) @ v / n])


def scheme(row: Row) -> coherence.Scheme:
    """The theory's copies of one constraint, with the errors that were measured.

    A windowed writer is a relay. Who has thesis or plan in sight reads it; a gap in a plan is filled with any value,
    so it is wrong as often as chance.
    """
    m = Budget.parse(row.budget).values
    if row.writer == "windowed":
        return coherence.relay(row.paragraphs, row.eps, m, first=row.eps_first)
    return coherence.plan(row.paragraphs, row.eps, row.wrong + row.gaps * (1 - 1 / m), m)


def expected(rows: Sequence[Row]) -> float:
    """E[V] of an essay by theory: of each kind's constraint, the mean over seeds."""
    return float(np.mean([Budget.parse(row.budget).kinds * scheme(row).violations for row in rows]))


def expected_variance(rows: Sequence[Row]) -> float:
    """The variance of V over essays by theory, whose constraints are independent of each other."""
    return float(np.mean([Budget.parse(row.budget).kinds * scheme(row).spread ** 2 for row in rows]))


def distances(source: Essays) -> np.ndarray:
    """Tokens from where the thesis, right before the text, has a value to where each paragraph has it, [T].

    The mean over kinds: the k-th of K values stands at place 2k + 1 of the statement's 2K, and in a paragraph's k-th
    sentence.
    """
    k = np.arange(source.kinds)
    first = 2 * source.kinds - (2 * k + 1) + WORDS * k + VALUE_AT
    return first.mean() + source.paragraph_tokens * np.arange(source.sections * source.paragraphs)


def expected_disagreement(rows: Sequence[Row]) -> np.ndarray:
    """1 - P(decision t agrees), [T], the mean over seeds."""
    return np.mean([1 - scheme(row).agreement for row in rows], axis=0)
