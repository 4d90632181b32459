"""Keys and values of what has been read: a batch of requests of different lengths, each token in the slot of its
position.

Because slot and position agree, nothing has to be counted: a query at position p sees the slots up to p, and a slot
is always written before a query that may see it runs. Stale keys are therefore impossible by construction, except
those of a request's own future, which no query sees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdref.model.transformer import Config


class Cache:
    """K and V of B requests in one tensor, [N, B, 2G, C, Dh]: G key heads, then G value heads; `capacity` C slots."""

    def __init__(self, config: Config, batch: int, capacity: int, like: Tensor) -> None:
        shape = (config.layers, batch, 2 * config.key_heads, capacity, config.head_width)
        self.entries = torch.zeros(shape, dtype=like.dtype, device=like.device)

    @property
    def capacity(self) -> int:
        """Slots per request."""
        return self.entries.shape[3]

    def at(self, positions: Tensor, rows: Tensor | None = None) -> Writer:
        """Where a forward over `positions` [R, T] of the requests `rows` [R] (all, if None) reads and writes."""
        return Writer(self, positions, rows)

    def prefix(self, rows: Tensor, lengths: Tensor) -> Prefix:
        """The first `lengths` [R] tokens of the requests `rows` [R], for spans that read and do not write."""
        return Prefix(self.entries[:, rows, :, : int(lengths.max())])


class Writer:
    """Writes a forward's keys into their slots and returns all slots so far."""

    def __init__(self, cache: Cache, positions: Tensor, rows: Tensor | None) -> None:
        self.cache, self.rows = cache, rows
        self.end = int(positions.max()) + 1
        if self.end > cache.capacity:
            raise ValueError(f"position {self.end - 1} is outside the cache of {cache.capacity} slots")
        R, T = positions.shape
        self.where = (torch.arange(R, device=positions.device) if rows is None else rows)[:, None], positions
        # One token of one request, or a batch in step, is one slice: the fast path of every decoding loop.
        aligned = rows is None and (R == 1 or bool((positions == positions[:1]).all()))
        self.slots = slice(self.end - T, self.end) if aligned else None
        self.mask = None if aligned and T == 1 else _see_past(positions, self.end)

    def extend(self, layer: int, entries: Tensor) -> Tensor:
        """See `Memory.extend`."""
        store = self.cache.entries[layer]
        if self.slots is not None:
            store[:, :, self.slots] = entries
            return store[:, :, : self.end]
        rows, positions = self.where
        store[rows, :, positions] = entries.transpose(1, 2)
        return store[:, :, : self.end] if self.rows is None else store[self.rows, :, : self.end]


class Prefix:
    """Frozen keys and values that every forward of a span reads before its own."""

    def __init__(self, entries: Tensor) -> None:
        self.entries = entries

    def select(self, rows: Tensor) -> Prefix:
        """Only some of the rows, once the others are finished."""
        return Prefix(self.entries[:, rows])

    def extend(self, layer: int, entries: Tensor) -> Tensor:
        """See `Memory.extend`."""
        return torch.cat([self.entries[layer], entries], 2)


def _see_past(positions: Tensor, end: int) -> Tensor:
    """[R, 1, T, end]: slots up to the query's own."""
    return torch.arange(end, device=positions.device) <= positions[:, None, :, None]
