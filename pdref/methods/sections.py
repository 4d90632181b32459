"""Sections side by side, written token by token: one forward a step for all of them, over one shared past.

With a cache, a request is a row. Its sections put their keys where the finished document will have them, and all read
the one cached prefix of their request, each under a mask that leaves its siblings out; drafts, where sections are
rewritten, stand beside it. Without a cache, whole documents run under the mask of `pdref.text.filling`; the tokens
are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from pdref.methods.decoding import Requests
from pdref.methods.generation import Event
from pdref.model.cache import Writer
from pdref.ops.impl import Impl
from pdref.ops.planned_attention import planned_attention
from pdref.ops.unmask import unmask
from pdref.text.filling import Filling, filling_mask
from pdref.text.layout import Layout, LayoutBuilder, Role, Stream
from pdref.text.mask import Sight
from pdref.text.tags import CONTENT_FORBIDS, Tag


@dataclass(slots=True)
class Section:
    """A section of request `owner`: where its <async> stands, what opens it, how many tokens it takes.

    It reads the first `past` tokens of its request. `content` are those written so far; of a draft, `entries`
    [N, 2G, S, Dh] are its keys and values once it is finished. The second stream is that of drafts, as in
    `pdref.text.filling`.
    """

    owner: int
    stage: int
    span: int
    start: int
    past: int
    opening: list[int]
    length: int
    stream: Stream = Stream.CLEAN
    content: list[int] = field(default_factory=list)
    entries: Tensor | None = None

    @property
    def tokens(self) -> list[int]:
        """All that is there, from <async> on."""
        return self.opening + self.content + [Tag.END_ASYNC] * (len(self.content) == self.length)

    @property
    def size(self) -> int:
        """Tokens when it is finished, its two tags and what it echoes included."""
        return len(self.opening) + self.length + 1

    def reads(self, draft: Section) -> bool:
        """Whether this section reads that draft."""
        return self.stream == Stream.CLEAN and (self.owner, self.stage) == (draft.owner, draft.stage)

    def add_to(self, builder: LayoutBuilder) -> None:
        """Put what is there into a document."""
        builder.add(self.opening, Role.TAG, self.stage, self.span)
        builder.add(self.content, Role.CONTENT, self.stage, self.span)
        builder.add(self.tokens[len(self.opening) + len(self.content) :], Role.TAG, self.stage, self.span)


class Reader(Protocol):
    """What turns the sections as they are into the hidden state after each one's last token, [R, D]."""

    def read(self) -> Tensor:
        """One forward over what has not been read yet."""
        ...


class Shared:
    """With a cache: the unread tokens of all sections of a request in one row, over the slots of their positions."""

    def __init__(self, requests: Requests, sections: Sequence[Section], drafts: Sequence[Section]) -> None:
        self.requests, self.sections = requests, sections
        self.seen = [0] * len(sections)
        owners = sorted({s.owner for s in sections})
        self.members = [[i for i, s in enumerate(sections) if s.owner == b] for b in owners]
        self.rows = torch.tensor(owners, device=requests.device)
        shown = [[d.entries for d in drafts if sections[members[0]].reads(d)] for members in self.members]
        self.drafts = Drafts.of([torch.cat(entries, 2) for entries in shown]) if shown[0] else None

    def read(self) -> Tensor:
        """See `Reader`. A section that is not finished is read up to its last token, a finished one to its end."""
        table: list[list[tuple[int, int, int, int]]] = []  # row by row: token, position, past and start of its section
        last = [0] * len(self.sections)
        for members in self.members:
            row: list[tuple[int, int, int, int]] = []
            for i in members:
                s = self.sections[i]
                first = min(self.seen[i], len(s.tokens) - 1)
                row += [(token, s.start + first + k, s.past, s.start) for k, token in enumerate(s.tokens[first:])]
                last[i], self.seen[i] = len(row) - 1, len(s.tokens)
            table.append(row)
        longest = max(map(len, table))
        # A row is filled up with its last token, which writes the same key to the same slot again.
        filled = [row + row[-1:] * (longest - len(row)) for row in table]
        device = self.requests.device
        token, position, past, start = torch.tensor(filled, device=device).permute(2, 0, 1).contiguous()  # [R, T] each
        memory = self.requests.cache.at(position, self.rows)
        slot = torch.arange(memory.end, device=device)
        own = (slot >= start[..., None]) & (slot <= position[..., None])
        mask = (slot < past[..., None]) | own  # [R, T, S]
        if self.drafts is not None:
            memory, mask = self.drafts.beside(memory), self.drafts.widened(mask)
        hidden = self.requests.model(token, position, mask[:, None], memory, self.requests.impl)
        where = [row for row, members in enumerate(self.members) for _ in members]
        return hidden[torch.tensor(where, device=device), torch.tensor(last, device=device)]

    def keep(self) -> None:
        """Give drafts their keys, before what becomes of them takes the slots."""
        for s in (s for s in self.sections if s.stream != Stream.CLEAN):
            s.entries = self.requests.cache.entries[:, s.owner, :, s.start : s.start + s.size].clone()


