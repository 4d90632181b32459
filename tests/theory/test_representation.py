"""The table of exact bits to three digits, the order of minimal statistics, and the claim's counterexample."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from laws.planting import Bug
from pdref.theory import representation
from pdref.theory.hidden_markov import delayed_copy, mess3, random_xor
from pdref.theory.representation import (
    best_codes,
    counterexample,
    earned,
    entropy,
    information,
    kept,
    partitions,
    reads,
    row,
    statistic,
)

COPY = delayed_copy(4, 0.1).table(past=6, horizon=4)
XOR = random_xor().table(past=10, horizon=6)
WAITING = random_xor().future(np.diag(random_xor().start), 6)  # the five states of the XOR, which a long past tells
laws = arrays.arrays(float, (5, 2, 2, 2), elements=st.sampled_from([0.0, 1.0, 2.0, 5.0]))


@cache
def three_states() -> np.ndarray:
    return mess3(x=0.05, a=0.85).table(past=6, horizon=5)


def binary(p: float) -> float:
    """H(p) in bits, written out."""
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


# The page.


@pytest.mark.parametrize(
    ("table", "page"),
    [
        (lambda: COPY, (2.124, 0.531, 2.124, 2.124)),
        (lambda: XOR, (1.297, 0.618, 0.618, 1.297)),
        (three_states, (0.570, 0.570, 0.570, 0.570)),
    ],
    ids=["delayed copy", "random-random-XOR", "Mess3"],
)
def test_the_table_of_the_page(table: Callable[[], np.ndarray], page: tuple[float, ...]) -> None:
    found = row(table(), n=4)
    bits = (found.past, found.next_token, found.parallel, found.sequential)
    assert tuple(round(x, 3) for x in bits) == page


def test_the_copy_is_four_binary_channels() -> None:
    found = row(COPY)
    assert found.next_token == pytest.approx(1 - binary(0.1))
    assert found.past == found.parallel == pytest.approx(4 * (1 - binary(0.1)))
    longer = delayed_copy(4, 0.1).table(6, 6)
    assert information(longer) == pytest.approx(found.past), "later tokens tell nothing new"
    assert kept(longer, statistic(longer, 6)) == pytest.approx(found.past), "nor do later heads"


@pytest.mark.parametrize("delay", [1, 2, 3, 4, 5])
def test_parallel_heads_gain_up_to_the_delay_and_not_beyond(delay: int) -> None:
    table = delayed_copy(delay, 0.1).table(delay, 7)
    bits = [kept(table, statistic(table, n)) for n in range(1, 8)]
    np.testing.assert_allclose(bits, [min(n, delay) * (1 - binary(0.1)) for n in range(1, 8)], atol=1e-9)


def test_no_number_of_parallel_heads_sees_the_xor_and_two_sequential_ones_do() -> None:
    for n in range(1, 7):
        assert kept(XOR, statistic(XOR, n)) == pytest.approx(kept(XOR, statistic(XOR, 1)))
    for n in range(2, 7):
        assert kept(XOR, statistic(XOR, n, "sequential")) == pytest.approx(information(XOR))


def test_mess3_tells_all_at_once() -> None:
    table = three_states()
    for heads in ("parallel", "sequential"):
        for n in (1, 2, 4):
            assert len(set(statistic(table, n, heads))) == len(table), "every belief has its own next token"


def test_mess3_tells_a_little_more_to_who_looks_further() -> None:
    """The page's .570 is the next five tokens; of all that come it is .571."""
    bits = [information(mess3().table(6, horizon)) for horizon in (4, 5, 6, 7)]
    assert [round(x, 3) for x in bits] == [0.568, 0.570, 0.571, 0.571]


# The order that holds.


