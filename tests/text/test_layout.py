"""Every token gets its role, stage, span and place, and a batch keeps what its rows said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, infer, settings
from hypothesis import strategies as st

from pdref.text.document import Item, PlannedDocument, parse
from pdref.text.layout import (
    NO_SPAN,
    Grammar,
    Layout,
    LayoutBuilder,
    LayoutError,
    Role,
    Stream,
    encode,
    prompt_layout,
)
from pdref.text.tags import Tag
from pdref.text.tokenizer import Tokenizer

BATCH = st.lists(st.from_type(PlannedDocument), min_size=1, max_size=3)
Fit = Callable[[PlannedDocument, Tokenizer, int], PlannedDocument]
P, Z, X, T = Role.PROMPT, Role.PLAN, Role.CONTENT, Role.TAG

DOCUMENT = parse(
    "p q<topic>a 1</topic><topic>b 1</topic><async>x y</async><async>z<pad></async>"
    "<sync/><topic>c 1</topic><async>w<pad></async><eos>"
)
# One line a token, drawn by hand: what is written, role, stage, span, and whether it is the planner's (the Z
# of the paper's formula: plans, the <async> that ends one, <sync/> and <eos>).
BY_HAND = [
    ("<bos>", P, 0, NO_SPAN, False),
    ("p", P, 0, NO_SPAN, False),
    ("q", P, 0, NO_SPAN, False),
    ("<topic>", Z, 0, NO_SPAN, True),
    ("a", Z, 0, NO_SPAN, True),
    ("1", Z, 0, NO_SPAN, True),
    ("</topic>", Z, 0, NO_SPAN, True),
    ("<topic>", Z, 0, NO_SPAN, True),
    ("b", Z, 0, NO_SPAN, True),
    ("1", Z, 0, NO_SPAN, True),
    ("</topic>", Z, 0, NO_SPAN, True),
    ("<async>", T, 0, 0, True),  # the planner chose to write no third topic
    ("a", T, 0, 0, False),  # an echoed topic is given: nobody predicts it
    ("x", X, 0, 0, False),
    ("y", X, 0, 0, False),
    ("</async>", T, 0, 0, False),
    ("<async>", T, 0, 1, False),  # follows by itself: the plan says how many spans there are
    ("b", T, 0, 1, False),
    ("z", X, 0, 1, False),
    ("<pad>", X, 0, 1, False),  # a filler is content: the model has to write it
    ("</async>", T, 0, 1, False),
    ("<sync/>", T, 1, NO_SPAN, True),
    ("<topic>", Z, 1, NO_SPAN, True),
    ("c", Z, 1, NO_SPAN, True),
    ("1", Z, 1, NO_SPAN, True),
    ("</topic>", Z, 1, NO_SPAN, True),
    ("<async>", T, 1, 0, True),
    ("c", T, 1, 0, False),
    ("w", X, 1, 0, False),
    ("<pad>", X, 1, 0, False),
    ("</async>", T, 1, 0, False),
    ("<eos>", T, 1, NO_SPAN, True),
]


def rows_of(layout: Layout, tokenizer: Tokenizer) -> list[tuple[str, int, int, int, bool]]:
    names = [tokenizer.decode([i]) for i in layout.token[0].tolist()]
    fields = (field[0].tolist() for field in (layout.role, layout.stage, layout.span, layout.planned))
    return list(zip(names, *fields, strict=True))


def equal(a: Layout, b: Layout) -> bool:
    return all(torch.equal(x, y) for (_, x), (_, y) in zip(a.items(), b.items(), strict=True))


@pytest.mark.parametrize("echo", [True, False])
def test_a_document_is_laid_out_as_drawn_by_hand(words: Tokenizer, echo: bool) -> None:
    layout = encode(DOCUMENT, words, Grammar(grid=2, echo=echo))
    echoes = {12, 17, 27}
    expected = [row for i, row in enumerate(BY_HAND) if echo or i not in echoes]
    assert rows_of(layout, words) == expected
    assert layout.position.tolist() == [list(range(len(expected)))]
    assert (layout.stream == Stream.CLEAN).all() and layout.real.all()
    assert layout.shape == (1, len(expected))


def test_a_prompt_alone_is_how_a_document_begins(words: Tokenizer) -> None:
    whole = encode(DOCUMENT, words, Grammar(grid=2))
    assert equal(prompt_layout("p q", words, Grammar()), whole.map(lambda field: field[:, :3]))


def test_a_builder_writes_a_span_as_encode_does(words: Tokenizer) -> None:
    builder = LayoutBuilder(words, Grammar(grid=2))
    builder.prompt("p q")
    builder.plan([Item("a", 1), Item("b", 1)], 0)
    builder.open_span(Item("a", 1), 0, 0)
    builder.add([Tag.MASK, Tag.MASK], Role.CONTENT, 0, 0)
    builder.close_span(0, 0)
    whole = encode(DOCUMENT, words, Grammar(grid=2)).map(lambda field: field[:, :16])
    assert equal(builder.build(), whole.masked(whole.role == Role.CONTENT)), "a scaffold is a masked document"


@settings(max_examples=60)
@given(document=infer, echo=infer, grid=st.integers(1, 4))
def test_every_token_of_any_document_is_accounted_for(
    byte_pairs: Tokenizer, fitted: Fit, document: PlannedDocument, echo: bool, grid: int
) -> None:
    document = fitted(document, byte_pairs, grid)
    layout = encode(document, byte_pairs, Grammar(grid, echo))
    assert layout.position.tolist() == [list(range(layout.shape[1]))], "positions are the physical indices"
    for s, stage in enumerate(document.stages):
        here = layout.stage[0] == s
        assert byte_pairs.decode(layout.token[0, here & (layout.role[0] == Role.PLAN)].tolist()) == "".join(
            f"<topic>{item}</topic>" for item in stage.plan
        )
        for k, (item, span) in enumerate(zip(stage.plan, stage.spans, strict=True)):
            content = here & (layout.span[0] == k) & (layout.role[0] == Role.CONTENT)
            assert content.sum() == grid * item.length
            assert byte_pairs.decode(layout.token[0, content].tolist()) == span.text + "<pad>" * span.pads
    assert layout.planned.sum() == (layout.role == Role.PLAN).sum() + 2 * len(document.stages)


@settings(max_examples=30)
@given(documents=BATCH)
def test_a_batch_keeps_its_rows_and_fills_them_with_pads(
    byte_pairs: Tokenizer, fitted: Fit, documents: list[PlannedDocument]
) -> None:
    rows = [encode(fitted(document, byte_pairs, 2), byte_pairs, Grammar(2)) for document in documents]
    batch = Layout.collate(rows)
    longest = max(row.shape[1] for row in rows)
    assert batch.shape == (len(rows), longest)
    assert torch.equal(batch.position, torch.arange(longest).expand(len(rows), -1))
    for b, row in enumerate(rows):
        length = row.shape[1]
        assert equal(batch.map(lambda field, b=b, n=length: field[b : b + 1, :n]), row)
        beyond = batch.map(lambda field, b=b, n=length: field[b, n:])
        assert (beyond.token == Tag.PAD).all() and (beyond.span == NO_SPAN).all()
        assert not beyond.real.any() and not beyond.planned.any()


@settings(max_examples=30)
@given(documents=BATCH)
def test_the_copy_of_the_spans_leads_back_to_where_they_stand(
    byte_pairs: Tokenizer, fitted: Fit, documents: list[PlannedDocument]
) -> None:
    rows = [encode(fitted(document, byte_pairs, 2), byte_pairs, Grammar(2)) for document in documents]
    layout = Layout.collate(rows)
    copy, index = layout.span_copy()
    kept = copy.role != Role.PAD
    assert torch.equal(copy.stream == Stream.NOISED, kept), "every real token of the copy is noised, no filler is"
    for name, field in copy.items():
        if name != "stream":
            assert torch.equal(field[kept], getattr(layout, name).gather(1, index)[kept]), name
    # Put back where it came from, the copy covers the spans, each token once and in order, and nothing else.
    for b in range(len(rows)):
        home = index[b, kept[b]].tolist()
        assert home == (layout.span[b] != NO_SPAN).nonzero()[:, 0].tolist()
        assert kept[b].tolist() == sorted(kept[b].tolist(), reverse=True), "fillers come last"
    assert int(kept.sum(1).max()) == copy.shape[1], "the longest row needs no filler"
    assert (index[~kept] == 0).all()


def test_a_layout_without_spans_has_an_empty_copy(words: Tokenizer) -> None:
    copy, index = prompt_layout("a b", words, Grammar()).span_copy()
    assert copy.shape == index.shape == (1, 0)


def test_masking_changes_tokens_and_only_where_it_is_asked_to(drawn: Callable[[str], Layout]) -> None:
    layout = drawn("cz<xx>$")
    masked = layout.masked(layout.role == Role.CONTENT)
    assert masked.token.tolist() == [[9, 9, Tag.ASYNC, Tag.MASK, Tag.MASK, Tag.END_ASYNC, Tag.EOS]]
    assert layout.token.tolist() == [[9, 9, Tag.ASYNC, 9, 9, Tag.END_ASYNC, Tag.EOS]], "the original stays"
    assert torch.equal(masked.role, layout.role)


def test_in_place_only_the_spans_leave_the_clean_stream(drawn: Callable[[str], Layout]) -> None:
    clean, noised = Stream.CLEAN, Stream.IN_PLACE
    layout = drawn("cz<x>|z<>$_").in_place()
    assert layout.stream.tolist() == [
        [clean, clean, noised, noised, noised, clean, clean, noised, noised, clean, clean]
    ]


def test_layouts_are_joined_side_by_side(drawn: Callable[[str], Layout]) -> None:
    left, right = drawn("cz"), drawn("<x>")
    both = Layout.concatenate([left, right])
    assert equal(both.map(lambda field: field[:, :2]), left)
    assert equal(both.map(lambda field: field[:, 2:]), right)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(LayoutError, match="an empty batch"):
        Layout.collate([])
