"""The integer view of documents: per token its role, stage, span, position and stream.

Models, masks, losses and samplers read a `Layout` and never text. Positions are the plain physical indices.

Streams. The paper's formula conditions plan tokens on clean text and content on noised text; two copies of a span
give both in one forward. CLEAN tokens are causal and are what later tokens read. NOISED tokens are a second copy
of a span that reads the past and itself and is read by nobody else. IN_PLACE is the released code's single stream:
a noised span that later stages do read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from torch import Tensor

from pdref.text.document import Item, LengthOutOfRange, PlannedDocument
from pdref.text.tags import DocumentError, Tag, require_plain
from pdref.text.tokenizer import Tokenizer


class LayoutError(ValueError):
    """Layout fields of unequal shape, wrong dtype or different devices."""


class LengthMismatch(DocumentError):
    """A span that does not take the tokens its plan item says."""


class TooLong(DocumentError):
    """A document with more tokens than the context."""


class Role(IntEnum):
    """What a token is for; PAD fills a batch and is nobody's token (a filler in a span is CONTENT)."""

    PROMPT = 0
    PLAN = 1
    CONTENT = 2
    TAG = 3
    PAD = 4


class Stream(IntEnum):
    """Which copy of the text a token belongs to (see the module's docstring)."""

    CLEAN = 0
    NOISED = 1
    IN_PLACE = 2