@dataclass(frozen=True, slots=True)
class Drafts:
    """The keys and values of the drafts of R requests, [N, R, 2G, D, Dh], and which of the D are there, [R, D]."""

    entries: Tensor
    real: Tensor

    @classmethod
    def of(cls, entries: Sequence[Tensor]) -> Drafts:
        """Those of each request, [N, 2G, D, Dh]."""
        longest = max(e.shape[2] for e in entries)
        padded = [torch.nn.functional.pad(e, (0, 0, 0, longest - e.shape[2])) for e in entries]
        counts = torch.tensor([[e.shape[2]] for e in entries], device=entries[0].device)
        return cls(torch.stack(padded, 1), torch.arange(longest, device=counts.device) < counts)

    def widened(self, mask: Tensor) -> Tensor:
        """A mask [R, T, S] over what stands before the drafts, and all drafts."""
        return torch.cat([mask, self.real[:, None].expand(-1, mask.shape[1], -1)], 2)

    def beside(self, memory: Writer) -> Beside:
        """The drafts after all that `memory` has."""
        return Beside(memory, self.entries)


@dataclass(frozen=True, slots=True)
class Beside:
    """A `Memory` in which drafts follow what a cache holds; they are read and never written."""

    memory: Writer
    drafts: Tensor

    @property
    def mask(self) -> None:
        """See `Memory.mask`; `Shared` gives its own."""
        return None

    def extend(self, layer: int, entries: Tensor) -> Tensor:
        """See `Memory.extend`."""
        return torch.cat([self.memory.extend(layer, entries), self.drafts[layer]], 2)

    def attend(self, layer: int, q: Tensor, entries: Tensor, mask: Tensor | Sight | None, impl: Impl) -> Tensor:
        """See `Memory.attend`."""
        k, v = self.extend(layer, entries).chunk(2, 1)
        return planned_attention(q, k, v, mask, impl=impl)


class Whole:
    """Without a cache: every request's document as far as it goes, under the mask."""

    def __init__(
        self, requests: Requests, sections: Sequence[Section], drafts: Sequence[Section], filling: Filling
    ) -> None:
        self.requests, self.sections, self.drafts, self.filling = requests, sections, drafts, filling
        self.owners = sorted({s.owner for s in sections})

    def read(self) -> Tensor:
        """See `Reader`."""
        layouts = [self._document(b) for b in self.owners]
        padded = Layout.collate(layouts)
        padded.position.zero_()  # `collate` numbers them afresh
        for row, layout in enumerate(layouts):
            padded.position[row, : layout.shape[1]] = layout.position[0]
        batch = padded.map(lambda f: f.to(self.requests.device))
        mask = filling_mask(batch, batch, self.filling)
        hidden = self.requests.model(batch.token, batch.position, mask, impl=self.requests.impl)
        return torch.stack([hidden[self.owners.index(s.owner)][self._last(batch, s)] for s in self.sections])

    def _document(self, b: int) -> Layout:
        parts = [self.requests.builders[b].build()]
        for s in (s for s in (*self.drafts, *self.sections) if s.owner == b):
            builder = LayoutBuilder(self.requests.tokenizer, self.requests.grammar)
            s.add_to(builder)
            part = builder.build()
            parts.append(replace(part, position=part.position + s.start, stream=part.stream + int(s.stream)))
        return Layout.concatenate(parts)

    def _last(self, batch: Layout, s: Section) -> Tensor:
        row = self.owners.index(s.owner)
        found = (batch.stream[row] == s.stream) & (batch.stage[row] == s.stage) & (batch.span[row] == s.span)
        return found.nonzero()[-1, 0]

    def keep(self) -> None:
        """Nothing is kept."""


def write(requests: Requests, sections: Sequence[Section], filling: Filling, drafts: Sequence[Section] = ()) -> Tensor:
    """Write `sections` side by side, each to its length, and read their ends; returns the states [R, D] there.

    Sections of a request stand together, requests in order; `drafts` are all of theirs, those of earlier stages, too.
    Counts and records each step in `requests`; a section of n tokens takes n + 1 forwards.
    """
    cached = requests.cache is not None
    reader = Shared(requests, sections, drafts) if cached else Whole(requests, sections, drafts, filling)
    owners = torch.tensor([s.owner for s in sections], device=requests.device)
    never = torch.tensor([int(tag) for tag in CONTENT_FORBIDS], device=requests.device)
    hidden = reader.read()
    while any(len(s.content) < s.length for s in sections):
        drawn = unmask(
            hidden,
            requests.model.unembed.weight,
            requests.seeds[owners],
            torch.tensor([s.start + len(s.tokens) for s in sections], device=requests.device),
            int(sections[0].stream),  # a draft and what becomes of it are drawn with noise of their own
            requests.draw.temperature,
            requests.draw.top_p,
            never,
            requests.impl,
        )
        steps: dict[int, list[tuple[int, int]]] = {}
        for s, token in zip(sections, drawn.token.tolist(), strict=True):
            if len(s.content) < s.length:
                steps.setdefault(s.owner, []).append((s.start + len(s.tokens), token))
                s.content.append(token)
        for b, pairs in steps.items():
            requests.count(b, len(pairs))
            at, ids = zip(*pairs, strict=True)
            requests.generations[b].history.append(Event("write", at, ids))
        hidden = reader.read()
    for b in dict.fromkeys(s.owner for s in sections):
        requests.count(b, sum(s.owner == b for s in sections))
    reader.keep()
    return hidden


def join(requests: Requests, sections: Sequence[Section], hidden: Tensor) -> None:
    """Put finished sections into their requests, in the order of the document; `hidden` [R, D] are their ends."""
    for s, state in zip(sections, hidden, strict=True):
        s.add_to(requests.builders[s.owner])
        requests.seen[s.owner] = requests.length(s.owner)
        requests.hidden[s.owner] = state
