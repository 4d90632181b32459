"""The rule of attention: as drawn by hand, as the reference states it, and the same in all four forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from pdref.text.layout import Layout, LayoutError, Stream
from pdref.text.mask import EMPTY, FULL, PARTIAL, Siblings, Sight, dense_mask, flex_mask_mod, tile_map

Draw = Callable[[str], Layout]

# Drawn by hand. A row is a query, a column a key, # means that it may look. Tokens: c prompt, z plan item,
# <x> a span with its two tags, | <sync/>, $ <eos>, _ batch padding; in two streams, the copies are marked '.

SPARSE = """
c   #..........   the prompt begins: there is nothing before it
z   ##.........   the first plan item reads the prompt
z   ###........   the second reads the prompt and the first item
<   ######.....   a span's opening tag reads prompt and plan, and its own span forwards as well
x   ######.....   content reads what its tags read: a span is one bidirectional block
>   ######.....   and so does the closing tag
<   ###...####.   the sibling reads prompt and plan, then itself: nothing of the first span, its tags included
y   ###...####.   its first token likewise
y   ###...####.   its second token sees the first and is seen by it
>   ###...####.   its closing tag likewise
$   ###########   what ends the document reads all that was written
"""

DENSE = """
c   #..........   the prompt is causal, as before
z   ##.........   so is the first plan item
z   ###........   and the second
<   ##########.   spans of one stage are one bidirectional block
x   ##########.   the first span reads the second, which stands after it
>   ##########.   up to its closing tag, but not what follows the stage
<   ##########.   the second span reads the first
y   ##########.   all of it
y   ##########.   tags and content
>   ##########.   and no more than that
$   ###########   the end reads everything
"""

TWO_STAGES = """
c   #...........   the prompt
z   ##..........   the plan of the first stage
<   #####.......   its span reads prompt, plan and itself
x   #####.......   not the sync that follows it
>   #####.......   which is not written yet
|   ######......   from <sync/> on the finished span is visible, in full
z   #######.....   the second plan reads the first stage
<   ###########.   the second span reads the first: it lies in an earlier stage and is no sibling
x   ###########.   though both are span 0 of their stages
x   ###########.   the stage, not the number, makes siblings
>   ###########.   and its closing tag sees the same
$   ############   the end
"""

TWO_STREAMS = """
c   #......... ......   the clean stream is causal: the prompt
z   ##........ ......   the plan never reads a noised token
z   ###....... ......   or it would be trained on what it has at no time at inference
<   ####...... ......   clean spans are causal too: this is the autoregressive model
x   #####..... ......   within the same trunk
>   ######.... ......   and what a commit writes for later stages
<   #######... ......   so a clean span reads the clean sibling before it
y   ########.. ......   which is harmless: content is predicted on the noised copy
>   #########. ......   and the keys of finished spans are those of a causal pass
$   ########## ......   the end reads the clean spans, never the noised ones
<'  ###....... ###...   a noised span reads the clean prompt and plan, and itself
x'  ###....... ###...   but not its own clean copy, which holds the answer
>'  ###....... ###...   closing tag likewise
<'  ###....... ...###   its sibling sees neither copy of the first span
y'  ###....... ...###   clean or noised
>'  ###....... ...###   closing tag likewise
"""

TWO_STREAMS_TWO_STAGES = """
c   #......... ......   the prompt
z   ##........ ......   the plan of the first stage
<   ###....... ......   the clean stream is causal
x   ####...... ......   through the span
>   #####..... ......   to its closing tag
|   ######.... ......   the sync
z   #######... ......   the second plan
<   ########.. ......   the second span
y   #########. ......   its content
>   ########## ......   its closing tag
<'  ##........ ###...   the noised first span reads prompt and plan; the sync lies in its future
x'  ##........ ###...   its content
>'  ##........ ###...   its closing tag
<'  #######... ...###   the noised second span reads the first stage CLEAN, as it will be at inference
y'  #######... ...###   and not its noised copy
>'  #######... ...###   its closing tag
"""

IN_PLACE = """
c   #...........   the released trainer's single stream: the prompt
z   ##..........   plan
z   ###.........   and plan again
<   #####.......   the first span, without content: two tags that see each other
>   #####.......   and the plan
<   ###..##.....   its sibling sees nothing of it
>   ###..##.....   closing tag likewise
|   ########....   the sync reads both spans, noised as they are
z   #########...   and so does the second plan
<   ############   a later span reads the earlier ones as they stand
w   ############   which is deviation (d) of the released trainer
>   ############   its closing tag
"""

PADDED = """
c   #.......   the prompt
z   ##......   plan
<   #####...   the span sees no padding
x   #####...   although padding stands nearby
>   #####...   in the same row
$   ######..   the end
_   ######..   padding reads the past, so that no row of a softmax is empty
_   ######..   but nobody reads padding, not even padding itself
"""


@dataclass(frozen=True)
class Picture:
    """A hand-drawn matrix, and the layout that it is about."""

    drawing: str
    tokens: str
    siblings: Siblings = "sparse"
    stream: str = "in place"  # "in place": spans are bidirectional where they stand; "two": clean, then noised copies

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Label, cells and sentence of each row."""
        for line in self.drawing.strip().splitlines():
            label, *cells, sentence = [part.strip() for part in line.split("  ") if part.strip()]
            yield label, "".join(cells).replace(" ", ""), sentence

    def layout(self, drawn: Draw) -> Layout:
        clean = drawn(self.tokens)
        return Layout.concatenate([clean, clean.span_copy()[0]]) if self.stream == "two" else clean.in_place()


