"""Who reads whom: against a hand-drawn matrix whose rows carry a sentence each, and against the rule in words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from laws import outlines
from pdref.text.filling import Filling, filling_mask, may_read
from pdref.text.layout import Layout

# Columns: c prompt, z outline, <x> and <y> two sections of three tokens, then drafts of both, Xs and Ys.
ROWS: dict[Filling, list[tuple[str, str]]] = {
    "parallel": [
        # cz<x><y>XXXYYY
        ("x.............", "a prompt token is causal"),
        ("xx............", "so is the outline"),
        ("xxx...........", "a section reads prompt and outline"),
        ("xxxx..........", "and its own past"),
        ("xxxxx.........", "up to its end"),
        ("xx...x........", "its sibling reads nothing of it"),
        ("xx...xx.......", "however far"),
        ("xx...xxx......", "it goes"),
        ("xx......x.....", "a draft reads prompt and outline, no finished section"),
        ("xx......xx....", "its own past"),
        ("xx......xxx...", "up to its end"),
        ("xx.........x..", "and nothing of its siblings"),
        ("xx.........xx.", "neither drafts"),
        ("xx.........xxx", "nor finished ones"),
    ],
    "sequential": [
        ("x.............", "a prompt token is causal"),
        ("xx............", "so is the outline"),
        ("xxx...........", "the first section reads what the parallel one does"),
        ("xxxx..........", "and its own past"),
        ("xxxxx.........", "up to its end"),
        ("xxxxxx........", "the second reads the first"),
        ("xxxxxxx.......", "and its own past"),
        ("xxxxxxxx......", "but no drafts"),
        ("xx......x.....", "drafts are written as ever"),
        ("xx......xx....", "each alone"),
        ("xx......xxx...", "up to its end"),
        ("xx.........x..", "the next one too"),
        ("xx.........xx.", "as in"),
        ("xx.........xxx", '"parallel"'),
    ],
    "drafts": [
        ("x.............", "a prompt token is causal and reads no draft"),
        ("xx............", "nor does the outline"),
        ("xxx.....xxxxxx", "a section reads all drafts from its first token on"),
        ("xxxx....xxxxxx", "beside its own past"),
        ("xxxxx...xxxxxx", "up to its end"),
        ("xx...x..xxxxxx", "its sibling reads the same drafts, and nothing of the section"),
        ("xx...xx.xxxxxx", "however far"),
        ("xx...xxxxxxxxx", "it goes"),
        ("xx......x.....", "drafts are written before the sections"),
        ("xx......xx....", "each alone"),
        ("xx......xxx...", "up to its end"),
        ("xx.........x..", "the next one too"),
        ("xx.........xx.", "as in"),
        ("xx.........xxx", '"parallel"'),
    ],
}


@pytest.fixture
def layout(drawn: Callable[[str], Layout]) -> Layout:
    """Prompt, outline, two sections, and drafts of both."""
    return outlines.with_drafts(drawn("cz<x><y>"))


@pytest.mark.parametrize("filling", ROWS)
def test_the_mask_is_the_one_drawn_by_hand(filling: Filling, layout: Layout) -> None:
    mask = filling_mask(layout, layout, filling)
    assert mask.shape == (1, 1, 14, 14)
    for found, (row, sentence) in zip(mask[0, 0], ROWS[filling], strict=True):
        assert "".join(".x"[int(reads)] for reads in found) == row, sentence


def test_the_rule_is_the_one_in_words() -> None:
    outlines.the_rule_is_one()


def test_nobody_reads_padding_and_what_ends_a_stage_reads_all_of_it(drawn: Callable[[str], Layout]) -> None:
    layout = drawn("cz<x><y>|z<x>$__")
    for filling in outlines.FILLINGS:
        mask = filling_mask(layout, layout, filling)[0, 0]
        assert not mask[:, -2:].any()
        for place in (8, 9, 10, 13):  # <sync/>, the next plan, the next stage's section, <eos>
            assert mask[place, :8].all(), "all sections of the stage before"


def test_an_unknown_filling_is_refused(layout: Layout) -> None:
    with pytest.raises(ValueError, match="one of parallel, sequential, drafts, not 'random'"):
        may_read(layout, layout, "random")  # type: ignore[arg-type]
    assert torch.equal(
        filling_mask(layout, layout, "drafts")[0],
        may_read(layout.map(lambda f: f[:, :, None]), layout.map(lambda f: f[:, None, :]), "drafts"),
    )