@given(laws, st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_minimal_statistics_are_ordered(weights: np.ndarray, n: int) -> None:
    """S_1 is a function of parallel S_n, that of sequential S_n, and what they keep grows to what the past says."""
    weights = weights[weights.sum((1, 2, 3)) > 0]
    if not len(weights):
        return
    table = weights / weights.sum()
    chain = [statistic(table, 1), statistic(table, n), statistic(table, n, "sequential"), np.arange(len(table))]
    for coarse, fine in pairwise(chain):
        assert len(set(zip(coarse, fine, strict=True))) == len(set(fine)), "the finer one decides the coarser"
    bits = [kept(table, code) for code in chain]
    assert all(a <= b + 1e-9 for a, b in pairwise(bits))
    assert bits[-1] == pytest.approx(information(table), abs=1e-9)


@given(laws, st.integers(1, 3), st.sampled_from(["parallel", "sequential"]))
@settings(deadline=None, max_examples=60)
def test_a_minimal_statistic_earns_all_there_is(weights: np.ndarray, n: int, heads: str) -> None:
    """It is sufficient for its heads, and joining any two of its values is not."""
    weights = weights[weights.sum((1, 2, 3)) > 0]
    if not len(weights):
        return
    table = weights / weights.sum()
    code = statistic(table, n, heads)
    full = earned(table, np.arange(len(table)), n, heads)
    assert earned(table, code, n, heads) == pytest.approx(full, abs=1e-9)
    for joined in range(1, code.max() + 1):
        assert earned(table, np.where(code == joined, 0, code), n, heads) < full - 1e-9


def test_entropy_and_information_are_the_textbook_s() -> None:
    assert entropy(np.full(8, 1 / 8)) == pytest.approx(3)
    assert entropy(np.array([[0.5, 0.5], [0.0, 0.0]])) == pytest.approx(1)
    assert information(np.eye(4) / 4) == pytest.approx(2)
    assert information(np.full((3, 5), 1 / 15)) == pytest.approx(0, abs=1e-12)
    assert information(np.array([[0.45, 0.05], [0.05, 0.45]])) == pytest.approx(1 - binary(0.1))


def test_heads_read_margins() -> None:
    table = counterexample()
    first, second, third = reads(table, 3, "parallel")
    np.testing.assert_allclose(first, table.sum((2, 3)))
    np.testing.assert_allclose(second, table.sum((1, 3)))
    np.testing.assert_allclose(third, table.sum((1, 2)))
    np.testing.assert_allclose(reads(table, 2, "sequential"), [table.sum(3)])
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"{n} heads read a table of 3"):
            reads(table, n, "parallel")


# Hidden states of few values.


def test_the_counterexample_of_the_page() -> None:
    """One bit: the optimum of one head keeps 1.0 bit about the three tokens, that of three heads 0.2."""
    one, three = best_codes(counterexample(), 2, n=1), best_codes(counterexample(), 2, n=3)
    assert (one.least, one.most) == (pytest.approx(1), pytest.approx(1))
    assert one.codes.tolist() == [[0, 0, 1, 1]], "it is U"
    assert round(three.least, 3) == round(three.most, 3) == 0.2
    assert three.codes.tolist() == [[0, 1, 0, 1], [0, 1, 1, 0]], "V, or U xor V: they tie"
    assert information(counterexample()) == pytest.approx(1 + 1 - binary(0.243))
    assert one.earned == pytest.approx(1 - binary(0.316)) and three.earned == pytest.approx(1 - binary(0.243))


def test_the_counterexample_needs_parallel_heads_or_too_few_of_them() -> None:
    table = counterexample()
    assert best_codes(table, 2, 3, "sequential").least == pytest.approx(1)
    assert round(best_codes(table, 2, 2, "sequential").most, 3) == 0.2
    assert best_codes(table, 4, 3).least == pytest.approx(information(table)), "two bits hold all there is"


def test_codes_that_toss_coins_are_no_better() -> None:
    table, rng = counterexample(), np.random.default_rng(0)
    for n, heads in ((1, "parallel"), (3, "parallel"), (3, "sequential")):
        best = best_codes(table, 2, n, heads).earned
        coins = [earned(table, rng.dirichlet([0.3, 0.3], 4), n, heads) for _ in range(2000)]
        assert 0.5 * best < max(coins) <= best + 1e-9


