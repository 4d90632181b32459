"""The control tags: how they are written, which token each is, and how text is cut at them.

Every tokenizer gives the tags the same ids, so samplers and losses compare integers and never strings.
Source: Planned Diffusion, released code (format of the planned response).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum


class DocumentError(ValueError):
    """A planned document that breaks the grammar; each way to break it is a subclass."""


class UnknownTag(DocumentError):
    """Something written like a tag, where only tags may stand, is none of ours."""


class TagInText(DocumentError):
    """A prompt, topic or span contains a control tag as text."""


class Tag(IntEnum):
    """A control tag; its value is its token id in every tokenizer."""

    PAD = 0
    MASK = 1
    BOS = 2
    EOS = 3
    TOPIC = 4
    END_TOPIC = 5
    ASYNC = 6
    END_ASYNC = 7
    SYNC = 8

    @property
    def text(self) -> str:
        """How the tag is written."""
        return _WRITTEN[self]


_WRITTEN = {
    Tag.PAD: "<pad>",
    Tag.MASK: "<mask>",
    Tag.BOS: "<bos>",
    Tag.EOS: "<eos>",
    Tag.TOPIC: "<topic>",
    Tag.END_TOPIC: "</topic>",
    Tag.ASYNC: "<async>",
    Tag.END_ASYNC: "</async>",
    Tag.SYNC: "<sync/>",
}
CONTENT_FORBIDS = tuple(tag for tag in Tag if tag is not Tag.PAD)
"""What a span's content cannot be; fillers can."""

_TAG = {written: tag for tag, written in _WRITTEN.items()}
_AT_TAGS = re.compile("(" + "|".join(map(re.escape, _TAG)) + ")")
_LIKE_A_TAG = re.compile(r"</?\w+/?>")


def lex(text: str) -> Iterator[Tag | str]:
    """Cut `text` at its control tags; pieces of plain text come as they are, empty ones are left out."""
    for piece in _AT_TAGS.split(text):
        if piece:
            yield _TAG.get(piece, piece)


def require_plain(text: str, what: str) -> None:
    """Raise `TagInText` if `text` (the `what` of a document) holds a control tag."""
    if found := _AT_TAGS.search(text):
        raise TagInText(f"{what} holds the control tag {found.group()} as text: {_excerpt(text)}")


def require_known(text: str) -> None:
    """Raise `UnknownTag` if `text`, standing where only tags may stand, looks like a tag."""
    if found := _LIKE_A_TAG.search(text):
        known = " ".join(_TAG)
        raise UnknownTag(f"{found.group()} is no control tag; known are {known}")


def _excerpt(text: str, width: int = 40) -> str:
    return repr(text if len(text) <= width else text[: width - 1] + "…")
