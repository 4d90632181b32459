"""The price of independence by entropies, as a divergence, by definition and by closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from laws import independence
from laws.independence import JOINTS, drawn
from pdref.theory.entropy import entropy
from pdref.theory.independence import (
    best_fill,
    conditional_entropy,
    divergence,
    estimated,
    impossible,
    span_law,
    total_correlation,
)


@pytest.mark.parametrize("joint", JOINTS, ids=range(len(JOINTS)))
def test_total_correlation_is_the_divergence_from_the_best_fill(joint: np.ndarray) -> None:
    independence.total_correlation_is_a_divergence(joint)
    if joint.ndim == 2:
        assert total_correlation(joint) == pytest.approx(0, abs=1e-12), "one span has nobody to disagree with"
    else:
        assert total_correlation(joint) > 1e-3


@pytest.mark.parametrize("joint", JOINTS, ids=range(len(JOINTS)))
def test_the_best_fill_keeps_plans_and_spans_and_nothing_else(joint: np.ndarray) -> None:
    fill = best_fill(joint)
    assert fill.shape == joint.shape and fill.sum() == pytest.approx(1)
    for k in range(joint.ndim - 1):
        np.testing.assert_allclose(span_law(fill, k), span_law(joint, k), atol=1e-13)
    np.testing.assert_allclose(best_fill(fill), fill, atol=1e-13)
    assert total_correlation(fill) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("joint", [joint for joint in JOINTS if joint.ndim > 2])
def test_any_other_fill_pays_for_its_spans_and_for_nothing_else(joint: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    fill, errors = joint.reshape(len(joint), -1).sum(1).reshape(-1, *[1] * (joint.ndim - 1)), 0.0
    for k in range(joint.ndim - 1):
        truth = span_law(joint, k)
        wrong = rng.dirichlet(np.ones(truth.shape[1]), len(truth))  # q_k(x(k) | z), any
        errors += divergence(truth, wrong * truth.sum(1, keepdims=True))
        fill = fill * np.expand_dims(wrong, tuple(a for a in range(1, joint.ndim) if a != k + 1))
    assert divergence(joint, fill) == pytest.approx(total_correlation(joint) + errors)


def test_a_shared_choice_costs_its_entropy_for_every_span_but_one() -> None:
    law = np.array([0.5, 0.3, 0.2])
    for spans in (1, 2, 3, 4):
        joint = np.zeros((1, *[3] * spans))
        for i, chance in enumerate(law):
            joint[(0, *[i] * spans)] = chance
        assert total_correlation(joint) == pytest.approx((spans - 1) * entropy(law, np.log))
        assert impossible(joint) == pytest.approx(1 - (law**spans).sum())
        named = np.stack([np.where(np.indices(joint.shape)[1] == i, joint, 0)[0] for i in range(3)])
        assert total_correlation(named) == pytest.approx(0, abs=1e-12), "a plan that names it"
        assert impossible(named) == pytest.approx(0)
        assert conditional_entropy(named) == pytest.approx(0, abs=1e-12)


def test_what_the_plan_says_can_also_make_spans_dependent() -> None:
    """Two fair coins are independent until a plan tells whether they are equal."""
    coins = np.full((1, 2, 2), 0.25)
    assert total_correlation(coins) == pytest.approx(0, abs=1e-12)
    told = np.array([[[0.25, 0], [0, 0.25]], [[0, 0.25], [0.25, 0]]])
    assert total_correlation(told) == pytest.approx(math.log(2))


def test_divergence_is_infinite_where_the_fill_cannot_write() -> None:
    assert divergence(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == math.inf
    assert divergence(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(math.log(2))


def test_the_estimate_from_log_probabilities() -> None:
    """From documents drawn from a joint, with the exact log-probabilities of each."""
    joint, rng = drawn(7, 2, 4, 3, 3), np.random.default_rng(0)
    cells = rng.choice(joint.size, 20_000, p=joint.ravel())
    z, *x = np.unravel_index(cells, joint.shape)
    plan = np.log(joint.reshape(len(joint), -1).sum(1)[z])
    together = np.log(joint.ravel()[cells]) - plan
    alone = np.stack([np.log(span_law(joint, k)[z, v]) - plan for k, v in enumerate(x)], 1)
    found = estimated(together, alone)
    assert abs(found.mean - total_correlation(joint)) < 4 * found.error < 0.05
    worse = estimated(together, alone - [0.1, 0.0, 0.05])
    assert worse.mean == pytest.approx(found.mean + 0.15), "spans that are known less well look more dependent"
