"""A window on the past: as drawn by hand, as its rule says, and no further than its reach."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from laws import writers
from pdref.text.layout import Layout, Role
from pdref.text.window import may_see, reach, window_mask

# Drawn by hand, window 3, the plan kept in sight: c prompt, z plan, x text, _ padding.
PICTURE = """
c  #.........   the prompt begins
c  ##........   and is causal
z  ###.......   the plan reads the prompt while it is near
z  .###......   the window moves on: the prompt's first token is out of sight
<  ..###.....   so is the prompt
x  ..####....   the plan stays, whatever the distance
x  ..#####...   with the two tokens before
x  ..##.###..   what was said before that is out of sight
_  ..##..##..   padding sees the past
_  ..##...#..   and nobody sees padding
"""


def test_the_mask_is_the_one_drawn_by_hand(drawn: Callable[[str], Layout]) -> None:
    layout = drawn("cczz<xxx__")
    for line, row in zip(PICTURE.strip().splitlines(), window_mask(layout, layout, 3)[0, 0].tolist(), strict=True):
        _, cells, sentence = (part for part in line.split("  ") if part)
        assert "".join("#" if seen else "." for seen in row) == cells, sentence


def test_the_mask_is_the_rule() -> None:
    writers.the_mask_is_the_rule()


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_nothing_comes_from_beyond_reach(layers: int, window: int) -> None:
    writers.nothing_comes_from_beyond_reach(layers, window)


def test_reach_is_a_sum_over_layers() -> None:
    assert [reach(2, 15), reach(1, 15), reach(5, 1)] == [28, 14, 0]


def test_a_wide_window_is_causal_attention(drawn: Callable[[str], Layout]) -> None:
    layout = drawn("cczz<xxx>$")
    whole = window_mask(layout, layout, None)
    assert torch.equal(whole[0, 0], torch.ones(10, 10).tril().bool())
    assert torch.equal(window_mask(layout, layout, 10, ()), whole)


def test_the_prompt_is_kept_in_sight_by_choice(drawn: Callable[[str], Layout]) -> None:
    layout = drawn("cczz<xxx>$")
    assert (
        window_mask(layout, layout, 2, (Role.PROMPT, Role.PLAN))[0, 0, -1].tolist()
        == [True] * 4 + [False] * 4 + [True] * 2
    )


def test_a_window_holds_the_token_itself(drawn: Callable[[str], Layout]) -> None:
    layout = drawn("cx")
    with pytest.raises(ValueError, match="at least the token itself, not 0"):
        may_see(layout, layout, 0)