PICTURES = {
    "two spans, sparse": Picture(SPARSE, "czz<x><yy>$"),
    "two spans, dense": Picture(DENSE, "czz<x><yy>$", "dense"),
    "two stages, sparse": Picture(TWO_STAGES, "cz<x>|z<xx>$"),
    "two stages, dense": Picture(TWO_STAGES, "cz<x>|z<xx>$", "dense"),
    "two streams": Picture(TWO_STREAMS, "czz<x><y>$", stream="two"),
    "two streams, two stages": Picture(TWO_STREAMS_TWO_STAGES, "cz<x>|z<y>", stream="two"),
    "in place": Picture(IN_PLACE, "czz<><>|z<w>"),
    "padding": Picture(PADDED, "cz<x>$__"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_mask_is_the_one_drawn_by_hand(drawn: Draw, name: str) -> None:
    picture = PICTURES[name]
    layout = picture.layout(drawn)
    (mask,) = dense_mask(layout, layout, picture.siblings)
    rows = list(picture.rows())
    assert len(rows) == len(mask)
    for (label, cells, sentence), row in zip(rows, mask.tolist(), strict=True):
        assert "".join("#" if seen else "." for seen in row) == cells, f"{label}: {sentence}"


def test_dense_siblings_change_nothing_where_there_are_none(drawn: Draw) -> None:
    layout = drawn("cz<x>|z<xx>$").in_place()
    assert torch.equal(dense_mask(layout, layout, "sparse"), dense_mask(layout, layout, "dense"))


def test_dense_copies_form_one_block_and_still_read_no_clean_span(drawn: Draw) -> None:
    clean = drawn("czz<x><y>")
    copy, _ = clean.span_copy()
    to_clean, to_copy = dense_mask(copy, clean, "dense")[0], dense_mask(copy, copy, "dense")[0]
    assert to_copy.all()
    assert to_clean[:, :3].all() and not to_clean[:, 3:].any()


# The rule once more, as the reference page states it, over a list of tokens that knows nothing of layouts.


@dataclass(frozen=True)
class Piece:
    """A token: where it stands, and its span and stage; prompt, plan, <sync/> and <eos> are in no span."""

    place: int
    stage: int
    span: int | None
    copy: bool = False  # of the noised second stream
    kind: str = ""


def pieces_of(stages: list[list[int]]) -> list[Piece]:
    """The tokens of a document whose spans have these many content tokens."""
    drawn: list[tuple[int, int | None, str]] = [(0, None, "c")]
    for s, spans in enumerate(stages):
        drawn += [(s, None, "|")] * (s > 0) + [(s, None, "z")] * len(spans)
        for k, size in enumerate(spans):
            drawn += [(s, k, mark) for mark in "<" + "x" * size + ">"]
    drawn.append((len(stages) - 1, None, "$"))
    return [Piece(i, s, k, kind=kind) for i, (s, k, kind) in enumerate(drawn)]


def sees_in_place(query: Piece, key: Piece, siblings: Siblings) -> bool:
    """Rules 1 to 5 of the released attention, in one stream."""
    if query.span is None:  # 1 and 5: causal, which shows finished spans from <sync/> on
        return key.place <= query.place
    if key.stage == query.stage and key.span is not None:  # 2 and 4
        return key.span == query.span or siblings == "dense"
    return key.stage < query.stage or key.place < query.place  # 3: earlier stages, then prompt and own plan


def sees_in_two_streams(query: Piece, key: Piece, siblings: Siblings) -> bool:
    """The same for a clean stream and a noised copy of the spans."""
    if not query.copy:  # the clean stream is causal and never reads the copy
        return not key.copy and key.place <= query.place
    if key.copy:  # the copy reads itself, within a span or within a stage
        return key.stage == query.stage and (key.span == query.span or siblings == "dense")
    # What it reads of the clean stream is what the single stream reads outside its own stage's spans.
    finished = key.span is None or key.stage < query.stage
    return finished and key.place < query.place and sees_in_place(replace(query, copy=False), key, siblings)


SHAPES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=3)
EITHER = st.sampled_from(["sparse", "dense"])


def by_loops(pieces: list[Piece], sees: Callable[[Piece, Piece, Siblings], bool], siblings: Siblings) -> Tensor:
    return torch.tensor([[[sees(q, k, siblings) for k in pieces] for q in pieces]])


@given(stages=SHAPES, siblings=EITHER)
def test_in_one_stream_the_mask_is_the_stated_rule(drawn: Draw, stages: list[list[int]], siblings: Siblings) -> None:
    pieces = pieces_of(stages)
    layout = drawn("".join(piece.kind for piece in pieces)).in_place()
    assert torch.equal(dense_mask(layout, layout, siblings), by_loops(pieces, sees_in_place, siblings))


@settings(max_examples=50)
@given(stages=SHAPES, siblings=EITHER)
def test_in_two_streams_the_mask_is_the_stated_rule(drawn: Draw, stages: list[list[int]], siblings: Siblings) -> None:
    pieces = pieces_of(stages)
    clean = drawn("".join(piece.kind for piece in pieces))
    both = Layout.concatenate([clean, clean.span_copy()[0]])
    pieces += [replace(piece, copy=True) for piece in pieces if piece.span is not None]
    assert torch.equal(dense_mask(both, both, siblings), by_loops(pieces, sees_in_two_streams, siblings))


@given(stages=SHAPES)
def test_what_a_span_may_read_may_read_nothing_more(drawn: Draw, stages: list[list[int]]) -> None:
    # Through a network's layers a token is reached by all that its keys see: the rule must be transitive.
    clean = drawn("".join(piece.kind for piece in pieces_of(stages)))
    both = Layout.concatenate([clean, clean.span_copy()[0]])
    for layout, siblings in ((both, "sparse"), (both, "dense"), (clean.in_place(), "sparse")):
        (mask,) = dense_mask(layout, layout, siblings).float()
        assert torch.equal((mask @ mask > 0), mask > 0)


# The four forms.


def batch(drawn: Draw) -> Layout:
    """Two documents of different lengths in two streams, with padding in both streams."""
    clean = Layout.collate([drawn("ccz<xx>|zz<x><xxx>$"), drawn("czzz<x><><xx>$")])
    return Layout.concatenate([clean, clean.span_copy()[0]])


@pytest.mark.parametrize("siblings", ["sparse", "dense"])
def test_all_forms_say_the_same(drawn: Draw, siblings: Siblings) -> None:
    layout = batch(drawn)
    B, T = layout.shape
    mask = dense_mask(layout, layout, siblings)
    assert not layout.real.all() and mask.shape == (B, T, T)
    assert torch.equal(Sight.of(layout, layout, siblings).dense, mask[:, None])
    flexible = create_mask(flex_mask_mod(layout, layout, siblings), B, 1, T, T, device="cpu")
    assert torch.equal(flexible[:, 0], mask)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_under_the_rule_is_sdpa_under_it(drawn: Draw) -> None:
    layout = batch(drawn)
    B, T = layout.shape
    q, k, v = torch.randn(3, B, 2, T, 8, generator=torch.Generator().manual_seed(0))
    blocks = create_block_mask(flex_mask_mod(layout, layout), B, None, T, T, device="cpu", BLOCK_SIZE=16)
    flexible = flex_attention(q, k, v, block_mask=blocks)
    torch.testing.assert_close(flexible, scaled_dot_product_attention(q, k, v, Sight.of(layout, layout).dense))


@settings(max_examples=50)
@given(stages=SHAPES, block=st.integers(1, 9), siblings=EITHER)
def test_every_tile_is_what_its_tokens_make_it(
    drawn: Draw, stages: list[list[int]], block: int, siblings: Siblings
) -> None:
    clean = drawn("".join(piece.kind for piece in pieces_of(stages)))
    query = clean.span_copy()[0]
    key = Layout.concatenate([clean, query])
    mask = dense_mask(query, key, siblings)
    tiles = tile_map(query, key, block, siblings)
    assert tiles.shape == (1, -(-query.shape[1] // block), -(-key.shape[1] // block))
    for i, row in enumerate(tiles[0].tolist()):
        for j, tile in enumerate(row):
            seen = mask[0, i * block : (i + 1) * block, j * block : (j + 1) * block]
            assert tile == (FULL if seen.all() else PARTIAL if seen.any() else EMPTY)


@pytest.mark.parametrize("name", PICTURES)
def test_three_integers_a_token_draw_the_same_pictures(drawn: Draw, name: str) -> None:
    layout, siblings = PICTURES[name].layout(drawn), PICTURES[name].siblings
    assert torch.equal(Sight.of(layout, layout, siblings).dense[:, 0], dense_mask(layout, layout, siblings))


@given(documents=st.lists(SHAPES, min_size=1, max_size=3), siblings=EITHER, data=st.data())
def test_three_integers_a_token_are_the_rule(
    drawn: Draw, documents: list[list[list[int]]], siblings: Siblings, data: st.DataObject
) -> None:
    clean = Layout.collate([drawn("".join(piece.kind for piece in pieces_of(stages))) for stages in documents])
    streams = [clean, clean.span_copy()[0], clean.in_place(), Layout.concatenate([clean, clean.span_copy()[0]])]
    query, key = (data.draw(st.sampled_from(streams), side) for side in ("query", "key"))
    sight = Sight.of(query, key, siblings)
    assert torch.equal(sight.dense[:, 0], dense_mask(query, key, siblings))
    assert sight.shape == sight.dense[:, 0].shape
    assert sight.query.dtype == sight.key.dtype == torch.int32 and sight.query.min() >= -1 and sight.key.min() >= 0


def test_the_past_is_the_triangle_wherever_the_tokens_stand() -> None:
    query, key = torch.tensor([[3, 0, 7]]), torch.tensor([[2, 3, 4, 7]])
    assert torch.equal(Sight.past(query, key).dense[:, 0], key[:, None] <= query[:, :, None])


def test_a_sight_refuses_what_the_rule_refuses(drawn: Draw) -> None:
    layout = drawn("cz<x>$")
    with pytest.raises(ValueError, match="siblings is 'sparse' or 'dense', not 'loose'"):
        Sight.of(layout, layout, "loose")  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match="queries are on cpu, keys on meta"):
        Sight.of(layout, layout.map(lambda field: field.to("meta")))


def test_queries_and_keys_may_be_parts_of_a_layout(drawn: Draw) -> None:
    layout = batch(drawn)
    some = layout.map(lambda field: field[:, 3:9])
    assert torch.equal(dense_mask(some, layout), dense_mask(layout, layout)[:, 3:9])
    assert torch.equal(dense_mask(layout, some), dense_mask(layout, layout)[:, :, 3:9])


def test_the_copy_is_the_only_noised_stream(drawn: Draw) -> None:
    layout = batch(drawn)
    seen_by_others = dense_mask(layout, layout) & (layout.stream != Stream.NOISED)[:, :, None]
    assert not (seen_by_others & (layout.stream == Stream.NOISED)[:, None]).any(), "nobody reads a noised token"
