"""Counter noise: uniform, independent, and a function of what it is for alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from pdref.ops.unmask.counters import gumbel, mix, uniform

SEEDS, POSITIONS, LANES = 40, 25, 20
STEPS = (0, 1, 7)


def grid() -> Tensor:
    """Numbers [seed, position, step, lane] for neighbouring counters, the way samplers ask for them."""
    seeds = torch.arange(SEEDS)[:, None, None]
    positions = torch.arange(POSITIONS)[:, None]
    return torch.stack([uniform(seeds, positions, step, torch.arange(LANES)) for step in STEPS], 2)


def mix_in_python(h: int) -> int:
    """MurmurHash3's finaliser, as published, on integers that cannot overflow."""
    h = ((h ^ h >> 16) * 0x85EBCA6B) % 2**32
    h = ((h ^ h >> 13) * 0xC2B2AE35) % 2**32
    return h ^ h >> 16


def test_words_are_mixed_as_published() -> None:
    assert mix(torch.tensor([0, 1])).tolist() == [0, 0x514E28B7]
    words = torch.randint(2**32, (1000,), generator=torch.Generator().manual_seed(0))
    words = torch.cat([words, torch.tensor([2**32 - 1, 2**31, 2**31 - 1])])
    assert mix(words).tolist() == [mix_in_python(word) for word in words.tolist()]


def test_a_number_is_the_hash_of_seed_position_step_and_lane() -> None:
    def one(seed: int, *words: int) -> float:
        h = mix_in_python(seed % 2**32)
        for word in words:
            h = mix_in_python(h ^ (word + 1) * 0x9E3779B9 % 2**32)
        return ((h >> 9) + 0.5) / 2**23

    for seed, position, step, lane in itertools.product((0, 2**31, 10**9), (0, 511), (0, 9), (0, 50_000)):
        assert uniform(torch.tensor(seed), torch.tensor(position), step, lane).item() == one(seed, position, step, lane)


def test_numbers_are_uniform() -> None:
    numbers = grid().flatten()
    counts = torch.histc(numbers, bins=64, min=0, max=1).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3


def test_numbers_lie_strictly_inside_the_unit_interval() -> None:
    numbers = grid()
    assert numbers.min() > 0 and numbers.max() < 1 and numbers.dtype == torch.float32
    # The extremes of the hash: all bits zero and all bits one, as the last line of `uniform` maps them.
    extremes = ((torch.tensor([0, 2**32 - 1]) >> 9) + 0.5) * 2.0**-23
    assert extremes.tolist() == [2.0**-24, 1 - 2.0**-24]


@pytest.mark.parametrize("axis", range(4), ids=["seeds", "positions", "steps", "lanes"])
def test_neighbours_are_independent(axis: int) -> None:
    numbers = grid()
    here, there = (
        numbers.narrow(axis, 0, numbers.shape[axis] - 1),
        numbers.narrow(axis, 1, numbers.shape[axis] - 1),
    )
    cells = (here * 8).long().flatten() * 8 + (there * 8).long().flatten()
    assert stats.chisquare(torch.bincount(cells, minlength=64).numpy()).pvalue > 1e-3
    assert stats.pearsonr(here.flatten().numpy(), there.flatten().numpy()).pvalue > 1e-3


def test_swapped_counters_do_not_collide() -> None:
    # Position 3 at step 5 is not position 5 at step 3: a sum of counters would make them one.
    seeds = torch.zeros(1, dtype=torch.int64)
    draws = [uniform(seeds, seeds + p, s, lane).item() for p, s, lane in itertools.product(range(9), repeat=3)]
    assert len(set(draws)) == len(draws)


def test_gumbel_noise_is_minus_log_minus_log_of_it() -> None:
    seeds, positions = torch.arange(200) * 7, torch.arange(200)
    noise = gumbel(seeds, positions, 2, width=30)
    assert noise.shape == (200, 30) and noise.dtype == torch.float32 and noise.isfinite().all()
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    u = uniform(seeds[:, None], positions[:, None], 2, torch.arange(30))
    torch.testing.assert_close(noise, -(-u.log()).log())


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    seeds, positions = torch.tensor([5, 5, 9]), torch.tensor([0, 1, 0])
    together = gumbel(seeds, positions, 3, width=8)
    for n in range(3):
        assert torch.equal(gumbel(seeds[n : n + 1], positions[n : n + 1], 3, width=8)[0], together[n])
    assert torch.equal(gumbel(seeds, positions, 3, width=4), together[:, :4]), "a wider vocabulary changes no draw"
