"""Which tiles of the mask are skipped: never one that the rule needs, and nearly all that it leaves empty."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from laws.planting import planted_module
from pdref.lab.kernels.documents import two_streams
from pdref.ops.planned_attention import tiles
from pdref.text.layout import Layout
from pdref.text.mask import EMPTY, FULL, PARTIAL, Siblings, Sight, tile_map

SIZES = st.tuples(st.integers(0, 60), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
EITHER = st.sampled_from(["sparse", "dense"])


def document(size: tuple[int, int, int, int]) -> Layout:
    T, spans, stages, seed = size
    return two_streams(T + 2, spans, stages, seed)


def judge(query: Layout, key: Layout, block: int, siblings: Siblings) -> tuple[Tensor, Tensor]:
    """What tiles are, and what they are called; raises AssertionError where it would do harm."""
    exact, called = (
        tile_map(query, key, block, siblings),
        tiles.tiles_of(Sight.of(query, key, siblings), block, block).kind,
    )
    assert exact.shape == called.shape
    assert not ((called == EMPTY) & (exact != EMPTY)).any(), "a tile is skipped that the rule needs"
    assert not ((called == FULL) & (exact != FULL)).any(), "a tile takes no mask that the rule cuts"
    return exact, called


@settings(max_examples=150)
@given(documents=st.lists(SIZES, min_size=1, max_size=3), block=st.integers(1, 17), siblings=EITHER, part=st.data())
def test_no_tile_is_skipped_that_the_rule_needs(
    documents: list[tuple[int, int, int, int]], block: int, siblings: Siblings, part: st.DataObject
) -> None:
    both = Layout.collate([document(size) for size in documents])
    start = part.draw(st.integers(0, both.shape[1] - 1))
    judge(both.map(lambda field: field[:, start:]), both, block, siblings)
    judge(both, both.map(lambda field: field[:, start:]), block, siblings)
    judge(both.in_place(), both.in_place(), block, siblings)


@pytest.mark.parametrize("siblings", ["sparse", "dense"])
@pytest.mark.parametrize("stages", [1, 2, 4, 8])
def test_nearly_all_tiles_are_skipped_that_the_rule_leaves_empty(stages: int, siblings: Siblings) -> None:
    for seed in range(3):
        layout = two_streams(2048, spans=16, stages=stages, seed=seed)
        exact, called = judge(layout, layout, 64, siblings)
        empty, skipped = (float((x == EMPTY).float().mean()) for x in (exact, called))
        assert empty > 0.5 and skipped > 0.95 * empty
        assert (called == FULL).sum() > 0.9 * (exact == FULL).sum(), "full tiles are known to be full"


def test_a_single_token_to_a_tile_is_told_exactly(drawn: Callable[[str], Layout]) -> None:
    clean = drawn("ccz<xx>|zz<x><xxx>$_")
    both = Layout.concatenate([clean, clean.span_copy()[0]])
    for siblings in ("sparse", "dense"):
        exact, called = judge(both, both, 1, siblings)
        assert torch.equal(exact, called.long())


def test_lists_hold_full_tiles_first_then_partial_ones() -> None:
    layout = two_streams(300, spans=5, stages=2)
    found = tiles.tiles_of(Sight.of(layout, layout), 32, 16)
    for kind, (order, counts) in ((found.kind, found.by_query), (found.kind.transpose(1, 2), found.by_key)):
        assert order.is_contiguous() and order.dtype == counts.dtype == torch.int32
        for row, listed, (full, some) in zip(kind[0].tolist(), order[0].tolist(), counts[0].tolist(), strict=True):
            assert [row[j] for j in listed] == [FULL] * full + [PARTIAL] * (some - full) + [EMPTY] * (len(row) - some)
            assert listed[:full] == sorted(listed[:full]) and listed[full:some] == sorted(listed[full:some])


def test_tiles_are_found_once_for_all_layers() -> None:
    layout = two_streams(64, spans=2)
    sight = Sight.of(layout, layout)
    assert tiles.tiles_of(sight, 16, 16) is tiles.tiles_of(sight, 16, 16)
    assert tiles.tiles_of(sight, 16, 32).kind.shape == (1, 4, 2)


BUGS = {
    "positions are compared at the wrong ends": ("low[POSITION] <= q.high", "high[POSITION] <= q.low"),
    "a full tile may hold what comes later": ("high[POSITION] <= q.low", "low[POSITION] <= q.low"),
    "one stage's clean spans count as seen": ("past & ~overlap[BLOCK]", "past & ~one[BLOCK]"),
    "regions that touch are taken for one": ("| one[REGION]", "| overlap[REGION]"),
    "tokens without a region are in all": ("(numbers.amax(-1) < NEVER)", "(numbers.amax(-1) <= NEVER)"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_predicate_is_noticed(bug: str) -> None:
    with planted_module("pdref.ops.planned_attention.tiles", *BUGS[bug]), pytest.raises(AssertionError):
        import pdref.ops.planned_attention.tiles as planted

        for block in (4, 7, 16):
            layout = two_streams(90, spans=3, stages=2)
            exact = tile_map(layout, layout, block)
            called = planted.tiles_of(Sight.of(layout, layout), block, block).kind
            assert not ((called == EMPTY) & (exact != EMPTY)).any() and not ((called == FULL) & (exact != FULL)).any()
