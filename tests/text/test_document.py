"""`parse` and `render` are inverse to each other. What must not parse is listed in `test_malformed`."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given, infer, settings
from hypothesis import strategies as st

from pdref.text.document import (
    LONGEST,
    Item,
    PlannedDocument,
    Span,
    Stage,
    parse,
    parse_plan,
    render,
    render_plan,
)
from pdref.text.tags import DocumentError, Tag

TWO_STAGES = PlannedDocument(
    "describe a cat",
    (
        Stage((Item("1920s music", 1), Item("old cat", 2)), (Span("jazz", 2), Span("a cat sat"))),
        Stage((Item("end", 1),), (Span("", 1),)),
    ),
)
# The format of the released code, written out by hand.
WRITTEN = (
    "describe a cat"
    "<topic>1920s music 1</topic><topic>old cat 2</topic>"
    "<async>jazz<pad><pad></async><async>a cat sat</async>"
    "<sync/><topic>end 1</topic><async><pad></async><eos>"
)
ECHOED = (
    "describe a cat"
    "<topic>1920s music 1</topic><topic>old cat 2</topic>"
    "<async>1920s music jazz<pad><pad></async><async>old cat a cat sat</async>"
    "<sync/><topic>end 1</topic><async>end <pad></async><eos>"
)


@pytest.mark.parametrize(("echo", "text"), [(False, WRITTEN), (True, ECHOED)])
def test_a_document_is_written_as_the_format_says(echo: bool, text: str) -> None:
    assert render(TWO_STAGES, echo) == text
    assert parse(text, echo) == TWO_STAGES


@settings(max_examples=150)
@given(document=infer, echo=infer)
def test_what_is_rendered_parses_to_the_same_document(document: PlannedDocument, echo: bool) -> None:
    assert parse(render(document, echo), echo) == document


# Texts in the format, composed without the code under test.
_WORDS = st.sampled_from(["music", "1920s", "4", "-4", "<b>", "a\nb", "日本", "x < y >", "</topic ", "old  cat"])
_TOPICS = st.lists(_WORDS, min_size=1, max_size=3).map(" ".join).map(str.strip)
_TEXTS = st.lists(_WORDS, max_size=3).map("\n".join)


@st.composite
def documents_as_text(draw: st.DrawFn, echo: bool) -> str:
    stages = []
    for _ in range(draw(st.integers(1, 3))):
        topics = draw(st.lists(_TOPICS, min_size=1, max_size=3))
        plan = "".join(f"<topic>{topic} {draw(st.integers(1, 300))}</topic>" for topic in topics)
        openings = [f"{topic} " if echo else "" for topic in topics]
        pads = st.integers(0, 3).map(lambda n: "<pad>" * n)
        spans = "".join(f"<async>{opening}{draw(_TEXTS)}{draw(pads)}</async>" for opening in openings)
        stages.append(plan + spans)
    return f"{draw(_TEXTS)}{'<sync/>'.join(stages)}<eos>"


@given(data=st.data(), echo=infer)
def test_what_parses_renders_to_the_same_text(data: st.DataObject, echo: bool) -> None:
    text = data.draw(documents_as_text(echo))
    assert render(parse(text, echo), echo) == text


@given(plan=st.lists(st.from_type(Item), min_size=1, max_size=4).map(tuple))
def test_a_plan_alone_survives_its_written_form(plan: tuple[Item, ...]) -> None:
    assert parse_plan(render_plan(plan)) == plan


@pytest.mark.parametrize(
    ("words", "item"),
    [
        ("1920s music 4", Item("1920s music", 4)),  # the released parser reads 1920 and asks for 19,200 masks
        ("7 9", Item("7", 9)),
        ("route 66", Item("route", 66)),
        ("top 10 songs 3", Item("top 10 songs", 3)),
        ("new\nline\n2", Item("new\nline", 2)),
        ("padded 007", Item("padded", 7)),
        ("٤ 4", Item("٤", 4)),
        ("minus -3 5", Item("minus -3", 5)),
        (f"long {LONGEST}", Item("long", LONGEST)),
    ],
)
def test_the_length_of_an_item_is_its_last_number(words: str, item: Item) -> None:
    assert Item.parse(words) == item


@settings(max_examples=300)
@given(
    pieces=st.lists(st.sampled_from([*(tag.text for tag in Tag), "a 1", "a", "1", " ", "<b>", "-1"]), max_size=14),
    echo=infer,
)
@example(pieces=["<topic>", "a 1", "</topic>", "<async>", "a", "</async>", "<eos>"], echo=True)
def test_any_soup_of_tags_is_a_document_or_breaks_a_named_rule(pieces: list[str], echo: bool) -> None:
    with contextlib.suppress(DocumentError):
        document = parse("".join(pieces), echo)
        assert parse(render(document, echo), echo) == document


def test_an_echo_may_end_with_its_topic_when_the_span_is_empty() -> None:
    # A word-level tokenizer does not give back the space behind the topic.
    assert parse("<topic>end 1</topic><async>end<pad></async><eos>", echo=True).stages[0].spans == (Span("", 1),)


def test_a_topic_that_begins_another_topic_is_still_told_from_it() -> None:
    text = "<topic>a 1</topic><topic>a b 1</topic><async>a b c</async><async>a b c</async><eos>"
    assert [span.text for span in parse(text, echo=True).stages[0].spans] == ["b c", "c"]


def test_a_reader_sees_the_contents_a_line_each() -> None:
    assert TWO_STAGES.text == "jazz\na cat sat\n"


def test_without_topics_only_the_lengths_of_a_plan_are_left() -> None:
    bare = TWO_STAGES.without_topics()
    assert render_plan(bare.stages[0].plan) == "<topic>topic 1</topic><topic>topic 2</topic>"
    assert [stage.spans for stage in bare.stages] == [stage.spans for stage in TWO_STAGES.stages]
    assert bare.prompt == TWO_STAGES.prompt


def test_without_sync_all_spans_are_siblings_of_one_stage() -> None:
    (stage,) = TWO_STAGES.without_sync().stages
    assert [item.topic for item in stage.plan] == ["1920s music", "old cat", "end"]
    assert [span.text for span in stage.spans] == ["jazz", "a cat sat", ""]
    assert "<sync/>" not in render(TWO_STAGES.without_sync())
