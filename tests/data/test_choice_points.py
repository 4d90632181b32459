"""Choices and what an n-token loss charges for them."""

from __future__ import annotations

import math

import pytest
import torch

from pdref.data.choice_points import ChoicePoints


def test_a_word_spells_its_branch_and_ends_freely() -> None:
    source = ChoicePoints(branches=3, length=5)
    words = source.sample(400, 20, torch.Generator().manual_seed(0)).unflatten(1, (4, 5))
    assert (words // 3 == torch.arange(5)).all(), "a token tells its place"
    value = words % 3
    assert (value[..., :4] == value[..., :1]).all()
    together = (value[..., 0] * 3 + value[..., 4]).flatten().bincount(minlength=9) / 1600
    assert (together - 1 / 9).abs().max() < 0.04, "branch and last token are independent"


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_a_choice_weighs_the_triangle_of_n_and_a_free_token_n(n: int) -> None:
    """Nats of a word, all of whose tokens are predicted from far enough, under n perfect heads."""
    source = ChoicePoints(branches=4, length=8)
    nats = source.nats(source.sample(5, 32, torch.Generator().manual_seed(0)), n)[:, 16:24]
    torch.testing.assert_close(nats[:, 7].sum(-1), torch.full((5,), n * math.log(4)).double())
    torch.testing.assert_close(nats[:, :7].sum((1, 2)), torch.full((5,), n * (n + 1) / 2 * math.log(4)).double())


def test_a_head_beyond_the_word_pays_for_the_next_choice_once() -> None:
    """From length - 1 offsets on the triangle is full: nothing binds longer than a word."""
    source = ChoicePoints(branches=4, length=4)
    nats = source.nats(source.sample(1, 40, torch.Generator().manual_seed(0)), 9)[0, 20:24, :]
    across = [round(float(x), 9) for x in nats[:3].sum(0) / math.log(4)]
    assert across == [1, 2, 3, 3, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("sizes", [(1, 8), (4, 1)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a word has"):
        ChoicePoints(*sizes)
