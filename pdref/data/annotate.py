"""Plain text to planned documents: who cuts a text into stages and spans, and how pieces become a document.

The choices made:

- An `Annotator` is any callable from (prompt, text) to stages of `Piece`s, so that a language model can take
  the place of the rules. Nothing an annotator says is trusted: every piece is checked.
- A cut takes the place of one line break. The invariant is `document.text == text`, character for character:
  blank lines and indentation stay inside spans, and no other character is in two spans or in none.
- A span is what could be written beside its siblings, knowing the prompt and the plan: a paragraph with the
  code under it, a list item, a definition. Text that leans on what stands before it (a list after its
  introduction, "For example", "This", a name that a sibling brought up) joins it while both are short, and
  otherwise opens the next stage.
- A topic is at most three words of its span (see `topics`).
- A length is the number of tokens rounded up to the grid; pads fill the rest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import pairwise
from typing import NamedTuple, Protocol

from pdref.data.topics import TOPIC_WORDS, WORD, choose_topics, indentation, words
from pdref.text.document import Item, LengthOutOfRange, PlannedDocument, Span, Stage
from pdref.text.layout import Grammar, encode
from pdref.text.tags import DocumentError
from pdref.text.tokenizer import Tokenizer


class EmptySpan(DocumentError):
    """A piece without content."""


class TopicTooLong(DocumentError):
    """A topic of more than `TOPIC_WORDS` words."""


class TextChanged(DocumentError):
    """Pieces that do not add up to the text they were cut from."""


class Piece(NamedTuple):
    """What an annotator says of one span."""

    topic: str
    content: str


class Annotator(Protocol):
    """Anything that cuts a text into stages of pieces, in reading order."""

    def __call__(self, prompt: str, text: str) -> list[list[Piece]]:
        """Stages whose contents, joined by line breaks, are `text`."""
        ...


def plan_document(
    prompt: str,
    stages: Sequence[Sequence[Piece]],
    tokenizer: Tokenizer,
    grammar: Grammar,
    context: int,
    longest: int = 200,
) -> PlannedDocument:
    """The document that the pieces describe, lengths rounded up to `grammar.grid` tokens.

    Raises EmptyPlan, EmptySpan, EmptyTopic, TopicTooLong, TagInText, LengthOutOfRange (a span over `longest`
    tokens) and TooLong (a document over `context` tokens).
    """
    return _plan(prompt, stages, _token_counts([stages], tokenizer)[0], tokenizer, grammar, context, longest)


def _token_counts(all_stages: Sequence[Sequence[Sequence[Piece]]], tokenizer: Tokenizer) -> list[Iterator[int]]:
    """Tokens of each piece, per document; one call encodes everything, which is many times faster."""
    contents = [[piece.content for stage in stages for piece in stage] for stages in all_stages]
    counts = (len(ids) for ids in tokenizer.encode_all([text for texts in contents for text in texts]))
    return [iter([next(counts) for _ in texts]) for texts in contents]


def _plan(
    prompt: str,
    stages: Sequence[Sequence[Piece]],
    counts: Iterator[int],
    tokenizer: Tokenizer,
    grammar: Grammar,
    context: int,
    longest: int,
) -> PlannedDocument:
    planned = []
    for stage in stages:
        pairs = [_plan_piece(piece, next(counts), grammar.grid, longest) for piece in stage]
        planned.append(Stage(tuple(item for item, _ in pairs), tuple(span for _, span in pairs)))
    document = PlannedDocument(prompt, tuple(planned))
    encode(document, tokenizer, grammar, context)  # the layout owns the rule of what fits a context
    return document


def _plan_piece(piece: Piece, tokens: int, grid: int, longest: int) -> tuple[Item, Span]:
    cells = -(-tokens // grid)
    if not piece.content.strip():
        raise EmptySpan(f"the span of topic {piece.topic!r} is empty")
    if len(piece.topic.split()) > TOPIC_WORDS:
        raise TopicTooLong(f"topic {piece.topic!r} has more than {TOPIC_WORDS} words")
    if cells * grid > longest:
        raise LengthOutOfRange(f"topic {piece.topic!r} needs {cells * grid} tokens; a span has at most {longest}")
    return Item(piece.topic, cells), Span(piece.content, cells * grid - tokens)


def annotate_all(
    texts: Sequence[tuple[str, str]],
    annotator: Annotator,
    tokenizer: Tokenizer,
    grammar: Grammar,
    context: int,
    longest: int = 200,
) -> tuple[list[PlannedDocument], Counter[str]]:
    """The documents of all (prompt, text) that can be planned, and how many were dropped by error name."""
    documents: list[PlannedDocument] = []
    dropped: Counter[str] = Counter()
    annotated = [annotator(prompt, text) for prompt, text in texts]
    counts = _token_counts(annotated, tokenizer)
    for (prompt, text), stages, count in zip(texts, annotated, counts, strict=True):
        try:
            document = _plan(prompt, stages, count, tokenizer, grammar, context, longest)
            if document.text != text:
                raise TextChanged(f"the spans of {prompt!r} do not add up to its text")
        except DocumentError as error:
            dropped[type(error).__name__] += 1
        else:
            documents.append(document)
    return documents, dropped


class _Bond(Enum):
    """How a segment hangs on the one before it."""

    ITEM = auto()  # is written beside it
    SIBLING = auto()  # is written beside it, unless it speaks of a name that a sibling brought up
    HEADED = auto()  # stands under its heading: always one span
    PART = auto()  # belongs to it: one span while that fits, otherwise a sibling
    CONTINUES = auto()  # goes on from it: one span while both are short, otherwise the next stage
    FOLLOWS = auto()  # is written once it is known: the next stage


@dataclass(frozen=True, slots=True)
class RuleAnnotator:
    """Cuts documentation by its paragraphs, lists, definitions and examples. Sizes are in characters.

    What is under `small` shares a span with its successor, what leans on another joins it up to `target`, and
    what belongs to a definition up to `limit`. Nothing much over `limit` stays whole if it has line breaks.
    """

    small: int = 80
    target: int = 200
    limit: int = 480

    def __call__(self, prompt: str, text: str) -> list[list[Piece]]:
        """Stages of `text`; none if it is blank. See `Annotator`."""
        stages: list[list[str]] = []
        given = set(WORD.findall(prompt))
        for content, bond in _segments(text, self.limit):
            if not stages:
                stages = [[content]]
                continue
            last = stages[-1][-1]
            if bond is _Bond.SIBLING and _names(content) & _names("\n".join(stages[-1])) - given:
                bond = _Bond.CONTINUES
            short = len(last.strip()) < self.small and indentation(last) <= indentation(content)
            room = self.limit if bond is _Bond.PART else self.target
            joins = (short or bond in (_Bond.PART, _Bond.CONTINUES)) and len(last) + len(content) < room
            if joins or bond is _Bond.HEADED:
                stages[-1][-1] = f"{last}\n{content}"
            elif bond in (_Bond.CONTINUES, _Bond.FOLLOWS):
                stages.append([content])
            else:
                stages[-1].append(content)
        return [[*map(Piece, choose_topics(prompt, stage, text), stage)] for stage in stages]


def blocks(text: str) -> list[str]:
    """Runs of lines, each with the blank lines after it; joined by line breaks they are `text`."""
    found: list[list[str]] = []
    for line in text.split("\n"):
        if found and (not line.strip() or found[-1][-1].strip() or not "".join(found[-1]).strip()):
            found[-1].append(line)
        else:
            found.append([line])
    return ["\n".join(lines) for lines in found]


def _segments(text: str, limit: int) -> Iterator[tuple[str, _Bond]]:
    """The smallest pieces, each with its bond to the one before it; joined by line breaks they are `text`."""
    before, base = "", 0
    for block in blocks(text) if text.strip() else []:
        items = _items(block)
        listed = len(items) > 1 or _BULLET.match(block) is not None
        for item in items:
            deeper = bool(before) and indentation(item) > base
            bond = _bond(before, item, listed, deeper)
            base = base if deeper else indentation(item)
            for part in _within(item, limit):
                yield part, bond
                bond = _Bond.CONTINUES
            before = item


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(f"{' '.join(phrase.split())} " for phrase in text.split(","))


_BULLET = re.compile(r"\s*(?:[-*+•]|\d{1,2}[.)]|\(\w\))\s+\S")
# `term -- text`, `term: text` or a table's first column: a list only if there are several.
_ENTRY = re.compile(r"\s*(?:[\w.*<>/-]+(?:, [\w.*-]+)*(?: +--? | ?: +)|\S+ {3,})\S")
# A name alone on its line, perhaps with arguments, above deeper lines.
_DEFINITION = re.compile(r"( *)(?:class )?[\w.]+(?:\([^\n]*)?(?:\n\1\s+\S|\s*\Z)")
_HEADING = re.compile(r"\s*[^\n]+\n\s*([=*~^#-])\1{2,}\s*\Z|\s*[^\n]{1,40}::?\s*\Z")
_CODE = re.compile(r"\s*(?:>>>|\$ |% )")
_FOLLOWS = _phrases(
    """example, examples, for example, for instance, e.g, see also, note, notes, typical usage, usage,
    caveat, warning, here is, here are, the above, as above, in the above, the previous, the
    following, in this case"""
)
_CONTINUES = _phrases(
    """it, they, however, but, otherwise, thus, hence, therefore, so, then, also, instead, similarly,
    furthermore, moreover, conversely, finally, again, and, or, if so, if not, in addition, in
    particular, in other words, in that case, in contrast, on the other hand, as a result, the latter,
    the former"""
)
# "This function" speaks of the prompt's subject, "This" alone of what was just said.
_POINTERS = _phrases("this, these, that, those, such")
_SUBJECTS = _phrases(
    """function, method, class, module, package, exception, statement, object, type, attribute, routine,
    section, option, parameter, protocol, implementation, constant, interface, command, is a, is an,
    can be used"""
)


def _bond(before: str, segment: str, listed: bool, deeper: bool) -> _Bond:
    introduced = before.rstrip().endswith(":")
    opening = " ".join(words(segment[:80])[:5]) + " "
    pointing = opening.startswith(_POINTERS) and not opening.partition(" ")[2].startswith(_SUBJECTS)
    if _HEADING.match(before):
        return _Bond.HEADED
    if _CODE.match(segment):
        return _Bond.CONTINUES
    if listed:
        return _Bond.FOLLOWS if introduced else _Bond.ITEM
    if deeper and introduced:
        return _Bond.CONTINUES
    if opening.startswith(_FOLLOWS):
        return _Bond.FOLLOWS
    if deeper:
        return _Bond.PART
    if _DEFINITION.match(segment):
        return _Bond.ITEM
    return _Bond.CONTINUES if pointing or opening.startswith(_CONTINUES) else _Bond.SIBLING


_NAME = re.compile(r"""\*(\w+)\*|["'`]([\w.]+)(?:\(\))?["'`]|(\w+_\w+|[A-Z]+[a-z]\w*[A-Z]\w+|\w+(?=\(\)))""")


def _names(text: str) -> set[str]:
    """What is written like a name: `*x*`, `"x"`, `x_y`, `CamelCase`, `x()`."""
    return {a or b or c for a, b, c in _NAME.findall(text)} - {"None", "True", "False", "self"}


def _items(block: str) -> list[str]:
    """A block cut before each item of the list it holds, if it holds one."""
    if _CODE.match(block):
        return [block]
    lines = block.split("\n")
    bullets, entries = ([i for i, line in enumerate(lines) if form.match(line)] for form in (_BULLET, _ENTRY))
    starts = bullets or (entries if len(entries) > 1 else _terms(lines))
    outer = min((indentation(lines[i]) for i in starts), default=0)
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)  # blank lines are no item
    edges = [0, *(i for i in starts if i > first and indentation(lines[i]) == outer), len(lines)]
    return ["\n".join(lines[a:b]) for a, b in pairwise(edges)]


def _terms(lines: Sequence[str]) -> list[int]:
    """Lines that head a definition: each is followed by deeper ones, and there are several."""
    full = [i for i, line in enumerate(lines) if line.strip()]
    outer = min((indentation(lines[i]) for i in full), default=0)
    heads = [n for n, i in enumerate(full) if indentation(lines[i]) == outer]
    paired = all(b - a > 1 for a, b in zip(heads, [*heads[1:], len(full)], strict=True))
    return [full[n] for n in heads] if paired and len(heads) > 1 else []


def _within(segment: str, limit: int) -> Iterator[str]:
    """A segment over `limit` cut at line breaks into about equal parts, after sentences where possible."""
    count = -(-len(segment.rstrip()) // limit)
    if count <= 1:
        yield segment
        return
    share = len(segment) / count
    part: list[str] = []
    size = 0
    for line in segment.split("\n"):
        full = size + len(line) > 1.2 * share
        ended = bool(part) and part[-1].endswith((".", ":", ";")) and size > 0.7 * share
        if (full or ended) and line.strip() and "".join(part).strip():  # blank lines are no part
            yield "\n".join(part)
            part, size = [], 0
        part.append(line)
        size += len(line) + 1
    yield "\n".join(part)
