"""Text is cut at the control tags and nowhere else, and what looks like a tag is told from what is one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdref.text.tags import DocumentError, Tag, TagInText, UnknownTag, lex, require_known, require_plain

PIECES = st.lists(
    st.sampled_from(Tag) | st.sampled_from(["<", "</topic", "<b>", "< pad >", "x", " ", "é"]) | st.text(max_size=4)
)


def written(pieces: list[Tag | str]) -> str:
    return "".join(piece.text if isinstance(piece, Tag) else piece for piece in pieces)


def test_the_tags_take_the_first_token_ids_and_are_written_apart() -> None:
    assert [int(tag) for tag in Tag] == list(range(9))
    assert len({tag.text for tag in Tag}) == len(Tag)
    assert Tag.SYNC.text == "<sync/>" and Tag.END_ASYNC.text == "</async>"


@given(pieces=PIECES)
def test_cutting_loses_nothing_and_leaves_no_tag_in_a_text(pieces: list[Tag | str]) -> None:
    text = written(pieces)
    cut = list(lex(text))
    assert written(cut) == text
    for piece in cut:
        assert isinstance(piece, Tag) or (piece and not any(tag.text in piece for tag in Tag))
    assert all(isinstance(a, Tag) or isinstance(b, Tag) for a, b in pairwise(cut))


@pytest.mark.parametrize("tag", Tag, ids=lambda tag: tag.name)
def test_every_tag_is_found_between_texts_and_beside_itself(tag: Tag) -> None:
    assert list(lex(f"a{tag.text}{tag.text}<b")) == ["a", tag, tag, "<b"]
    with pytest.raises(TagInText, match=f"topic holds the control tag {tag.text} as text: 'a {tag.text} b'"):
        require_plain(f"a {tag.text} b", "topic")


@pytest.mark.parametrize("text", ["", "a < b", "<b>", "<TOPIC>", "< topic>", "<sync>", "topic", "<topic"])
def test_angle_brackets_that_are_no_tags_are_plain_text(text: str) -> None:
    require_plain(text, "span")
    assert list(lex(text)) == ([text] if text else [])


@pytest.mark.parametrize("tag", ["<plan>", "</plan>", "<sync>", "<br/>"])
def test_where_only_tags_may_stand_an_unknown_one_is_named_beside_the_known(tag: str) -> None:
    with pytest.raises(UnknownTag, match=f"{tag} is no control tag; known are <pad> .* <sync/>"):
        require_known(f"  {tag}")


@pytest.mark.parametrize("text", ["", "a < b > c", "<", "<two words>"])
def test_text_that_looks_like_no_tag_is_not_taken_for_one(text: str) -> None:
    require_known(text)


def test_a_long_text_is_quoted_in_part() -> None:
    with pytest.raises(TagInText) as caught:
        require_plain("<eos>" + 1000 * "x", "prompt")
    assert len(str(caught.value)) < 120 and "…" in str(caught.value)


def test_every_breach_of_the_grammar_is_a_value_error() -> None:
    assert issubclass(DocumentError, ValueError)
    assert issubclass(UnknownTag, DocumentError) and issubclass(TagInText, DocumentError)
