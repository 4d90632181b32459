"""A planned document as text and as structure; `parse` and `render` are inverse to each other.

    document := prompt stage (<sync/> stage)* <eos>
    stage    := plan spans
    plan     := (<topic> words N </topic>)+
    span     := <async> content <pad>* </async>

N counts grid cells: a span takes exactly `grid * N` tokens, fillers included. With `echo`, a span repeats its
topic and a space before its content. Source: Planned Diffusion, released code; the number of a topic is its LAST
word, so that "1920s music 4" asks for 4 cells (the released parser reads the
first digits it meets and makes 190 tokens of it).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pdref.text.tags import DocumentError, Tag, lex, require_known, require_plain


class UnbalancedTag(DocumentError):
    """A tag opens and never closes, closes what is not open, or nests."""


class MisplacedTag(DocumentError):
    """A tag where the grammar has no place for it."""


class TextOutsideSpan(DocumentError):
    """Response text that lies in no topic and no span."""


class EmptyPlan(DocumentError):
    """A stage without plan items."""


class EmptyTopic(DocumentError):
    """A plan item without words, or with white space around them."""


class MissingLength(DocumentError):
    """A plan item that does not end in a number."""


class LengthOutOfRange(DocumentError):
    """A plan length of 0, below it, or over the context."""


class SpanCountMismatch(DocumentError):
    """A stage whose spans are not as many as its plan items."""


class MissingEnd(DocumentError):
    """A document without its closing <eos>."""


class TrailingText(DocumentError):
    """Something after <eos>."""


class EchoMismatch(DocumentError):
    """A span that does not begin with its topic although the grammar says so."""


LONGEST = 10**9  # cells of a span: over any context, and a bound on what a runaway number can ask for


@dataclass(frozen=True, slots=True)
class Item:
    """One plan item: a topic and a length in grid cells."""

    topic: str
    length: int

    def __post_init__(self) -> None:
        require_plain(self.topic, "topic")
        if not self.topic.strip() or self.topic != self.topic.strip():
            raise EmptyTopic(f"a topic is words without white space around them, not {self.topic!r}")
        if isinstance(self.length, bool) or not isinstance(self.length, int) or not 1 <= self.length <= LONGEST:
            raise LengthOutOfRange(f"topic {self.topic!r} plans {self.length!r} cells; 1 to {LONGEST} may be planned")

    @classmethod
    def parse(cls, text: str) -> Item:
        """Read `words N`. Raises EmptyTopic, MissingLength, LengthOutOfRange, TagInText."""
        found = re.fullmatch(r"(.*?)(?:^|\s)(-?[0-9]{1,99})", text, flags=re.DOTALL)
        if found is None:
            raise MissingLength(f"topic {text!r} does not end in a length, as in 'old music 4'")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.topic} {self.length}"


@dataclass(frozen=True, slots=True)
class Span:
    """The content of one plan item, and how many fillers follow it."""

    text: str
    pads: int = 0

    def __post_init__(self) -> None:
        require_plain(self.text, "span")
        if self.pads < 0:
            raise LengthOutOfRange(f"a span cannot hold {self.pads} fillers")


@dataclass(frozen=True, slots=True)
class Stage:
    """A plan and its spans, in the same order."""

    plan: tuple[Item, ...]
    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        if not self.plan:
            raise EmptyPlan("a stage needs at least one plan item")
        if len(self.plan) != len(self.spans):
            raise SpanCountMismatch(f"{len(self.plan)} plan items but {len(self.spans)} spans")


@dataclass(frozen=True, slots=True)
class PlannedDocument:
    """A prompt and its answer in one or more stages."""

    prompt: str
    stages: tuple[Stage, ...] = field(default=())

    def __post_init__(self) -> None:
        require_plain(self.prompt, "prompt")
        if not self.stages:
            raise EmptyPlan("a document needs at least one stage")

    @property
    def text(self) -> str:
        """What a reader sees: the spans' contents, a line each."""
        return "\n".join(span.text for stage in self.stages for span in stage.spans)

    def without_topics(self) -> PlannedDocument:
        """Ablation: every topic becomes the word "topic" (the lengths stay)."""
        return PlannedDocument(
            self.prompt,
            tuple(Stage(tuple(Item("topic", i.length) for i in s.plan), s.spans) for s in self.stages),
        )

    def without_sync(self) -> PlannedDocument:
        """Ablation: all stages become one, so that no span sees another."""
        plan = tuple(item for stage in self.stages for item in stage.plan)
        return PlannedDocument(self.prompt, (Stage(plan, tuple(s for st in self.stages for s in st.spans)),))


def render(document: PlannedDocument, echo: bool = False) -> str:
    """The document as text; `parse` reads it back."""
    response = Tag.SYNC.text.join(_render_stage(stage, echo) for stage in document.stages)
    return f"{document.prompt}{response}{Tag.EOS.text}"


