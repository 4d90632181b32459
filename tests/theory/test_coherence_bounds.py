"""The converse by trying every coder, the constants by search, the rules of thumb by what they leave out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from laws import coherence
from pdref.theory.coherence import channel, even, plan, relay, sectioned, survival, tree
from pdref.theory.coherence_bounds import (
    BEST_BRANCHING,
    best_depth,
    coherence_length,
    contraction,
    early,
    fano,
    information,
    late,
    pairs,
    plan_read,
    plan_written,
    tree_of_depth,
)


def nats(joint: np.ndarray) -> float:
    """Mutual information of a table [A, B]."""
    alone = joint.sum(0) * joint.sum(1, keepdims=True)
    return float(sum(p * math.log(p / q) for p, q in zip(joint.ravel(), alone.ravel(), strict=True) if p > 0))


@pytest.mark.parametrize(("error", "values"), [(0.1, 3), (0.4, 3), (0.3, 2)])
def test_no_coder_beats_the_relay(error: float, values: int) -> None:
    coherence.no_coder_beats_the_relay(error, values)


def test_no_coin_tossing_coder_beats_it_either() -> None:
    rng, noise = np.random.default_rng(0), channel(0.2, 3)
    for _ in range(2000):
        a, b, c = rng.dirichlet(np.full(3, 0.2), (3, 3))
        assert np.trace(a @ noise @ b @ noise @ c) / 3 <= relay(2, 0.2, 3).agreement[-1]


def test_information_of_a_relay_by_its_joint_law() -> None:
    scheme = relay(9, 0.07, 4)
    for t, found in enumerate(information(scheme.agreement, 4), 1):
        assert found == pytest.approx(nats(np.linalg.matrix_power(channel(0.07, 4), t) / 4), abs=1e-12)


@pytest.mark.parametrize(("error", "values"), [(0.1, 2), (0.1, 3), (0.3, 4), (0.6, 3)])
def test_contraction_is_the_greatest_ratio_of_informations(error: float, values: int) -> None:
    """No joint law of (Theta, M) loses less; nearly equal laws on two symbols come as close as one likes."""
    rng, noise, eta = np.random.default_rng(0), channel(error, values), contraction(error, values)
    tables = rng.dirichlet(np.full(3 * values, 0.3), 500).reshape(-1, 3, values)
    assert all(nats(table @ noise) <= eta * nats(table) + 1e-12 for table in tables)
    tilt = 1e-3 * np.array([1, -1] + [0] * (values - 2))
    half = np.array([0.5, 0.5] + [0] * (values - 2))
    nearest = np.stack([half + tilt, half - tilt]) / 2
    assert nats(nearest @ noise) / nats(nearest) == pytest.approx(eta, rel=1e-4)
    assert survival(error, values) ** 2 <= eta <= abs(survival(error, values)) + 1e-12


@pytest.mark.parametrize("values", [2, 3, 6])
def test_fano_is_an_equality_on_this_channel(values: int) -> None:
    agreement = relay(60, 0.05, values).agreement
    known = information(agreement, values)
    coherence.fano_is_an_equality(values)
    bound = contraction(0.05, values) ** np.arange(1, 61) * math.log(values)
    assert (known <= bound).all()
    assert (fano(bound, values) <= 1 - agreement + 1e-9).all(), "weaker, and never wrong"
    assert fano(math.log(values), values) == pytest.approx(0, abs=1e-9)
    assert fano(0.0, values) == pytest.approx(1 - 1 / values)


def test_fano_holds_for_any_reader() -> None:
    rng = np.random.default_rng(1)
    for table in rng.dirichlet(np.full(12, 0.4), 300).reshape(-1, 3, 4):
        table = table / table.sum(1, keepdims=True) / 3
        assert 1 - table.max(0).sum() >= fano(nats(table), 3) - 1e-9, "the best reader errs this often at least"


def test_the_two_regimes_and_how_good_they_are() -> None:
    error = 1e-4
    L = coherence_length(error)
    assert L * (1 - survival(error)) == pytest.approx(1) and coherence_length(0.01, 5) == pytest.approx(80)
    for T in (100, 500):
        assert early(T, error) / relay(T, error).violations - 1 == pytest.approx(T / (3 * L) - 1 / T, rel=0.1)
    for T in (8 * L, 20 * L):
        assert relay(int(T), error).violations - late(int(T), error) == pytest.approx(0.5, abs=L * math.exp(-T / L))
    at_length = relay(int(L), error).violations
    assert at_length == pytest.approx(L / 2 / math.e, rel=1e-3), "between the two: neither rule is good"
    assert early(int(L), error) == pytest.approx(math.e / 2 * at_length, rel=1e-3)
    slope = math.log2(relay(200, error).violations / relay(100, error).violations)
    assert 1.9 < slope < 2
    assert math.log2(relay(40 * 5000, error).violations / relay(20 * 5000, error).violations) < 1.05


def test_plans_of_k_tokens() -> None:
    """Read directly, more is better; written in sequence, sqrt(T) is best."""
    T, error = 4096, 1e-6
    for k in (1, 8, 64, 512, 4096):
        read, written = sectioned(T, k, error), tree((k, T // k), error)
        assert read.violations == pytest.approx(plan_read(T, k, error) + error * T / 2, rel=3e-3)
        assert written.violations == pytest.approx(plan_written(T, k, error) + error * T, rel=3e-3)
    cost = {k: tree((k, T // k), 1e-4).violations for k in (2**i for i in range(13))}
    assert min(cost, key=cost.get) == 64 == round(T**0.5)
    assert cost[64] / 1e-4 == pytest.approx(T**1.5 + T, rel=0.02)


def test_the_best_depth_of_a_tree() -> None:
    """Near ln T, as the page says; a quarter less, and a third dearer, than its formula without the (b + 1)/2."""
    T, error = 4096, 1e-6
    for depth in (1, 2, 3, 4, 6, 12):
        b = T ** (1 / depth)
        exact = tree(even(T, depth), error).violations
        assert exact == pytest.approx(error * T * depth * (b + 1) / 2, rel=4e-3)
        assert exact / tree_of_depth(T, depth, error) == pytest.approx((b + 1) / b, rel=4e-3)
    cost = {depth: tree(even(T, depth), error).violations for depth in range(1, 13)}
    assert min(cost, key=cost.get) == 6 and best_depth(T) == pytest.approx(6.506, abs=1e-3)
    b = BEST_BRANCHING
    assert b * math.log(b) == pytest.approx(b + 1) and best_depth(T) == pytest.approx(0.782 * math.log(T), rel=1e-3)
    assert (b + 1) / 2 / math.log(b) == pytest.approx(1.80, abs=5e-3)
    assert (math.e + 1) / 2 / ((b + 1) / 2 / math.log(b)) == pytest.approx(1.035, abs=1e-3), "ln T is 3% off the best"
    best = tree_of_depth(T, math.log(T), error)
    assert best == pytest.approx(math.e / 2 * error * T * math.log(T))
    assert min(tree_of_depth(T, math.log(T) * scale, error) for scale in (0.9, 1.1)) > best


def test_pairs_grow_as_the_square_with_a_plan_and_without() -> None:
    """Point 5: a constraint every L tokens. The plan changes the constant, once there is more than one constraint."""
    error, L = 1e-3, 500
    assert coherence_length(error) == pytest.approx(L)

    def ratio(T: int) -> float:
        return pairs(lambda n: relay(n, error), T, L) / (T**2 / (4 * L))  # (1 - 1/m) T^2/(2L)

    assert ratio(50) == pytest.approx(1, abs=0.05)
    assert min(ratio(T) for T in range(50, 20_000, 250)) > 0.7
    assert ratio(100_000) == pytest.approx(1 - L / 100_000, abs=1e-4)
    T = 100_000
    planned = pairs(lambda n: plan(n, error), T, L)
    assert planned == pytest.approx(error * L * (T // L) * (T // L + 1) / 2)
    n, lam = T // L, survival(error)
    closed = L * n * (n + 1) / 2 - lam / (1 - lam) * (n - lam**L * (1 - lam ** (n * L)) / (1 - lam**L))
    assert pairs(lambda n: relay(n, error), T, L) == pytest.approx(closed / 2)
