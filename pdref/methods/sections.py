"""Sections side by side: each a row that begins after what it reads, written token by token, a forward for all.

With a cache, what a section reads is copied in front of its own keys once: the prompt, the outline and all that was
finished, then, where sections are rewritten, the drafts. Slots follow one another though positions leave gaps, since
a section stands where the finished document has it. Without a cache, whole documents run under the mask of
`pdref.text.filling`, all sections of a request in one row; the tokens are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from pdref.methods.decoding import Requests
from pdref.methods.generation import Event
from pdref.methods.planned_diffusion import CONTENT_FORBIDS
from pdref.model.cache import Cache
from pdref.ops.unmask import unmask
from pdref.text.filling import Filling, filling_mask
from pdref.text.layout import Layout, LayoutBuilder, Role, Stream
from pdref.text.tags import Tag


@dataclass(slots=True)
class Section:
    """A section of request `owner`: where its <async> stands, what opens it, how many tokens it takes.

    `content` are those written so far; `entries` [N, 2G, S, Dh] its keys and values once it is finished.
    """

    owner: int
    stage: int
    span: int
    start: int
    opening: list[int]
    length: int
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


class Branches:
    """With a cache: a row of a new cache for each section, which holds what the section reads and then its own."""

    def __init__(self, requests: Requests, sections: Sequence[Section], drafts: Sequence[Section]) -> None:
        self.requests, self.sections = requests, sections
        shown = [[d.entries for d in drafts if d.owner == s.owner] for s in sections]
        past = [requests.length(s.owner) for s in sections]
        self.base = [n + sum(e.shape[2] for e in entries) for n, entries in zip(past, shown, strict=True)]
        capacity = max(self.base) + max(s.size for s in sections)
        self.cache = Cache(requests.model.config, len(sections), capacity, requests.model.embed.weight)
        owners = torch.tensor([s.owner for s in sections], device=requests.device)
        self.cache.entries[:, :, :, : max(past)] = requests.cache.entries[:, :, :, : max(past)].index_select(1, owners)
        for row, (n, base, entries) in enumerate(zip(past, self.base, shown, strict=True)):
            if entries:
                self.cache.entries[:, row, :, n:base] = torch.cat(entries, 2)
        self.seen = [0] * len(sections)

    def read(self) -> Tensor:
        """See `Reader`. A section that is not finished is read up to its last token, a finished one to its end."""
        unread = [s.tokens[seen:] or s.tokens[-1:] for s, seen in zip(self.sections, self.seen, strict=True)]
        first = [len(s.tokens) - len(ids) for s, ids in zip(self.sections, unread, strict=True)]
        longest = max(map(len, unread))
        # Nobody reads a filler: its slot is that of a later token, or behind its section's end.
        filled = [ids + ids[-1:] * (longest - len(ids)) for ids in unread]
        steps = torch.arange(longest)
        starts, base = (torch.tensor([a + b for a, b in zip(first, at, strict=True)]) for at in (self._starts, self.base))
        device = self.requests.device
        positions = (starts[:, None] + steps).clamp_(max=self.requests.context - 1).to(device)
        slots = (base[:, None] + steps).clamp_(max=self.cache.capacity - 1).to(device)
        tokens = torch.tensor(filled, device=device)
        hidden = self.requests.model(tokens, positions, memory=self.cache.at(slots), impl=self.requests.impl)
        self.seen = [len(s.tokens) for s in self.sections]
        last = torch.tensor([len(ids) - 1 for ids in unread], device=device)
        return hidden[torch.arange(len(unread), device=device), last]

    @property
    def _starts(self) -> list[int]:
        return [s.start for s in self.sections]

    def keep(self) -> None:
        """Give the sections their keys, and the requests' cache the same."""
        for row, (s, base) in enumerate(zip(self.sections, self.base, strict=True)):
            s.entries = self.cache.entries[:, row, :, base : base + s.size]


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
        for row, layout in enumerate(layouts):  # `collate` numbers positions afresh
            padded.position[row, : layout.shape[1]] = layout.position[0]
        batch = padded.map(lambda f: f.to(self.requests.device))
        mask = filling_mask(batch, batch, self.filling)
        hidden = self.requests.model(batch.token, batch.position, mask, impl=self.requests.impl)
        return torch.stack([hidden[self.owners.index(s.owner)][self._last(batch, s)] for s in self.sections])

    def _document(self, b: int) -> Layout:
        parts = [self.requests.builders[b].build()]
        for stream, sections in ((Stream.NOISED, self.drafts), (Stream.CLEAN, self.sections)):
            for s in (s for s in sections if s.owner == b):
                builder = LayoutBuilder(self.requests.tokenizer, self.requests.grammar)
                s.add_to(builder)
                part = builder.build()
                parts.append(
                    replace(part, position=part.position + s.start, stream=torch.full_like(part.stream, int(stream)))
                )
        return Layout.concatenate(parts)

    def _last(self, batch: Layout, s: Section) -> Tensor:
        row = self.owners.index(s.owner)
        found = (batch.stream[row] == Stream.CLEAN) & (batch.stage[row] == s.stage) & (batch.span[row] == s.span)
        return found.nonzero()[-1, 0]

    def keep(self) -> None:
        """Nothing is kept."""


def write(
    requests: Requests, sections: Sequence[Section], filling: Filling = "parallel", drafts: Sequence[Section] = ()
) -> Tensor:
    """Write `sections` side by side, each to its length, and read their ends; returns the states [R, D] there.

    They read the `drafts` of their own request, too. Counts and records each step in `requests`; a section of n
    tokens takes n + 1 forwards.
    """
    reader = Whole(requests, sections, drafts, filling) if requests.cache is None else Branches(requests, sections, drafts)
    owners = torch.tensor([s.owner for s in sections], device=requests.device)
    never = torch.tensor([int(tag) for tag in CONTENT_FORBIDS], device=requests.device)
    hidden = reader.read()
    while growing := [s for s in sections if len(s.content) < s.length]:
        drawn = unmask(
            hidden,
            requests.model.unembed.weight,
            requests.seeds[owners],
            torch.tensor([s.start + len(s.tokens) for s in sections], device=requests.device),
            0,
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
        if requests.cache is not None:
            requests.cache.entries[:, s.owner, :, s.start : s.start + s.size] = s.entries
        requests.seen[s.owner] = requests.length(s.owner)
        requests.hidden[s.owner] = state