def render_plan(plan: Sequence[Item]) -> str:
    """A plan as text."""
    return "".join(f"{Tag.TOPIC.text}{item}{Tag.END_TOPIC.text}" for item in plan)


def parse(text: str, echo: bool = False) -> PlannedDocument:
    """Read a rendered document. Raises the `DocumentError` of the first rule that the text breaks."""
    reader = _Reader(text)
    prompt = reader.text()
    stages = [_parse_stage(reader, echo)]
    while reader.take(Tag.SYNC):
        stages.append(_parse_stage(reader, echo))
    if not reader.take(Tag.EOS):
        reader.refuse_text()
        if reader.next is not None:
            raise _wrong_tag(reader.next, "<sync/> or <eos>")
        raise MissingEnd("the document stops without <eos>")
    if reader.next is not None:
        raise TrailingText(f"{_show(reader.next)} follows <eos>")
    return PlannedDocument(prompt, tuple(stages))


def parse_plan(text: str) -> tuple[Item, ...]:
    """Read a plan alone, such as one written by hand. Raises as `parse`."""
    reader = _Reader(text)
    plan = _parse_plan(reader)
    if reader.next is not None:
        reader.refuse_text()
        raise _wrong_tag(reader.next, "the end of the plan")
    return plan


class _Reader:
    """The pieces of a document, one ahead."""

    def __init__(self, text: str) -> None:
        self._pieces = lex(text)
        self.next = next(self._pieces, None)

    def take(self, tag: Tag) -> bool:
        found = self.next is tag
        if found:
            self.next = next(self._pieces, None)
        return found

    def text(self) -> str:
        if not isinstance(self.next, str):
            return ""
        text, self.next = self.next, next(self._pieces, None)
        return text

    def refuse_text(self) -> None:
        if isinstance(self.next, str):
            require_known(self.next)
            raise TextOutsideSpan(f"{self.next!r} lies in no topic and no span")

    def close(self, opened: Tag, closing: Tag) -> None:
        if isinstance(self.next, str) or self.next in (Tag.PAD, Tag.MASK, Tag.BOS):
            raise _wrong_tag(self.next, closing.text)
        if not self.take(closing):
            raise UnbalancedTag(f"{opened.text} is followed by {_show(self.next)} before its {closing.text}")


def _parse_stage(reader: _Reader, echo: bool) -> Stage:
    plan = _parse_plan(reader)
    spans: list[Span] = []
    while reader.take(Tag.ASYNC):
        text, pads = reader.text(), 0
        while reader.take(Tag.PAD):
            pads += 1
        if pads and isinstance(reader.next, str):
            raise MisplacedTag(f"{Tag.PAD.text} stands before the text {reader.next!r}; fillers end a span")
        reader.close(Tag.ASYNC, Tag.END_ASYNC)
        if echo and len(spans) < len(plan):
            text = _strip_echo(text, plan[len(spans)].topic)
        spans.append(Span(text, pads))
        reader.refuse_text()
    return Stage(plan, tuple(spans))


def _parse_plan(reader: _Reader) -> tuple[Item, ...]:
    items: list[Item] = []
    reader.refuse_text()
    while reader.take(Tag.TOPIC):
        words = reader.text()
        reader.close(Tag.TOPIC, Tag.END_TOPIC)
        items.append(Item.parse(words))
        reader.refuse_text()
    if not items:
        if reader.next is None or reader.next in (Tag.EOS, Tag.SYNC, Tag.ASYNC):
            raise EmptyPlan(f"a stage begins with a plan, not with {_show(reader.next)}")
        raise _wrong_tag(reader.next, "<topic>")
    return tuple(items)


def _strip_echo(text: str, topic: str) -> str:
    if text == topic:
        return ""
    if not text.startswith(topic + " "):
        raise EchoMismatch(f"span {text!r} does not begin with its topic {topic!r}")
    return text[len(topic) + 1 :]


def _render_stage(stage: Stage, echo: bool) -> str:
    spans = (
        f"{Tag.ASYNC.text}{f'{item.topic} ' if echo else ''}{span.text}{Tag.PAD.text * span.pads}{Tag.END_ASYNC.text}"
        for item, span in zip(stage.plan, stage.spans, strict=True)
    )
    return render_plan(stage.plan) + "".join(spans)


def _wrong_tag(found: Tag | str, wanted: str) -> DocumentError:
    if found in (Tag.END_TOPIC, Tag.END_ASYNC):
        return UnbalancedTag(f"{_show(found)} closes nothing that is open")
    return MisplacedTag(f"{_show(found)} stands where {wanted} should")


def _show(piece: Tag | str | None) -> str:
    return "the end of the text" if piece is None else piece.text if isinstance(piece, Tag) else repr(piece)
