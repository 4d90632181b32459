"""The fourth exercise of `kernels.ipynb`: what a tile of the attention mask may be called, given its tokens' ranges.

The integers are those of a `Sight` (`pdref/text/mask.py`), in which the attention rule is three comparisons. Here the
comparisons are made for every pair of tokens of a tile, so that no range can hide one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import checks
import torch
from torch import Tensor

from pdref.text.layout import Layout
from pdref.text.mask import EMPTY, FULL, NEVER, NOWHERE, PARTIAL, Sight, sees


class Integers(NamedTuple):
    """What the rule compares, of queries or of keys; tensors of one shape."""

    position: Tensor
    block: Tensor
    region: Tensor


class Ranges(NamedTuple):
    """The lowest and the highest of each integer in a tile; tensors of one shape."""

    low: Integers
    high: Integers


TileState = Callable[[Ranges, Ranges], Tensor]


def tiles(numbers: Tensor, tile: int) -> Integers:
    """Numbers [3, T] of a `Sight` as tiles [ceil(T / tile), tile]; a last one with fewer tokens repeats its last."""
    edge = numbers[:, -1:].expand(-1, -numbers.shape[1] % tile)
    return Integers(*torch.cat([numbers, edge], 1).unflatten(1, (-1, tile)))


def states(tile_state: TileState, query: Integers, key: Integers) -> Tensor:
    """What `tile_state` calls each pair of tiles: `query` [n, tile], `key` [m, tile] -> [n, m]."""
    return tile_state(_ranges(query, 1), _ranges(key, 0))


def _ranges(each: Integers, beside: int) -> Ranges:
    return Ranges(*(Integers(*(end(f, -1).unsqueeze(beside) for f in each)) for end in (torch.amin, torch.amax)))


def check_tile_state(tile_state: TileState) -> None:
    """All tiles of four layouts in three sizes, and random ones, against every pair of tokens in them."""
    count = 0
    for query, key in _cases():
        found = states(tile_state, query, key)
        pairs = sees(*(torch.stack(each) for each in _across(query, key)))  # [n, m, tile, tile]
        assert isinstance(found, Tensor) and found.shape == pairs.shape[:2], (
            f"the answer is one state per pair of tiles, {list(pairs.shape[:2])}: let the fields broadcast"
        )
        assert found.dtype in (torch.int64, torch.int32) and bool(((found >= EMPTY) & (found <= FULL)).all()), (
            f"a state is EMPTY, PARTIAL or FULL, an integer, not {found.dtype} (booleans added are a boolean again)"
        )
        _no_tile(found == EMPTY, pairs, query, key, "EMPTY", "sees")
        _no_tile(found == FULL, ~pairs, query, key, "FULL", "does not see")
        sharp = states(_sharp, query, key)
        for state, name in ((EMPTY, "EMPTY"), (FULL, "FULL")):
            lazy = (sharp == state) & (found == PARTIAL)
            assert not lazy.any(), (
                f"{int(lazy.sum())} of {lazy.numel()} tiles are called PARTIAL, which is safe but slow: "
                f"their ranges prove them {name}"
            )
        count += found.numel()
    print(f"tile state: none of {count:,} tiles is skipped that the rule needs, none left unmasked that it cuts")


def _cases() -> Iterator[tuple[Integers, Integers]]:
    clean = checks.documents()
    streams = Layout.concatenate([clean, clean.span_copy()[0]])
    for sight in (Sight.of(streams, streams), Sight.of(streams, streams, "dense"), Sight.past(*2 * [clean.position])):
        for b, tile in ((0, 2), (1, 5), (0, 8)):
            yield tiles(sight.query[:, b], tile), tiles(sight.key[:, b], tile)
    draw = torch.Generator().manual_seed(0)
    for width in (1, 2, 3):
        query, key = (torch.randint(4, (3, 60 * width), generator=draw, dtype=torch.int32) for _ in range(2))
        query[1:][query[1:] == 3] = NOWHERE
        key[key == 3] = NEVER
        yield tiles(query, width), tiles(key, width)


def _across(query: Integers, key: Integers) -> tuple[Integers, Integers]:
    """Every query of a tile beside every key of a tile."""
    return Integers(*(f[:, None, :, None] for f in query)), Integers(*(f[None, :, None, :] for f in key))


def _no_tile(called: Tensor, against: Tensor, query: Integers, key: Integers, name: str, verb: str) -> None:
    """Nothing is called by a name that a pair of tokens speaks `against`, [n, m, tile, tile]."""
    wrong = (called[:, :, None, None] & against).nonzero()
    if not len(wrong):
        return
    i, j, a, b = wrong[0].tolist()
    q, k = (Integers(*(f[at].tolist() for f in each)) for each, at in ((query, (i, a)), (key, (j, b))))
    ends = Integers(*(f[i].tolist() for f in query)), Integers(*(f[j].tolist() for f in key))
    raise AssertionError(
        f"a tile is called {name}, yet in it the query (position {q.position}, block {q.block}, region {q.region}) "
        f"{verb} the key (position {k.position}, block {k.block}, region {k.region}): {_why(name, q, k, *ends)}"
    )


def _why(name: str, q: Integers, k: Integers, queries: Integers, keys: Integers) -> str:
    """The comparison that speaks against the name."""
    if name == "FULL" and k.position > q.position:
        return "every key has to lie in every query's past: compare the highest key with the lowest query position"
    if name == "FULL":
        return "one block in common forbids the pair: all differ only where the two ranges lie apart"
    if k.region == q.region:
        return "they share a region, wherever they stand: ranges of regions that overlap keep the tile"
    past = "one past key is enough: compare the lowest key with the highest query position"
    if min(queries.block) > max(keys.block) or min(keys.block) > max(queries.block):
        return past
    return f"{past}; and blocks that may be equal may also differ, unless all of them are one and the same"


def _sharp(query: Ranges, key: Ranges) -> Tensor:
    """As much as ranges can prove."""

    def apart(field: str) -> Tensor:
        a, b = ([getattr(end, field) for end in side] for side in (query, key))
        return (a[1] < b[0]) | (b[1] < a[0])

    def all_one(field: str) -> Tensor:
        ends = torch.stack(torch.broadcast_tensors(*(getattr(end, field) for end in (*query, *key))))
        return ends.amin(0) == ends.amax(0)

    nothing_past = key.low.position > query.high.position
    empty = (nothing_past | all_one("block")) & apart("region")
    full = (key.high.position <= query.low.position) & apart("block") | all_one("region")
    return torch.where(empty, EMPTY, torch.where(full, FULL, PARTIAL))
