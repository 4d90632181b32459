"""Figures of outlines: what is drawn is what the mask and the history say."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from laws import outlines
from pdref.lab.essay_plots import PLAN, filling_masks, growth
from pdref.lab.player import frames
from pdref.methods import hierarchy
from pdref.text.filling import Filling, filling_mask
from pdref.text.layout import encode


def test_cells_are_coloured_where_the_mask_lets_read() -> None:
    layout = encode(outlines.documents()[0], outlines.TOKENIZER, outlines.GRAMMAR)
    drafted = outlines.with_drafts(layout)
    figure = filling_masks({"parallel": layout, "drafts": drafted})
    for axes, (filling, shown) in zip(figure.axes, {"parallel": layout, "drafts": drafted}.items(), strict=True):
        picture = np.asarray(axes.images[0].get_array())
        mask = filling_mask(shown, shown, filling)[0, 0].numpy()
        assert ((picture == 1.0).all(-1) == ~mask).all()
        assert axes.get_title() == f'"{filling}"'
    assert [text.get_text() for text in figure.axes[1].texts] == ["drafts"]


def test_every_planned_and_written_token_is_a_dot_at_its_forward() -> None:
    prompt = outlines.documents()[1].prompt
    one, two = (hierarchy.sample(outlines.oracle(), [prompt], filling)[0] for filling in ("parallel", "drafts"))
    figure = growth({"parallel": one, "drafts": two}, outlines.TOKENIZER)
    plain, drafts = figure.axes
    assert len(plain.collections) == 1, "nothing is revised"
    assert len(drafts.collections) == 2 and drafts.collections[0].get_alpha() == 0.3
    x, y = plain.collections[0].get_offsets().T
    outside = 2  # <sync/> and <eos> stand in no plan and no span
    assert sorted(y) == sorted(set(y)) and len(y) == len(one.tokens) - one.prompt_length - outside
    assert x.min() == 1 and x.max() == one.critical_path - 1, "the last forward reads the end"
    colours = plain.collections[0].get_facecolors()[:, :3]
    planned = (colours == to_rgb(PLAN)).all(1)
    outline = [e for e in one.history if e.phase == "plan" and len(e.tokens) == 1]
    assert sorted(y[planned] + one.prompt_length) == sorted(e.positions[0] for e in outline if e.tokens[0] > 8), (
        "level 0 is written; later plans are read off, and tags are given"
    )


@pytest.mark.parametrize("filling", outlines.FILLINGS)
def test_the_players_clock_ends_at_the_critical_path(filling: Filling) -> None:
    for generation in outlines.an_oracle_is_recovered(filling):
        assert frames(generation, outlines.TOKENIZER)[-1].forwards == generation.critical_path
