"""Fits and intervals find what was put in, and the theory's curves are asked with the measured errors."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from pdref.data.essays import Essays
from pdref.lab.coherence_arms import Budget, Row
from pdref.lab.growth import (
    Interval,
    distances,
    expected,
    expected_disagreement,
    expected_variance,
    exponent,
    violations,
)

BUDGET = Budget(kinds=3, values=4)
BLANK = {"str": "", "int": 0, "float": 0.0, "float | None": None, "tuple[float, ...]": ()}


def a_row(V: np.ndarray, **changes: object) -> Row:
    """A row of essays with these counts."""
    plain = Row(**{field.name: BLANK[str(field.type)] for field in fields(Row)})
    histogram = tuple(np.bincount(V, minlength=200).tolist())
    return replace(plain, writer="windowed", budget=str(BUDGET), histogram=histogram, **changes)


def rows_that_grow(power: float, seed: int, essays: int = 400) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        a_row(rng.poisson(0.05 * length**power, essays), paragraphs=length, seed=s)
        for length in (4, 8, 16, 32)
        for s in range(3)
    ]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held_mean = held_slope = 0
    for seed in range(40):
        rows = rows_that_grow(1.8, seed, essays=100)
        held_mean += violations([row for row in rows if row.paragraphs == 16]).holds(0.05 * 16**1.8)
        held_slope += exponent(rows, resamples=300, seed=seed).holds(1.8)
    assert held_mean >= 34 and held_slope >= 32  # of 40; three seeds make a coarse bootstrap


def test_an_exponent_is_the_slope() -> None:
    exact = [a_row(np.full(9, T * T // 16), paragraphs=T, seed=s) for T in (4, 8, 16, 32) for s in (0, 1)]
    found = exponent(exact, resamples=50)
    assert found == pytest.approx(Interval(2, 2, 2), abs=1e-9)
    assert exponent(rows_that_grow(1.0, 0)).holds(1.0)


def test_a_slope_needs_lengths_and_violations() -> None:
    row = a_row(np.array([1, 2]), paragraphs=4)
    with pytest.raises(ValueError, match="two lengths"):
        exponent([row])
    with pytest.raises(ValueError, match="no violations in 8"):
        exponent([row, a_row(np.array([0, 0]), paragraphs=8)])


def test_a_windowed_writer_is_a_relay() -> None:
    """E[V] by summing the chain's agreement by hand, first step and later steps with their own errors."""
    row = a_row(np.array([0]), paragraphs=5, eps=0.03, eps_first=0.01)
    lambdas = np.cumprod([1 - 0.01 * 4 / 3] + [1 - 0.03 * 4 / 3] * 4)
    assert expected_disagreement([row]) == pytest.approx(0.75 * (1 - lambdas))
    assert expected([row, row]) == pytest.approx(3 * 0.75 * (1 - lambdas).sum())


@pytest.mark.parametrize("wrong, gaps", [(0.0, 0.0), (1.0, 0.0), (0.2, 0.1), (0.0, 0.5)])
def test_a_plan_is_the_exact_mixture(wrong: float, gaps: float) -> None:
    """A right plan's essays, a wrong one's and an open one's, mixed: mean and variance of V per kind."""
    row = a_row(np.array([0]), paragraphs=16, eps=0.02, wrong=wrong, gaps=gaps)
    row = replace(row, writer="planned")
    bad = wrong + gaps * 0.75
    each = np.array([0.02, 1 - 0.02 / 3])
    chance = np.array([1 - bad, bad])
    mean = chance @ (16 * each)
    second = chance @ (16 * each * (1 - each) + (16 * each) ** 2)
    assert expected([row]) == pytest.approx(3 * mean)
    assert expected_variance([row]) == pytest.approx(3 * (second - mean**2))
    assert expected([row]) <= 3 * 16 * (0.02 + bad) + 1e-9


def test_distances_are_those_of_the_counter() -> None:
    """An essay that contradicts its thesis everywhere, counted by the source."""
    source = Essays(kinds=3, values=2, sections=2, paragraphs=4)
    (essay,) = source.essays(1, 0)
    opposite = {k: next(v for v in source.words[k] if v != value) for k, value in essay.thesis.items()}
    counted = [violation.distance for violation in source.violations(essay.text, opposite)]
    assert distances(source) == pytest.approx(np.reshape(counted, (8, 3)).mean(1))
