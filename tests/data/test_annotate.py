"""Annotation: nothing is lost, what leans on a text comes after it, and malformed pieces get their name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdref.data.annotate import (
    EmptySpan,
    Piece,
    RuleAnnotator,
    TopicTooLong,
    annotate_all,
    blocks,
    plan_document,
)
from pdref.text.document import EmptyPlan, EmptyTopic, LengthOutOfRange, PlannedDocument
from pdref.text.layout import Grammar, TooLong, encode
from pdref.text.tags import TagInText
from pdref.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.byte_pairs(["Return the next word of the text. " * 4], size=300)
GRAMMAR = Grammar(grid=10)
annotate = RuleAnnotator()

LINES = st.sampled_from(
    [
        "",
        "   ",
        "The options are:",
        "Return a copy of the text with each word in its place, and the white space as it was before.",
        "This leans on what was said, and goes on for long enough that it cannot be taken for a short one.",
        "For example::",
        "- a bullet of the list",
        "  * a deeper one",
        "1. first",
        "name -- what it means",
        "str.center(width[, fillchar])",
        "    Centre the text in `width` columns.",
        ">>> wrap('x  y')",
        "['x', 'y']",
        "\tif x:  # code",
        "=====",
        "naïve “quotes” …",
    ]
)
DOCUMENTATION = st.lists(LINES, max_size=14).map("\n".join)


def contents(text: str, prompt: str = "f(x)") -> list[list[str]]:
    return [[piece.content for piece in stage] for stage in annotate(prompt, text)]


@settings(max_examples=300, deadline=None)
@given(DOCUMENTATION | st.text(max_size=80), st.sampled_from([annotate, RuleAnnotator(5, 30, 50)]))
def test_the_spans_are_a_partition_of_the_text(text: str, annotator: RuleAnnotator) -> None:
    stages = annotator("a prompt", text)
    pieces = [piece for stage in stages for piece in stage]
    if not text.strip():
        assert not stages
        return
    assert "\n".join(piece.content for piece in pieces) == text
    assert all(piece.content.strip() for piece in pieces), "a span without a word plans nothing"
    assert all(stages), "a stage without spans"


@settings(max_examples=150, deadline=None)
@given(DOCUMENTATION)
def test_topics_are_up_to_three_words_of_the_span(text: str) -> None:
    for piece in (piece for stage in annotate("a prompt", text) for piece in stage):
        assert 1 <= len(piece.topic.split()) <= 3
        assert all(word in piece.content for word in piece.topic.split())


@settings(max_examples=150, deadline=None)
@given(DOCUMENTATION.filter(str.strip))
def test_a_planned_document_reads_as_the_text_and_lies_on_the_grid(text: str) -> None:
    document = plan_document("f(x)", annotate("f(x)", text), TOKENIZER, GRAMMAR, context=4000, longest=2000)
    assert document.text == text
    for stage in document.stages:
        for item, span in zip(stage.plan, stage.spans, strict=True):
            assert item.length * 10 == len(TOKENIZER.encode(span.text)) + span.pads
            assert 0 <= span.pads < 10, "a shorter plan would do"


def test_blocks_keep_their_blank_lines() -> None:
    assert blocks("\na\nb\n\n\n  c\n") == ["\na\nb\n\n", "  c\n"]


INTRODUCTION = "Interpreters that are constructed with this class obey all of the following conventions:\n"
PARAGRAPH = "Return the text as a list of lines, at most as wide as the given number of columns, without ends.\n"
LONG = PARAGRAPH + "Words that are longer than a line are cut, unless the caller asks for the contrary by name.\n"


def test_a_list_is_written_after_its_introduction_and_its_items_side_by_side() -> None:
    items = [f"- {n}: {PARAGRAPH.strip()}" for n in "abc"]
    stages = contents(INTRODUCTION + "\n" + "\n".join(items) + "\n\nEnd of it.")
    assert stages[0] == [INTRODUCTION]
    assert stages[1][:2] == items[:2]
    assert len(stages) == 2


@pytest.mark.parametrize("opening", ["For example, ", "Note that ", "See also ", "This ", "However, ", "It "])
def test_what_leans_on_a_paragraph_is_the_next_stage(opening: str) -> None:
    assert contents(f"{LONG}\n{opening}{PARAGRAPH}") == [[LONG], [opening + PARAGRAPH]]


@pytest.mark.parametrize("opening", ["", "This function may ", "Italics may ", "Sockets may ", "Notebooks may "])
def test_what_leans_on_nothing_is_a_sibling(opening: str) -> None:
    assert contents(f"{LONG}\n{opening}{PARAGRAPH}") == [[LONG, opening + PARAGRAPH]]


def test_short_text_that_leans_stays_in_the_span() -> None:
    text = "Return the number of words.\n\nThis counts punctuation too."
    assert contents(text) == [[text]]


def test_a_name_that_a_sibling_brought_up_ties_them_unless_the_prompt_knows_it() -> None:
    first, second = f"{LONG}Set *width* first.\n", f"The *width* is a number. {PARAGRAPH}"
    assert contents(f"{first}\n{second}", prompt="wrap(text)") == [[first], [second]]
    assert contents(f"{first}\n{second}", prompt="wrap(text, width=70)") == [[first, second]]


def test_code_keeps_its_white_space_and_its_explanation() -> None:
    example = ">>> for x in y:\n...     print(x,   end='')\n\t1\n"
    assert contents(f"Print all.\n\n{example}") == [[f"Print all.\n\n{example}"]]
    stages = contents(f"{LONG}\n{example}\n{LONG}")
    assert stages[1][0] == example, "an example follows a long explanation in the next stage"


def test_a_heading_stays_with_what_it_heads() -> None:
    text = f"Raises:\n    ValueError: if the text is empty.\n\nNotes\n=====\n\n{LONG}"
    flat = [content for stage in contents(text) for content in stage]
    assert any(content.startswith("Raises:\n    ValueError") for content in flat)
    assert any("Notes\n=====\n\nReturn" in content for content in flat)


def test_definitions_are_siblings_with_their_bodies() -> None:
    body = "    " + PARAGRAPH
    text = f"wrap(text)\n{body}\n    This is more of it.\n\nfill(text)\n{body}"
    [stage] = annotate("module textwrap", text)
    assert [piece.topic for piece in stage] == ["wrap", "fill"]
    assert stage[0].content.endswith("more of it.\n")


def test_a_long_paragraph_is_cut_into_parts_that_follow_one_another() -> None:
    stages = contents(PARAGRAPH * 12 + "\n\n")
    assert len(stages) > 1
    assert all(content.strip() for stage in stages for content in stage)
    assert all(len(content) < 1.3 * annotate.limit for stage in stages for content in stage)


ONE = [[Piece("next word", "Return the next word.")]]
MALFORMED = [
    ([], EmptyPlan),
    ([[]], EmptyPlan),
    ([[Piece("next word", "")]], EmptySpan),
    ([[Piece("next word", " \n")]], EmptySpan),
    ([[Piece("", "Return.")]], EmptyTopic),
    ([[Piece(" word", "Return.")]], EmptyTopic),
    ([[Piece("the next word again", "Return.")]], TopicTooLong),
    ([[Piece("<topic>", "Return.")]], TagInText),
    ([[Piece("word", "Return <async> it.")]], TagInText),
    ([[Piece("word", "Return the next word. " * 40)]], LengthOutOfRange),
    ([[Piece("word", "Return the next word. " * 4)] * 9], TooLong),
]


@pytest.mark.parametrize(("stages", "error"), MALFORMED)
def test_malformed_pieces_raise_their_error(stages: list[list[Piece]], error: type[Exception]) -> None:
    with pytest.raises(error):
        plan_document("f(x)", stages, TOKENIZER, GRAMMAR, context=300)


def test_a_tag_in_the_prompt_is_refused() -> None:
    with pytest.raises(TagInText):
        plan_document("f(<eos>)", ONE, TOKENIZER, GRAMMAR, context=300)


def test_any_callable_annotates_and_what_cannot_be_planned_is_counted() -> None:
    """The answers of an unreliable annotator, one for each way to fail, and two good ones."""
    answers = dict(enumerate([stages for stages, _ in MALFORMED]))
    answers[len(answers)] = ONE
    answers[len(answers)] = ONE  # whose text will differ

    def annotator(prompt: str, text: str) -> list[list[Piece]]:
        return answers[int(prompt)]

    def joined(stages: list[list[Piece]]) -> str:
        return "\n".join(piece.content for stage in stages for piece in stage)

    texts = [(str(i), joined(stages)) for i, stages in answers.items()]
    texts[-1] = (texts[-1][0], "Return the next word, please.")
    documents, dropped = annotate_all(texts, annotator, TOKENIZER, GRAMMAR, context=300)
    assert [document.text for document in documents] == ["Return the next word."]
    expected = {"EmptyPlan": 2, "EmptySpan": 2, "EmptyTopic": 2, "TagInText": 2, "TextChanged": 1}
    assert dropped == expected | {"TopicTooLong": 1, "LengthOutOfRange": 1, "TooLong": 1}


def test_context_and_longest_are_the_last_sizes_that_pass() -> None:
    document = plan_document("f(x)", ONE, TOKENIZER, GRAMMAR, context=300)
    assert isinstance(document, PlannedDocument)
    size = encode(document, TOKENIZER, GRAMMAR).shape[1]
    planned = document.stages[0].plan[0].length * 10
    assert plan_document("f(x)", ONE, TOKENIZER, GRAMMAR, context=size, longest=planned) == document
    with pytest.raises(TooLong):
        plan_document("f(x)", ONE, TOKENIZER, GRAMMAR, context=size - 1)
    with pytest.raises(LengthOutOfRange):
        plan_document("f(x)", ONE, TOKENIZER, GRAMMAR, context=300, longest=planned - 1)
