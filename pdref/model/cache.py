"""Keys and values of what has been read: a batch of requests of different lengths, each token in the slot of its
position.

Because slot and position agree, nothing has to be counted: a query at position p sees the slots up to p, and a slot
is always written before a query that may see it runs. Stale keys are therefore impossible by construction, except
those of a request's own future, which no query sees.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from pdref.model.transformer import Config
from pdref.ops.impl import Impl, choose
from pdref.ops.planned_attention import planned_attention
from pdref.ops.span_attention import Reach, span_attention
from pdref.text.mask import Sight


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

    def fork(self, positions: Tensor, rows: Tensor, reads: Tensor) -> Fork:
        """Where a forward over a tree of tokens at `positions` [R, T] of the requests `rows` [R] reads.

        Each sees its request's text before the first of them, the root, and those of the tree that `reads`
        [R, T, T] bool allows.
        """
        return Fork(self, positions, rows, reads)

    def prefix(self, rows: Tensor, lengths: Tensor, own: Tensor) -> Prefix:
        """The first `lengths` [R] tokens of the requests `rows` [R], for spans that read and do not write.

        `own` [R, L] bool are the tokens of each span, of which the fillers come last.
        """
        return Prefix(self.entries, Reach(rows, lengths, own.sum(1), own.shape[1]))


class Writer:
    """Writes a forward's keys into their slots and reads all slots so far."""

    def __init__(self, cache: Cache, positions: Tensor, rows: Tensor | None) -> None:
        self.cache, self.rows, self.positions = cache, rows, positions
        self.end = int(positions.max()) + 1
        if self.end > cache.capacity:
            raise ValueError(f"position {self.end - 1} is outside the cache of {cache.capacity} slots")
        R, T = positions.shape
        # One token of one request, or a batch in step, is one slice: the fast path of every decoding loop.
        aligned = rows is None and (R == 1 or bool((positions == positions[:1]).all()))
        self.slots = slice(self.end - T, self.end) if aligned else None

    @cached_property
    def where(self) -> tuple[Tensor, Tensor]:
        """Row and slot of each token, [R, 1] and [R, T]."""
        rows = torch.arange(len(self.positions), device=self.positions.device) if self.rows is None else self.rows
        return rows[:, None], self.positions

    @cached_property
    def mask(self) -> Tensor | None:
        """Slots up to the query's own, [R, 1, T, end]; None where that is all of them."""
        if self.slots is not None and self.positions.shape[1] == 1:
            return None
        return torch.arange(self.end, device=self.positions.device) <= self.positions[:, None, :, None]

    @cached_property
    def sight(self) -> Sight:
        """The same for kernels."""
        slots = torch.arange(self.end, device=self.positions.device)
        return Sight.past(self.positions, slots.expand(len(self.positions), -1))

    @cached_property
    def reach(self) -> Reach:
        """The same for one token a request: a span of length one after its past."""
        past = self.positions[:, 0]
        return Reach(self.where[0][:, 0], past, torch.ones_like(past), 1)

    def extend(self, layer: int, entries: Tensor) -> Tensor:
        """See `Memory.extend`."""
        store = self.write(layer, entries)
        return store[:, :, : self.end] if self.rows is None else store[self.rows, :, : self.end]

    def write(self, layer: int, entries: Tensor) -> Tensor:
        """Put new keys and values into their slots; returns the layer's whole cache."""
        store = self.cache.entries[layer]
        if self.slots is not None:
            store[:, :, self.slots] = entries
        else:
            rows, slots = self.where
            store[rows, :, slots] = entries.transpose(1, 2)
        return store

    def attend(self, layer: int, q: Tensor, entries: Tensor, mask: Tensor | Sight | None, impl: Impl) -> Tensor:
        """See `Memory.attend`."""
        if mask is None:
            if choose(impl, q) != "triton":
                mask = self.mask
            elif q.shape[2] == 1:
                return span_attention(q, entries, self.write(layer, entries), self.reach, impl)
            else:
                mask = self.sight
        k, v = self.extend(layer, entries).chunk(2, 1)
        return planned_attention(q, k, v, mask, impl=impl)


class Fork:
    """Reads several continuations of one text at once, and keeps one of them."""

    def __init__(self, cache: Cache, positions: Tensor, rows: Tensor, reads: Tensor) -> None:
        self.cache, self.positions, self.rows = cache, positions, rows[:, None]
        self.past = int(positions[:, 0].max())
        before = torch.arange(self.past, device=positions.device) < positions[:, :1, None]  # [R, 1, P]
        self.mask = torch.cat([before.expand(-1, reads.shape[1], -1), reads], 2)[:, None]  # [R, 1, T, P + T]
        self.taken: list[Tensor] = []  # of each layer, [R, T, 2G, Dh]

    def extend(self, layer: int, entries: Tensor) -> Tensor:
        """See `Memory.extend`."""
        self.taken.append(entries.transpose(1, 2))
        return torch.cat([self.cache.entries[layer, self.rows[:, 0], :, : self.past], entries], 2)

    def attend(self, layer: int, q: Tensor, entries: Tensor, mask: Tensor | Sight | None, impl: Impl) -> Tensor:
        """See `Memory.attend`."""
        k, v = self.extend(layer, entries).chunk(2, 1)
        return planned_attention(q, k, v, self.mask if mask is None else mask, impl=impl)

    def keep(self, which: Tensor) -> None:
        """Write the tokens `which` [R, J] of the tree into the slots of their positions."""
        each = torch.arange(len(which), device=which.device)[:, None]
        slots = self.positions[each, which]
        for layer, taken in enumerate(self.taken):
            self.cache.entries[layer][self.rows, :, slots] = taken[each, which]


class Prefix:
    """What spans read before their own tokens: the frozen keys and values of their requests."""

    def __init__(self, entries: Tensor, reach: Reach) -> None:
        self.entries, self.reach = entries, reach

    def select(self, rows: Tensor) -> Prefix:
        """Only some of the spans, once the others are finished."""
        return Prefix(self.entries, self.reach.select(rows))

    @property
    def mask(self) -> Tensor | None:
        """See `Memory.mask`."""
        return self.reach.mask

    @cached_property
    def copies(self) -> Tensor:
        """A copy of its past for each span, made once for all steps, [N, K, 2G, P, Dh]; kernels need none."""
        return self.entries[:, :, :, : self.reach.longest].index_select(1, self.reach.owner)

    def extend(self, layer: int, entries: Tensor) -> Tensor:
        """See `Memory.extend`."""
        return torch.cat([self.copies[layer], entries], 2)

    def attend(self, layer: int, q: Tensor, entries: Tensor, mask: Tensor | Sight | None, impl: Impl) -> Tensor:
        """See `Memory.attend`."""
        if mask is None:
            if choose(impl, q) == "triton":
                return span_attention(q, entries, self.entries[layer], self.reach, impl)
            mask = self.mask
        k, v = self.extend(layer, entries).chunk(2, 1)
        return planned_attention(q, k, v, mask, impl=impl)
