"""What a sampler returns: its seconds, its history, its verdict."""

from __future__ import annotations

from typing import get_args

import pytest

from laws import worlds
from laws.checks import PROMPTS, SAMPLERS
from pdref.methods.decoding import Draw
from pdref.methods.generation import Event, Generation, Phase
from pdref.text.tags import Tag

SECONDS = {"autoregressive": {"write"}, "whole-response diffusion": {"plan", "denoise"}}


@pytest.mark.parametrize(
    ("end", "positions", "tokens"),
    [
        (9, (2, 5, 6), (20, 50, 60)),
        (7, (2, 5, 6), (20, 50, 60)),
        (6, (2, 5), (20, 50)),
        (3, (2,), (20,)),
        (2, (), ()),
    ],
)
def test_an_event_before_a_position(end: int, positions: tuple[int, ...], tokens: tuple[int, ...]) -> None:
    assert Event("denoise", (2, 5, 6), (20, 50, 60)).before(end) == Event("denoise", positions, tokens)


def test_seconds_add_up() -> None:
    assert Generation([], 0, seconds={"plan": 1.0, "denoise": 2.5}).total_seconds == 3.5
    assert Generation([], 0).total_seconds == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_keeps_the_same_books(sampler: str) -> None:
    for generation in SAMPLERS[sampler](worlds.inventor(), PROMPTS, [None] * len(PROMPTS), Draw(), True):
        prompt, *events = generation.history
        assert prompt.phase == "prompt" and prompt.tokens == tuple(generation.tokens[: generation.prompt_length])
        assert {event.phase for event in events} <= set(get_args(Phase))
        assert all(list(event.positions) == sorted(set(event.positions)) for event in generation.history)
        assert worlds.replayed(generation)[: len(generation.tokens)] == generation.tokens
        assert Tag.MASK not in generation.tokens
        assert generation.nfe >= generation.critical_path > 0
        assert (generation.document is None) == (generation.problem is not None)
        assert set(generation.seconds) == SECONDS.get(sampler, {"plan", "denoise", "commit"})
        assert all(seconds > 0 for seconds in generation.seconds.values())


def test_a_token_is_revealed_once() -> None:
    for generation in SAMPLERS["planned, sparse"](worlds.inventor(), PROMPTS, [None] * len(PROMPTS), Draw(1.0), True):
        revealed = [p for event in generation.history if event.phase == "denoise" for p in event.positions]
        masked = [
            position
            for event in generation.history
            if event.phase == "scaffold"
            for position, token in zip(event.positions, event.tokens, strict=True)
            if token == Tag.MASK
        ]
        assert sorted(revealed) == sorted(masked)
