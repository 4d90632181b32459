"""Denoising: how many tokens a step reveals, and which."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from laws import worlds
from laws.checks import deferring_ends_in_time, no_mask_is_ever_drawn, the_surest_goes_first
from pdref.methods.decoding import Draw, Requests
from pdref.methods.denoising import Canvas, Unmasking, denoise, quotas, reveal
from pdref.ops.unmask.counters import gumbel, uniform
from pdref.text.document import Item
from pdref.text.layout import LayoutBuilder, Role, Stream
from pdref.text.tags import Tag

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=8)


@given(lengths=LENGTHS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_quotas_at_r_1_are_one_token_a_step(lengths: list[int], data: st.DataObject) -> None:
    owners = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    schedule = quotas(torch.tensor(lengths), torch.tensor(owners), 1.0)
    assert schedule.shape[1] == max(lengths)
    for row, length in zip(schedule.tolist(), lengths, strict=True):
        assert row == [1] * length + [0] * (max(lengths) - length)


@given(lengths=LENGTHS, ratio=st.sampled_from([0.01, 0.1, 0.25, 0.34, 0.5, 0.75, 0.99]), data=st.data())
@settings(max_examples=100, deadline=None)
def test_quotas_below_1_end_together_and_spread_evenly(lengths: list[int], ratio: float, data: st.DataObject) -> None:
    owners = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    schedule = quotas(torch.tensor(lengths), torch.tensor(owners), ratio)
    for row, length, owner in zip(schedule.tolist(), lengths, owners, strict=True):
        longest = max(n for n, b in zip(lengths, owners, strict=True) if b == owner)
        steps = max(1, round(ratio * longest))
        used = row[:steps]
        assert sum(used) == length and not any(row[steps:])
        assert used[-1] == max(used), "the last step has something to reveal"
        assert max(used) - min(used) <= 1


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_a_request_keeps_its_quotas_in_company(ratio: float) -> None:
    alone = quotas(torch.tensor([3, 7]), torch.tensor([0, 0]), ratio)
    together = quotas(torch.tensor([20, 3, 7]), torch.tensor([0, 1, 1]), ratio)
    assert torch.equal(together[1:, : alone.shape[1]], alone) and not together[1:, alone.shape[1] :].any()


MASKED = torch.tensor([[1, 1, 0, 1, 1]]).bool()
CONFIDENCE = torch.tensor([[0.1, 0.9, 1.0, 0.5, 0.4]])


def revealed(unmasking: Unmasking, probability: list[float], quota: int, last: bool = False) -> list[int]:
    """Which positions of `MASKED` are revealed."""
    chosen = reveal(
        unmasking,
        CONFIDENCE,
        torch.tensor([probability]),
        MASKED,
        torch.tensor([quota]),
        torch.tensor([last]),
    )
    return chosen[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("threshold", "meaning", "quota", "last", "expected"),
    [
        (None, "defer", 2, False, [1, 3]),  # the most confident masked ones; what is not masked never
        (None, "defer", 0, False, []),
        (None, "defer", 9, False, [0, 1, 3, 4]),
        (0.7, "defer", 2, False, [1]),  # 3 is in turn but unsure, so it stays masked
        (0.7, "defer", 3, False, [1, 4]),
        (0.99, "defer", 3, False, [1]),  # none is sure: the best one goes
        (0.99, "defer", 1, False, [1]),  # one at a time there is nothing to defer
        (0.99, "defer", 0, False, []),
        (0.99, "defer", 1, True, [0, 1, 3, 4]),  # the last step reveals all
        (0.7, "reveal", 1, False, [0, 1, 4]),  # whatever the quota, all that are sure
        (0.99, "reveal", 3, False, [1]),  # at least one
        (0.0, "reveal", 0, False, [0, 1, 3, 4]),
    ],
)
def test_a_threshold_defers_or_reveals(
    threshold: float | None, meaning: str, quota: int, last: bool, expected: list[int]
) -> None:
    unmasking = Unmasking(threshold=threshold, threshold_meaning=meaning)  # type: ignore[arg-type]
    assert revealed(unmasking, [0.95, 0.8, 1.0, 0.6, 0.75], quota, last) == expected


def test_a_tie_goes_from_left_to_right() -> None:
    flat = torch.zeros(1, 4)
    chosen = reveal(Unmasking(), flat, flat, torch.ones(1, 4).bool(), torch.tensor([2]), torch.tensor([False]))
    assert chosen[0].tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_ratio": 0}, r"step ratio is in \(0, 1\], not 0"),
        ({"step_ratio": 1.5}, "not 1.5"),
        ({"order": "left"}, "'entropy', 'confidence' or 'random', not 'left'"),
        ({"threshold": 1.2}, "a probability, not 1.2"),
        ({"threshold": -0.1}, "a probability"),
        ({"threshold_meaning": "wait"}, "'defer' or 'reveal', not 'wait'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Unmasking(**arguments)  # type: ignore[arg-type]


def scaffold(words: int, stage: int = 0, k: int = 0) -> LayoutBuilder:
    """A span of masks."""
    builder = LayoutBuilder(worlds.TOKENIZER, worlds.inventor().grammar)
    builder.open_span(Item("sun", 1), stage, k)
    builder.add([Tag.MASK] * words, Role.CONTENT, stage, k)
    builder.close_span(stage, k)
    return builder


def test_a_canvas_holds_each_span_at_its_own_place() -> None:
    canvas = Canvas.of([scaffold(1).build(), scaffold(3).build()], [1, 0], [7, 20])
    assert canvas.layout.position[0].tolist() == [7, 8, 9, 10, 0, 0], "fillers stay at a place that exists"
    assert canvas.layout.position[1].tolist() == [20, 21, 22, 23, 24, 25]
    assert (canvas.layout.stream == Stream.NOISED).all()
    assert canvas.request.tolist() == [1, 0]


def test_the_surest_goes_first() -> None:
    the_surest_goes_first()


def test_deferring_ends_in_time() -> None:
    deferring_ends_in_time()


def test_no_mask_is_ever_drawn() -> None:
    no_mask_is_ever_drawn()


def test_a_random_order_is_no_order_of_draws() -> None:
    """Noise that chose a token may not choose its turn too."""
    seeds, positions = torch.arange(4000), torch.arange(4000) % 17
    turn = uniform(seeds, positions, 2, -1)
    noise = gumbel(seeds, positions, 2, 12)
    correlation = torch.corrcoef(torch.cat([turn[None], noise.T]))[0, 1:]
    assert correlation.abs().max() < 0.06


@pytest.mark.parametrize("cached", [True, False])
def test_denoising_reveals_every_mask_and_touches_nothing_else(cached: bool) -> None:
    requests = Requests(worlds.inventor(), ["ada", "bo bo"], Draw(), cached)
    requests.read([0, 1])
    spans = [scaffold(2).build(), scaffold(5, 0, 1).build(), scaffold(3).build()]
    canvas = Canvas.of(spans, [0, 0, 1], [2, 7, 3])
    found = denoise(requests, canvas, Unmasking())
    was: Tensor = canvas.layout.token
    assert not (found == Tag.MASK).any()
    assert torch.equal(found[was != Tag.MASK], was[was != Tag.MASK])
    assert [g.critical_path - 1 for g in requests.generations] == [5, 3]
    assert [g.nfe - 1 for g in requests.generations] == [7, 3]
