"""The cache: however the tokens come, the hidden states are those of one forward over the whole text."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pdref.model.cache import Cache
from pdref.model.transformer import Config, Transformer
from pdref.text.layout import Layout
from pdref.text.mask import Sight

V, C, T = 23, 32, 14
CONFIG = Config(V, C, 2, 16, 4, 2)
same = torch.testing.assert_close


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).double().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(V, (3, T), generator=torch.Generator().manual_seed(0))


def empty(model: Transformer, batch: int, capacity: int = C) -> Cache:
    return Cache(CONFIG, batch, capacity, like=model.embed.weight)


def at(positions: list[int], batch: int) -> Tensor:
    return torch.tensor(positions).expand(batch, -1)


def read(model: Transformer, cache: Cache, tokens: Tensor, positions: Tensor, rows: Tensor | None = None) -> Tensor:
    return model(tokens, positions, memory=cache.at(positions, rows))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("pieces", [[1] * T, [T], [5, 9], [1, 4, 1, 1, 7], [13, 1]], ids=str)
def test_piece_by_piece_is_the_whole(model: Transformer, tokens: Tensor, batch: int, pieces: list[int]) -> None:
    tokens, cache, start, parts = tokens[:batch], empty(model, batch), 0, []
    for size in pieces:
        positions = at(list(range(start, start + size)), batch)
        parts.append(read(model, cache, tokens[:, start : start + size], positions))
        start += size
    same(torch.cat(parts, 1), model(tokens, at(list(range(T)), batch)))


def test_requests_of_different_lengths_read_as_if_alone(model: Transformer, tokens: Tensor) -> None:
    lengths, more = [3, 7, 5], 4
    alone = [
        model(row[None, : n + more], at(list(range(n + more)), 1))[0, n:]
        for row, n in zip(tokens, lengths, strict=True)
    ]
    cache = empty(model, 3)
    # The prompts side by side, right-padded with whatever: nobody reads a filler.
    read(model, cache, tokens[:, :7], at(list(range(7)), 3))
    starts = torch.tensor(lengths)[:, None]
    for step in range(more):
        positions = starts + step
        hidden = read(model, cache, tokens.gather(1, positions), positions)
        same(hidden[:, 0], torch.stack([states[step] for states in alone]))


def test_several_tokens_at_different_places_read_as_if_alone(model: Transformer, tokens: Tensor) -> None:
    cache = empty(model, 3)
    read(model, cache, tokens[:, :7], at(list(range(7)), 3))
    positions = torch.tensor([3, 7, 5])[:, None] + torch.arange(4)
    hidden = read(model, cache, tokens.gather(1, positions), positions)
    whole = model(tokens, at(list(range(T)), 3))
    same(hidden, whole.gather(1, positions[..., None].expand_as(hidden)))


def test_some_rows_go_on_while_others_rest(model: Transformer, tokens: Tensor) -> None:
    cache = empty(model, 3)
    read(model, cache, tokens[:, :6], at(list(range(6)), 3))
    rows = torch.tensor([2, 0])
    kept = cache.entries[:, 1].clone()
    hidden = read(model, cache, tokens[rows, 6:9], at([6, 7, 8], 2), rows)
    whole = model(tokens, at(list(range(T)), 3))
    same(hidden, whole[rows, 6:9])
    assert torch.equal(cache.entries[:, 1], kept)
    # The row that rested goes on later, alone and then beside the others.
    same(read(model, cache, tokens[1:2, 6:9], at([6, 7, 8], 1), torch.tensor([1])), whole[1:2, 6:9])
    same(read(model, cache, tokens[:, 9:], at(list(range(9, T)), 3)), whole[:, 9:])


def test_what_is_written_again_leaves_no_stale_keys(model: Transformer, tokens: Tensor) -> None:
    # A commit rewrites the keys of finished spans: slots 4 to 9 first hold other tokens.
    cache = empty(model, 3)
    read(model, cache, tokens[:, :4], at(list(range(4)), 3))
    read(model, cache, tokens.flip(0)[:, 4:10], at(list(range(4, 10)), 3))
    read(model, cache, tokens[:, 4:10], at(list(range(4, 10)), 3))
    same(
        read(model, cache, tokens[:, 10:], at(list(range(10, T)), 3)),
        model(tokens, at(list(range(T)), 3))[:, 10:],
    )


def test_a_request_does_not_see_its_own_old_future(model: Transformer, tokens: Tensor) -> None:
    # A plan that is cut goes on from an earlier place; the slots behind it still hold what was cut.
    cache = empty(model, 3)
    read(model, cache, tokens.flip(0), at(list(range(T)), 3))
    same(read(model, cache, tokens[:, :5], at(list(range(5)), 3)), model(tokens[:, :5], at(list(range(5)), 3)))


@pytest.mark.parametrize("capacity", [4, 5])
def test_a_position_beyond_the_last_slot_is_refused(model: Transformer, capacity: int) -> None:
    cache = empty(model, 2, capacity)
    assert cache.capacity == capacity
    with pytest.raises(ValueError, match=f"position {capacity} is outside the cache of {capacity} slots"):
        cache.at(at(list(range(capacity + 1)), 2))
    cache.at(at(list(range(capacity)), 2))


# Spans that read a prefix and do not write.


def test_noised_spans_on_a_prefix_are_the_noised_stream_of_the_whole(
    model: Transformer, drawn: Callable[[str], Layout]
) -> None:
    # Two documents in their second stage; each span reads its own document's prefix and itself.
    documents = [drawn("ccz<x>|zz<xx><x>$"), drawn("czz<xx><x>|z<xxx>$")]
    clean = Layout.collate(documents)
    cache = empty(model, 2)
    read(model, cache, clean.token, clean.position)

    for b, document in enumerate(documents):
        copy, _ = document.span_copy()
        prefix = copy.position[copy.stage == 1].min()[None]  # up to and including the plan of the second stage
        noised = copy.masked(copy.token == 9)  # every content token
        both = Layout.concatenate([document, noised])
        whole = model(both.token, both.position, Sight.of(both, both))[:, document.shape[1] :]
        for span in (copy.span[0][copy.stage[0] == 1]).unique().tolist():
            here = ((copy.stage == 1) & (copy.span == span))[0]
            memory = cache.prefix(torch.tensor([b]), prefix, noised.real[:, here])
            hidden = model(noised.token[:, here], noised.position[:, here], memory=memory)
            same(hidden, whole[:, here])


def test_ragged_spans_on_ragged_prefixes_read_as_if_alone(model: Transformer, tokens: Tensor) -> None:
    cache = empty(model, 3)
    read(model, cache, tokens, at(list(range(T)), 3))
    owners, starts, lengths = torch.tensor([0, 2, 2]), torch.tensor([4, 9, 9]), torch.tensor([3, 1, 2])
    positions = starts[:, None] + torch.arange(3)
    spans = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    real = torch.arange(3) < lengths[:, None]
    prefix = cache.prefix(owners, starts, real)
    together = model(spans, positions, memory=prefix)
    for k, n in enumerate(lengths.tolist()):
        alone = cache.prefix(owners[k : k + 1], starts[k : k + 1], real[k : k + 1, :n])
        same(together[k : k + 1, :n], model(spans[k : k + 1, :n], positions[k : k + 1, :n], memory=alone))
    rows = torch.tensor([2, 0])
    same(model(spans[rows], positions[rows], memory=prefix.select(rows)), together[rows])


def test_a_mask_of_the_callers_replaces_the_memorys(model: Transformer, tokens: Tensor) -> None:
    cache = empty(model, 3)
    read(model, cache, tokens, at(list(range(T)), 3))
    spans, positions, own = tokens[:, :3], at([9, 10, 11], 3), torch.ones(3, 3, dtype=torch.bool)
    prefix = cache.prefix(torch.arange(3), torch.full((3,), 9), own)
    slots = torch.arange(12)
    causal = model(spans, positions, Sight.past(positions, slots.expand(3, -1)), prefix)
    same(causal, model(spans, positions, (slots <= positions[:, :, None])[:, None], prefix))
    assert not torch.allclose(causal, model(spans, positions, memory=prefix))


def test_reading_a_prefix_writes_nothing(model: Transformer, tokens: Tensor) -> None:
    cache = empty(model, 3)
    read(model, cache, tokens, at(list(range(T)), 3))
    before = cache.entries.clone()
    prefix = cache.prefix(torch.arange(3), torch.full((3,), 5), torch.ones(3, 3, dtype=torch.bool))
    model(tokens[:, :3], at([5, 6, 7], 3), memory=prefix)
    assert torch.equal(cache.entries, before)


@pytest.mark.parametrize("positions", [[[3], [7], [5]], [[6], [6], [6]], [[3, 4, 5], [7, 8, 9], [0, 1, 2]]], ids=str)
@pytest.mark.parametrize("rows", [None, [2, 0, 1]], ids=str)
def test_kernels_read_the_cache_as_pytorch_does(
    model: Transformer, tokens: Tensor, positions: list[list[int]], rows: list[int] | None
) -> None:
    model, at_positions = copy.deepcopy(model).float(), torch.tensor(positions)
    which = None if rows is None else torch.tensor(rows)
    found = {}
    for impl in ("torch", "triton"):
        cache = empty(model, 3)
        model(tokens[:, :10], at(list(range(10)), 3), memory=cache.at(at(list(range(10)), 3)))
        fresh = tokens.gather(1, at_positions + 1)
        hidden = model(fresh, at_positions, memory=cache.at(at_positions, which), impl=impl)
        found[impl] = hidden, cache.entries
    for stock, ours in zip(found["torch"], found["triton"], strict=True):
        same(ours, stock, rtol=1e-4, atol=1e-5)


def test_the_cache_is_of_the_models_dtype(model: Transformer) -> None:
    cache = empty(model, 2, capacity=5)
    assert cache.entries.shape == (2, 2, 4, 5, 4)  # layers, requests, key and value heads, slots, width
    assert cache.entries.dtype == torch.float64