NO_SPAN = -1


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a corpus and its models agree on: tokens per grid cell, and whether spans echo their topic."""

    grid: int = 10
    echo: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """One batch of token sequences; every field is an int64 tensor [B, T].

    `stage` counts from 0, `span` from 0 within its stage and is `NO_SPAN` outside spans.
    """

    token: Tensor
    role: Tensor
    stage: Tensor
    span: Tensor
    position: Tensor
    stream: Tensor

    def __post_init__(self) -> None:
        for name, value in self.items():
            if value.dtype != torch.int64:
                raise LayoutError(f"layout field {name} has dtype {value.dtype}, int64 is needed")
            if value.shape != self.token.shape:
                raise LayoutError(f"layout field {name} has shape {list(value.shape)}, token {list(self.token.shape)}")
            if value.device != self.token.device:
                raise LayoutError(f"layout field {name} is on {value.device}, token on {self.token.device}")

    def items(self) -> list[tuple[str, Tensor]]:
        """The fields by name."""
        return [(f.name, getattr(self, f.name)) for f in fields(self)]

    def map(self, function: Callable[[Tensor], Tensor]) -> Layout:
        """Apply `function` to every field: indexing, moving to a device, adding a dimension."""
        return Layout(**{name: function(value) for name, value in self.items()})

    @property
    def shape(self) -> torch.Size:
        """[B, T]."""
        return self.token.shape

    @property
    def real(self) -> Tensor:
        """Tokens that are not batch padding, [B, T] bool."""
        return self.role != Role.PAD

    @property
    def response(self) -> Tensor:
        """Tokens that answer the prompt, [B, T] bool (the paper's Y)."""
        return self.real & (self.role != Role.PROMPT)

    @property
    def planned(self) -> Tensor:
        """Tokens the planner decides, [B, T] bool: plans, what ends a plan, <sync/> and <eos> (the paper's Z)."""
        opening = (self.role == Role.TAG) & (self.span == 0) & (self.token == Tag.ASYNC)
        between = (self.role == Role.TAG) & (self.span == NO_SPAN)
        return (self.role == Role.PLAN) | opening | between

    def masked(self, where: Tensor) -> Layout:
        """The same layout with <mask> at the positions `where`, [B, T] bool."""
        return replace(self, token=self.token.masked_fill(where, Tag.MASK))

    def span_copy(self) -> tuple[Layout, Tensor]:
        """The spans alone as a NOISED stream [B, U], and the index [B, U] of each token in this layout.

        Rows with fewer span tokens are filled with PAD (whose index is 0).
        """
        in_span = self.span != NO_SPAN  # [B, T]
        count = in_span.sum(1)
        order = (~in_span).to(torch.int8).argsort(dim=1, stable=True)[:, : int(count.max())]  # span tokens first
        kept = torch.arange(order.shape[1], device=order.device) < count[:, None]  # [B, U]
        index = order.masked_fill(~kept, 0)
        copy = self.map(lambda field: field.gather(1, index))
        copy = replace(
            copy,
            role=copy.role.masked_fill(~kept, Role.PAD),
            stream=torch.where(kept, int(Stream.NOISED), int(Stream.CLEAN)),
        )
        return copy, index

    def in_place(self) -> Layout:
        """The released code's single stream: spans are noised where they stand."""
        return replace(self, stream=torch.where(self.span != NO_SPAN, int(Stream.IN_PLACE), int(Stream.CLEAN)))

    @staticmethod
    def concatenate(layouts: Sequence[Layout]) -> Layout:
        """Side by side along T."""
        return Layout(**{name: torch.cat([getattr(x, name) for x in layouts], 1) for name, _ in layouts[0].items()})

    @staticmethod
    def collate(layouts: Sequence[Layout]) -> Layout:
        """Stack layouts of one row each into a batch, filled with PAD on the right."""
        if not layouts:
            raise LayoutError("an empty batch has no layout")
        filler = {"token": int(Tag.PAD), "role": int(Role.PAD), "span": NO_SPAN}
        longest = max(layout.shape[1] for layout in layouts)
        stacked = {
            name: torch.cat(
                [
                    torch.nn.functional.pad(getattr(x, name), (0, longest - x.shape[1]), value=filler.get(name, 0))
                    for x in layouts
                ]
            )
            for name, _ in layouts[0].items()
        }
        device = layouts[0].token.device
        stacked["position"] = torch.arange(longest, device=device).expand(len(layouts), -1).contiguous()
        return Layout(**stacked)


class LayoutBuilder:
    """Collects one document's tokens piece by piece; the one place that knows which piece gets which fields."""

    def __init__(self, tokenizer: Tokenizer, grammar: Grammar) -> None:
        self.tokenizer, self.grammar = tokenizer, grammar
        self.rows: list[tuple[int, int, int, int]] = []

    def add(self, ids: Sequence[int], role: Role, stage: int = 0, span: int = NO_SPAN) -> None:
        """Append tokens that share a role, stage and span."""
        self.rows += [(i, int(role), stage, span) for i in ids]

    def prompt(self, text: str) -> None:
        """<bos> and the prompt. Raises TagInText."""
        require_plain(text, "prompt")
        self.add([Tag.BOS, *self.tokenizer.encode(text)], Role.PROMPT)

    def plan(self, plan: Sequence[Item], stage: int) -> None:
        """The plan of one stage."""
        for item in plan:
            self.add([Tag.TOPIC, *self.tokenizer.encode(str(item)), Tag.END_TOPIC], Role.PLAN, stage)

    def open_span(self, item: Item, stage: int, span: int) -> None:
        """<async> and, if the grammar echoes, the topic: tokens that are given and never masked."""
        echo = self.tokenizer.encode(item.topic + " ") if self.grammar.echo else []
        self.add([Tag.ASYNC, *echo], Role.TAG, stage, span)

    def close_span(self, stage: int, span: int) -> None:
        """</async>."""
        self.add([Tag.END_ASYNC], Role.TAG, stage, span)

    def build(self) -> Layout:
        """The layout so far, one row [1, T], on the CPU."""
        token, role, stage, span = torch.tensor(self.rows, dtype=torch.int64, device="cpu").T.contiguous()[:, None]
        position = torch.arange(len(self.rows), device="cpu")[None]
        return Layout(token, role, stage, span, position, torch.zeros_like(token))


def prompt_layout(prompt: str, tokenizer: Tokenizer, grammar: Grammar) -> Layout:
    """The layout of a prompt alone, [1, T]."""
    builder = LayoutBuilder(tokenizer, grammar)
    builder.prompt(prompt)
    return builder.build()


def encode(document: PlannedDocument, tokenizer: Tokenizer, grammar: Grammar, context: int | None = None) -> Layout:
    """The layout [1, T] of a whole document.

    Raises LengthMismatch if a span does not fill its cells, LengthOutOfRange if a planned span exceeds `context`
    and TooLong if the document does.
    """
    builder = LayoutBuilder(tokenizer, grammar)
    builder.prompt(document.prompt)
    for s, stage in enumerate(document.stages):
        if s:
            builder.add([Tag.SYNC], Role.TAG, s)
        builder.plan(stage.plan, s)
        for k, (item, span) in enumerate(zip(stage.plan, stage.spans, strict=True)):
            planned = item.length * grammar.grid
            if context is not None and planned > context:
                raise LengthOutOfRange(f"topic {item.topic!r} plans {planned} tokens; the context has {context}")
            content = tokenizer.encode(span.text) + [Tag.PAD] * span.pads
            if len(content) != planned:
                raise LengthMismatch(f"span {item.topic!r} has {len(content)} tokens; its plan says {planned}")
            builder.open_span(item, s, k)
            builder.add(content, Role.CONTENT, s, k)
            builder.close_span(s, k)
    builder.add([Tag.EOS], Role.TAG, len(document.stages) - 1)
    layout = builder.build()
    if context is not None and layout.shape[1] > context:
        raise TooLong(f"the document has {layout.shape[1]} tokens; the context has {context}")
    return layout
