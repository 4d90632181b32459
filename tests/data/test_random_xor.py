"""Random bits and their parity: each token alone is a coin, and together they are not."""

from __future__ import annotations

import math

import pytest
import torch

from pdref.data.random_xor import RandomXor


def sample(source: RandomXor, count: int, length: int) -> torch.Tensor:
    return source.sample(count, length, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("period", [2, 3, 5])
def test_a_period_ends_in_its_parity(period: int) -> None:
    tokens = sample(RandomXor(period, known_phase=True), 500, 4 * period)
    assert (tokens.unflatten(1, (4, period)).sum(-1) % 2 == 0).all()
    assert (tokens.float().mean(0) - 0.5).abs().max() < 0.1


def test_without_a_known_phase_every_phase_occurs() -> None:
    tokens = sample(RandomXor(), 300, 30)
    even = torch.stack([(tokens[:, p : p + 27].unflatten(1, (9, 3)).sum(-1) % 2 == 0).all(1) for p in range(3)])
    assert (even.sum(0) >= 1).all() and (even.sum(1) > 60).all()


def test_known_phases_cost_a_bit_or_nothing() -> None:
    """Next tokens cost ln 2 but for the parity; from further away every token is a coin, the joint future is not."""
    source = RandomXor(known_phase=True)
    for past in range(9):
        next_token, *later = source.entropy(past, n=4).tolist()
        assert next_token == pytest.approx(0 if past % 3 == 2 else math.log(2))
        assert later == pytest.approx([math.log(2)] * 3)
    laws = source.future(sample(source, 8, 9), 3)
    assert (laws > 0).sum(-1).unique().tolist() == [4], "of eight futures of three tokens, four are possible"


def test_a_period_is_at_least_a_bit_and_its_copy() -> None:
    with pytest.raises(ValueError, match="period"):
        RandomXor(1)
