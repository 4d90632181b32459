"""Beliefs and their consequences, against enumeration of every sequence."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise, product

import numpy as np
import pytest

from pdref.theory import hidden_markov
from pdref.theory.hidden_markov import HiddenMarkov, alike, choice_words, delayed_copy, mess3, random_xor
from pdref.theory.representation import information

SOURCES = {
    "copy": delayed_copy(2, 0.1),
    "copy of three symbols": delayed_copy(2, 0.3, 3),
    "xor": random_xor(),
    "xor, phase known": random_xor(known_phase=True),
    "longer xor": random_xor(4),
    "mess3": mess3(),
    "words": choice_words(2, 3),
    "drawn": HiddenMarkov(
        np.random.default_rng(0).dirichlet(np.ones(6), 3).reshape(3, 2, 3).transpose(1, 0, 2), np.array([0.2, 0.5, 0.3])
    ),
}
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())


def chance(source: HiddenMarkov, tokens: tuple[int, ...]) -> float:
    """Probability of a sequence as a sum over every path of states: an oracle without beliefs."""
    total = 0.0
    for path in product(range(len(source.start)), repeat=len(tokens) + 1):
        steps = [source.matrices[x, s, t] for x, (s, t) in zip(tokens, pairwise(path), strict=True)]
        total += source.start[path[0]] * np.prod(steps)
    return total


def joint(source: HiddenMarkov, length: int) -> np.ndarray:
    """Probability of every sequence of a length, an axis a token."""
    law = np.zeros((source.vocabulary,) * length)
    for tokens in product(range(source.vocabulary), repeat=length):
        law[tokens] = reduce(np.matmul, source.matrices[list(tokens)], source.start).sum()
    return law


@pytest.mark.parametrize("source", [SOURCES["drawn"], SOURCES["xor"]], ids=["drawn", "xor"])
def test_products_of_matrices_sum_over_paths(source: HiddenMarkov) -> None:
    law = joint(source, 3)
    for tokens in product(range(source.vocabulary), repeat=3):
        assert law[tokens] == pytest.approx(chance(source, tokens), abs=1e-14)


@every_source
def test_sequences_are_a_law(source: HiddenMarkov) -> None:
    assert joint(source, 4).sum() == pytest.approx(1)


@every_source
def test_beliefs_predict_what_enumeration_does(source: HiddenMarkov) -> None:
    law = joint(source, 5)
    for tokens in product(range(source.vocabulary), repeat=2):
        if (seen := law[tokens].sum()) == 0:
            with pytest.raises(ValueError, match="cannot write token"):
                source.beliefs(np.array([tokens]))
            continue
        belief = source.beliefs(np.array([tokens]))[0, -1]
        np.testing.assert_allclose(source.future(belief, 3), law[tokens] / seen, atol=1e-12)
        for offset, others in ((1, (1, 2)), (2, (0, 2)), (3, (0, 1))):
            np.testing.assert_allclose(source.ahead(belief, offset), (law[tokens] / seen).sum(others), atol=1e-12)


@every_source
def test_beliefs_come_in_batches(source: HiddenMarkov) -> None:
    possible = np.argwhere(joint(source, 4) > 0)[:6]
    together = source.beliefs(possible)
    assert together.shape == (len(possible), 5, len(source.start))
    np.testing.assert_array_equal(together[:, 0], np.broadcast_to(source.start, together[:, 0].shape))
    for tokens, beliefs in zip(possible, together, strict=True):
        np.testing.assert_allclose(source.beliefs(tokens), beliefs, rtol=1e-12)


@every_source
def test_pasts_of_one_belief_are_one_past(source: HiddenMarkov) -> None:
    """What merged beliefs say of the future is what all sequences say of it."""
    for past, horizon in ((0, 2), (2, 3), (3, 2)):
        table = source.table(past, horizon)
        assert len(table) <= source.vocabulary**past
        law = joint(source, past + horizon).reshape(source.vocabulary**past, -1)
        assert table.sum() == pytest.approx(1)
        np.testing.assert_allclose(table.reshape(len(table), -1).sum(0), law.sum(0), atol=1e-12)
        assert information(table) == pytest.approx(information(law), abs=1e-12)


def test_laws_are_alike_but_for_rounding() -> None:
    """Fractions, which are what exact laws are made of, keep together under noise of float64."""
    fractions = np.array([a / b for a in range(1, 32) for b in (2, 3, 5, 7, 10, 1000, 2**10, 3**7, 10**6)])
    fractions = np.unique(fractions)
    noise = 1 + 4e-16 * np.random.default_rng(0).standard_normal((8, len(fractions)))
    first, kind = alike(np.repeat(fractions, 8)[:, None] * noise.T.reshape(-1, 1))
    assert len(first) == len(fractions)
    assert (kind.reshape(-1, 8) == np.arange(len(fractions))[:, None]).all()


def test_beliefs_that_are_few_are_found_few() -> None:
    assert len(delayed_copy(4, 0.1).pasts(9)[0]) == 16
    assert len(random_xor(known_phase=True).pasts(12)[0]) == 1
    assert len(random_xor(known_phase=True).pasts(13)[0]) == 2
    assert len(random_xor().pasts(10)[0]) == 17
    assert len(mess3().pasts(6)[0]) == 3**6, "no two pasts of Mess3 are one"


@every_source
def test_the_sources_that_should_be_are_stationary(source: HiddenMarkov) -> None:
    if source in (SOURCES["drawn"], SOURCES["xor, phase known"], SOURCES["words"]):
        return
    np.testing.assert_allclose(source.start @ source.matrices.sum(0), source.start, atol=1e-12)


@pytest.mark.parametrize(
    ("matrices", "start", "message"),
    [
        (np.ones((2, 2, 3)) / 6, np.ones(2) / 2, r"\[V, S, S\]"),
        (np.ones((2, 2, 2)) / 4, np.ones(3) / 3, r"\[V, S, S\]"),
        (np.ones((2, 2, 2)) / 3, np.ones(2) / 2, "sum to 1"),
        (np.ones((2, 2, 2)) / 4, np.ones(2), "sum to 1"),
        (np.ones((1, 1, 2)) * [[[1.5, -0.5]]], np.ones(1), r"\[V, S, S\]"),
        (np.array([[[1.5, -0.5], [0.5, 0.5]]]), np.ones(2) / 2, "sum to 1"),
    ],
)
def test_what_is_no_source_is_refused(matrices: np.ndarray, start: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiddenMarkov(matrices, start)


def test_what_cannot_be_listed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_markov, "LARGEST", 100)
    assert len(mess3().pasts(4)[0]) == 81
    with pytest.raises(ValueError, match="5 tokens leave more than 100 beliefs"):
        mess3().pasts(5)
    with pytest.raises(ValueError, match="too large a table"):
        mess3().table(4, 4)
