"""Closed forms against exact enumeration, both against every pattern of errors, and simulations against both."""

from __future__ import annotations

import numpy as np
import pytest

from laws import coherence
from laws.coherence import GRID
from pdref.theory.coherence import (
    Scheme,
    channel,
    composed,
    estimate,
    even,
    plan,
    relay,
    sectioned,
    survival,
    tree,
)


def mean(scheme: Scheme) -> float:
    """E[V] as a sum over the enumerated law."""
    return float(scheme.law @ np.arange(scheme.decisions + 1))


@pytest.mark.parametrize("scheme", coherence.SMALL)
def test_every_pattern_of_errors(scheme: Scheme) -> None:
    coherence.closed_forms_are_every_pattern(scheme)


@pytest.mark.parametrize("scheme", GRID, ids=range(len(GRID)))
def test_closed_forms_are_exact_sums(scheme: Scheme) -> None:
    assert scheme.law.sum() == pytest.approx(1, abs=1e-11)
    assert scheme.violations == pytest.approx(mean(scheme), abs=1e-9)
    assert scheme.violations == pytest.approx((1 - scheme.agreement).sum(), abs=1e-9)
    assert scheme.flawless == pytest.approx(scheme.law[0], abs=1e-12)
    assert scheme.violations <= scheme.union_bound + 1e-12


def test_agreement_is_a_power_of_the_channel() -> None:
    scheme = relay(60, 0.03, 5)
    powers = [np.linalg.matrix_power(channel(0.03, 5), t)[0, 0] for t in range(1, 61)]
    np.testing.assert_allclose(scheme.agreement, powers, atol=1e-13)
    assert relay(10**4, 0.03, 5).agreement[-1] == pytest.approx(1 / 5), "to chance, not to zero"
    assert channel(0.1, 3) @ channel(0.2, 3) == pytest.approx(channel(composed(0.1, 0.2, 3), 3))
    assert np.sort(np.linalg.eigvals(channel(0.1, 3)))[:2] == pytest.approx(survival(0.1, 3))


def test_simulations_are_within_three_standard_errors() -> None:
    coherence.simulations_are_within_three_standard_errors()


@pytest.mark.parametrize("scheme", [relay(40, 0.05, 4), plan(9, 0.1, 0.3), tree((3, 3, 2), 0.1, 3)])
def test_simulations_have_the_law_of_v_and_the_agreement_of_every_decision(scheme: Scheme) -> None:
    runs = 20_000
    wrong = scheme.simulate(runs, 1)
    assert wrong.shape == (runs, scheme.decisions) and wrong.dtype == bool
    places = estimate(wrong)
    assert (np.abs(places.mean - (1 - scheme.agreement)) < 4 * places.error).all()
    counts = np.bincount(wrong.sum(1), minlength=scheme.decisions + 1)
    expected = runs * scheme.law
    often = expected > 10
    chi = ((counts - expected) ** 2 / expected)[often].sum()
    assert abs(chi - often.sum()) < 4 * (2 * often.sum()) ** 0.5
    np.testing.assert_array_equal(wrong[:, -1], scheme.simulate(runs, 1)[:, -1], "a seed is a simulation")
    assert wrong.sum(1).std() == pytest.approx(scheme.spread, rel=0.03)


def test_the_figures_of_the_reference_page() -> None:
    """The first three are of two symbols; 735 is of so many that no error is undone by chance, which is 650 of two."""
    for decisions, shown in ((128, 7.60), (512, 96.0), (2048, 779)):
        scheme = relay(decisions, 1e-3)
        assert float(f"{scheme.violations:.3g}") == shown
        found = estimate(scheme.simulate(4000, decisions).sum(1))
        assert abs(found.mean - scheme.violations) < 3 * scheme.spread / 4000**0.5
    assert even(4096, 6) == (4,) * 6
    for values, shown in ((1000, (735, 26.5, 6.1)), (2, (650, 26.4, 6.1))):
        found = [scheme(1e-4, values) for scheme in (_no_plan, _plan_in_sequence, _tree_of_six)]
        assert [round(found[0]), round(found[1], 1), round(found[2], 1)] == list(shown)


