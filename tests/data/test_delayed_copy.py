"""Delayed copy: which token is copied, and what that leaves to chance at every offset."""

from __future__ import annotations

import math

import pytest
import torch

from pdref.data.delayed_copy import DelayedCopy


def sample(source: DelayedCopy, count: int, length: int) -> torch.Tensor:
    return source.sample(count, length, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("delay", "symbols"), [(1, 2), (3, 5), (8, 2), (50, 2)])
def test_a_token_repeats_the_one_before_the_delay(delay: int, symbols: int) -> None:
    tokens = sample(DelayedCopy(delay, 0.0, symbols), 20, 3 * delay + 2)
    assert torch.equal(tokens[:, delay:], tokens[:, :-delay])
    assert len(tokens[:, 0].unique()) > 1


@pytest.mark.parametrize("symbols", [2, 5])
def test_errors_are_as_many_as_stated_and_spare_no_other_token(symbols: int) -> None:
    source = DelayedCopy(4, 0.1, symbols)
    tokens = sample(source, 2000, 44)
    error = (tokens[:, 4:] - tokens[:, :-4]) % symbols
    assert abs((error > 0).float().mean() - 0.1) < 4 * math.sqrt(0.09 / error.numel())
    counts = error[error > 0].bincount(minlength=symbols)[1:].double()
    assert (counts / counts.mean() - 1).abs().max() < 0.1


@pytest.mark.parametrize("source", [DelayedCopy(4, 0.1), DelayedCopy(2, 0.3, 3)], ids=str)
def test_every_offset_costs_its_closed_form(source: DelayedCopy) -> None:
    """Offset k is ceil(k / delay) noisy copies away; what was never shown is uniform."""
    V = source.symbols
    for past in range(7):
        for k, nats in enumerate(source.entropy(past, n=9).tolist(), 1):
            copies = -(-k // source.delay)
            same = 1 / V + (1 - 1 / V) * (1 - source.noise * V / (V - 1)) ** copies
            other = (1 - same) / (V - 1)
            shown = past + k > copies * source.delay
            exact = -same * math.log(same) - (V - 1) * other * math.log(other) if shown else math.log(V)
            assert nats == pytest.approx(exact)


@pytest.mark.parametrize("numbers", [(0, 0.1, 2), (4, -0.1, 2), (4, 1.1, 2), (4, 0.1, 1)])
def test_impossible_numbers_are_refused(numbers: tuple[int, float, int]) -> None:
    with pytest.raises(ValueError, match="a delay is at least 1"):
        DelayedCopy(*numbers)


def test_long_delays_are_sampled_but_not_enumerated() -> None:
    with pytest.raises(ValueError, match="states"):
        DelayedCopy(50).nats(sample(DelayedCopy(50), 1, 60))
