"""Mess3: the filter against Bayes' rule over all paths of states, and the statistic that needs one token."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from pdref.data.mess3 import Mess3


def by_hand(source: Mess3, tokens: list[int]) -> np.ndarray:
    """The belief after `tokens`, by summing over every path of states: moves, then shows."""
    weight = np.zeros(3)
    for path in product(range(3), repeat=len(tokens) + 1):
        chance = 1 / 3
        for before, after, token in zip(path, path[1:], tokens, strict=False):
            chance *= 1 - 2 * source.x if after == before else source.x
            chance *= source.a if token == after else (1 - source.a) / 2
        weight[path[-1]] += chance
    return weight / weight.sum()


@pytest.mark.parametrize("source", [Mess3(), Mess3(0.15, 0.6)], ids=str)
def test_beliefs_are_sums_over_paths(source: Mess3) -> None:
    tokens = source.sample(5, 6, torch.Generator().manual_seed(0))
    for row, beliefs in zip(tokens.tolist(), source.beliefs(tokens), strict=True):
        for t in range(6):
            np.testing.assert_allclose(beliefs[t], by_hand(source, row[: t + 1]), atol=1e-12)


def test_the_next_token_tells_the_belief() -> None:
    """p(x_{t+1} | past) is the belief under an invertible matrix."""
    source = Mess3()
    tokens = source.sample(50, 12, torch.Generator().manual_seed(0))
    shows = torch.from_numpy(source.process.matrices.sum(2)).T  # [S, V]
    torch.testing.assert_close(source.ahead(tokens, 1)[:, :, 0] @ shows.inverse(), source.beliefs(tokens))


def test_the_state_stays_and_shows() -> None:
    tokens = Mess3(x=0.0, a=1.0).sample(300, 9, torch.Generator().manual_seed(0))
    assert (tokens == tokens[:, :1]).all() and tokens[:, 0].bincount().min() > 60


@pytest.mark.parametrize("numbers", [(-0.1, 0.8), (0.6, 0.8), (0.05, 1.1)])
def test_impossible_numbers_are_refused(numbers: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="x is at most 1/2"):
        Mess3(*numbers)