def _no_plan(error: float, values: int) -> float:
    return relay(4096, error, values).violations


def _plan_in_sequence(error: float, values: int) -> float:
    return tree((64, 64), error, values).violations


def _tree_of_six(error: float, values: int) -> float:
    return tree((4,) * 6, error, values).violations


def test_a_plan_costs_what_its_errors_cost() -> None:
    """E[V] <= T (eps_p + pi), short of it by the chance that a wrong reading undoes a wrong plan."""
    for read, wrong, m in ((0.01, 0.05, 2), (0.1, 0.0, 5), (0.0, 0.2, 3)):
        scheme = plan(1000, read, wrong, m)
        assert scheme.union_bound == pytest.approx(1000 * (read + wrong))
        assert scheme.violations == pytest.approx(1000 * (read + wrong - read * wrong * m / (m - 1)))


def test_a_plan_does_not_raise_the_chance_of_a_flawless_run() -> None:
    """(1 - eps)^T without one and with one that is right: equal. A tree has more nodes to get right: less."""
    error, T, m = 1e-3, 1024, 3
    assert relay(T, error, m).flawless == pytest.approx((1 - error) ** T, rel=1e-12)
    assert plan(T, error, 0, m).flawless == pytest.approx((1 - error) ** T, rel=1e-12)
    deep = tree(even(T, 5), error, m)
    assert deep.flawless == pytest.approx((1 - error) ** (4 + 16 + 64 + 256 + 1024), rel=1e-3)
    assert deep.flawless < relay(T, error, m).flawless and deep.violations < relay(T, error, m).violations / 20
    small = plan(2, 0.3, 0.4, m)
    assert small.flawless == pytest.approx(0.6 * 0.7**2 + 0.4 * (0.3 / 2) ** 2), "two wrongs make a right"


def test_a_wrong_plan_is_common_mode() -> None:
    """V splits in two heaps; its spread stays a share of T while that of independent errors is a share of sqrt(T)."""
    for T in (100, 400):
        assert plan(T, 0.0, 0.1).spread == pytest.approx(T * (0.1 * 0.9) ** 0.5)
        assert plan(T, 0.1, 0.0).spread == pytest.approx((T * 0.1 * 0.9) ** 0.5)
    wrong = plan(50, 0.05, 0.3).simulate(4000, 0)
    correlation = np.corrcoef(wrong[:, 0], wrong[:, -1])[0, 1]
    agree = survival(0.05) ** 2 * 0.3 * 0.7 * 4  # covariance of two readings of one plan, in units of 1/4
    rate = 1 - plan(50, 0.05, 0.3).agreement[0]
    assert correlation == pytest.approx(agree / (4 * rate * (1 - rate)), abs=0.06)


def test_tiny_errors_lose_no_digits() -> None:
    for error in (1e-14, 1e-12, 1e-9):
        assert relay(1000, error).violations == pytest.approx(error * 1000 * 1001 / 2, rel=2e-3, abs=1e-12)
    assert relay(1000, 0).violations == 0 and relay(1000, 0).flawless == 1
    assert relay(3, 0.5).violations == pytest.approx(1.5), "lambda is 0: chance at once"
    assert relay(4, 1.0).violations == pytest.approx(2), "every copy is wrong: every second decision is"


def test_even_trees() -> None:
    assert even(4096, 1) == (4096,) and even(4096, 12) == (2,) * 12 and even(36, 2) == (6, 6)
    for depth in range(1, 13):
        assert np.prod(even(4096, depth)) == 4096 and len(even(4096, depth)) == depth
    with pytest.raises(ValueError, match="no tree of 3 levels"):
        even(6, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: relay(5, 1.2), "probability, not 1.2"),
        (lambda: relay(5, 0.1, first=-0.1), "probability, not -0.1"),
        (lambda: relay(0, 0.1), "at least one sibling"),
        (lambda: Scheme(()), "at least one sibling"),
        (lambda: relay(5, 0.1, values=1), "at least 2 values, not 1"),
        (lambda: sectioned(10, 3, 0.1), "3 equal sections do not make 10"),
    ],
)
def test_what_is_no_scheme_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