def test_under_a_bottleneck_the_copy_gains_from_two_bits_on() -> None:
    """One head never needs more than its one bit; three heads fill whatever there is."""
    table, bit = delayed_copy(3, 0.1).table(3, 3), 1 - binary(0.1)
    for values, bits in ((2, 1), (4, 2), (8, 3)):
        one, three = best_codes(table, values, 1), best_codes(table, values, 3)
        assert one.least == pytest.approx(bit) and one.most == pytest.approx(bits * bit)
        assert three.least == three.most == pytest.approx(bits * bit)


def test_under_a_bottleneck_the_xor_gains_with_sequential_heads_alone() -> None:
    for values in (2, 3, 4, 5):
        one, parallel = best_codes(WAITING, values, 1), best_codes(WAITING, values, 3)
        assert one.codes.tolist() == parallel.codes.tolist()
        assert best_codes(WAITING, values, 3, "sequential").least > one.least + 0.1
    assert best_codes(WAITING, 5, 3, "sequential").least == pytest.approx(information(WAITING))


def test_under_a_bottleneck_mess3_gains_next_to_nothing() -> None:
    """Nothing with parallel heads; with sequential ones 0.004 bits, where the bottleneck leaves a choice."""
    table = mess3().table(2, 5)
    for values in (2, 3):
        one, *more = (
            best_codes(table, values, n, heads) for n, heads in ((1, "parallel"), (4, "parallel"), (4, "sequential"))
        )
        assert all(many.codes.tolist() == one.codes.tolist() for many in more)
    one, sequential = best_codes(table, 4, 1), best_codes(table, 4, 4, "sequential")
    assert 0.003 < sequential.least - one.most < 0.005


def test_partitions_are_all_there_are() -> None:
    """Their numbers are Stirling's, and no two are the same up to names."""
    for pasts, values, ways in ((4, 2, 8), (5, 5, 52), (6, 3, 122), (3, 1, 1), (1, 4, 1)):
        found = [tuple(code) for code in partitions(pasts, values)]
        assert len(found) == len(set(found)) == ways
        assert all(max(code) < values and code[0] == 0 for code in found)
        renamed = {tuple(frozenset(np.flatnonzero(np.array(code) == v)) for v in range(values)) for code in found}
        assert len({frozenset(parts) for parts in renamed}) == ways
    with pytest.raises(ValueError, match="codes of 30 pasts with 2 values"):
        partitions(30, 2)


def test_a_code_may_be_given_by_probabilities() -> None:
    labels = np.array([0, 1, 1, 0])
    assert kept(counterexample(), np.eye(2)[labels]) == pytest.approx(kept(counterexample(), labels))
    assert kept(counterexample(), np.full((4, 2), 0.5)) == pytest.approx(0, abs=1e-12)


# The tests can fail.

HERE = "pdref.theory.representation:"
BUGS = {
    "heads of a chain read each offset alone": (
        Bug(f"{HERE}reads", 'heads == "sequential"', "False", ()),
        lambda: test_the_table_of_the_page(lambda: XOR, (1.297, 0.618, 0.618, 1.297)),
    ),
    "parallel heads skip the next token": (
        Bug(f"{HERE}reads", "range(1, n + 1)", "range(2, n + 1)", ()),
        partial(test_parallel_heads_gain_up_to_the_delay_and_not_beyond, 2),
    ),
    "codes are worth what they keep": (
        Bug(f"{HERE}best_codes", "earned(table, code, n, heads) for code", "kept(table, code) for code", ()),
        test_the_counterexample_of_the_page,
    ),
    "pasts are equal that only begin alike": (
        Bug(f"{HERE}statistic", "reads(table, n, heads)", "reads(table, 1, heads)", ()),
        lambda: test_the_table_of_the_page(lambda: COPY, (2.124, 0.531, 2.124, 2.124)),
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_turn_tests_red(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug, law = BUGS[name]
    law()
    bug.plant(monkeypatch)
    for planted in ("reads", "best_codes", "statistic"):  # this module's own names
        monkeypatch.setitem(globals(), planted, getattr(representation, planted))
    with pytest.raises((AssertionError, ValueError)):
        law()
