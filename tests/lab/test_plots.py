"""Figures hold what they are given: the right cells, colours, labels and lines."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation

from pdref.lab import plots
from pdref.lab.player import ROLE_COLOURS, SPAN_COLOURS
from pdref.lab.plots import (
    attention_mask,
    describe,
    latency_quality,
    loss_curves,
    pareto,
    reveal_order,
    row_groups,
)
from pdref.methods.generation import Event, Generation
from pdref.text.document import parse
from pdref.text.layout import Grammar, Layout, Role, encode
from pdref.text.mask import dense_mask
from pdref.text.tags import Tag
from pdref.text.tokenizer import Tokenizer

GRAMMAR = Grammar(grid=2, echo=False)
TOKENIZER = Tokenizer.words(["ada", "pet", "home", "a", "cat", "rooms", "had", "ask", "1"])
TEXT = (
    "ada<topic>pet 1</topic><topic>home 1</topic><async>a cat</async><async>had rooms</async>"
    "<sync/><topic>pet 1</topic><async>ask ada</async><eos>"
)
CLEAN = encode(parse(TEXT), TOKENIZER, GRAMMAR)
BOTH = Layout.concatenate([CLEAN, CLEAN.span_copy()[0]])


# Who may attend to whom.


@pytest.mark.parametrize("siblings", ["sparse", "dense"])
@pytest.mark.parametrize("layout", [CLEAN, BOTH, CLEAN.in_place()], ids=["clean", "two streams", "in place"])
def test_a_cell_has_the_colour_of_its_keys_role_or_is_white(layout: Layout, siblings: str):
    axes = attention_mask(layout, tokenizer=TOKENIZER, siblings=siblings).axes[0]
    picture = np.asarray(axes.images[0].get_array())  # [Tq, Tk, 3]
    mask = dense_mask(layout, layout, siblings)[0]
    assert picture.shape == (*mask.shape, 3)
    for q in range(mask.shape[0]):
        for k in range(mask.shape[1]):
            role = Role(int(layout.role[0, k]))
            assert tuple(picture[q, k]) == (to_rgb(ROLE_COLOURS[role]) if mask[q, k] else (1, 1, 1))


def test_ticks_are_tokens_and_queries_may_differ_from_keys():
    copy = CLEAN.span_copy()[0]
    axes = attention_mask(copy, BOTH, TOKENIZER).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [TOKENIZER.decode([t]) for t in copy.token[0].tolist()]
    assert [t.get_text() for t in axes.get_xticklabels()] == [TOKENIZER.decode([t]) for t in BOTH.token[0].tolist()]
    numbers = attention_mask(copy, BOTH).axes[0].get_yticklabels()
    assert [t.get_text() for t in numbers] == [str(t) for t in copy.token[0].tolist()]


def test_groups_cover_all_rows_in_order():
    groups = row_groups(BOTH)
    assert [name for name, _ in groups] == [
        "prompt",
        "plan 1",
        "span 1.1",
        "span 1.2",
        "<sync/>",
        "plan 2",
        "span 2.1",
        "<eos>",
        "span 1.1, noised",
        "span 1.2, noised",
        "span 2.1, noised",
    ]
    assert groups[0][1].start == 0 and groups[-1][1].stop == BOTH.shape[1]
    assert all(before.stop == after.start for (_, before), (_, after) in pairwise(groups))


def test_sentences_say_what_the_mask_holds():
    assert describe(BOTH, BOTH) == [
        "prompt: sees itself causally",
        "plan 1: sees prompt; itself causally",
        "span 1.1: sees prompt, plan 1; itself causally",
        "span 1.2: sees prompt to span 1.1; itself causally",
        "<sync/>: sees prompt to span 1.2",
        "plan 2: sees prompt to <sync/>; itself causally",
        "span 2.1: sees prompt to plan 2; itself causally",
        "<eos>: sees prompt to span 2.1",
        "span 1.1, noised: sees prompt, plan 1; itself both ways",
        "span 1.2, noised: sees prompt, plan 1; itself both ways",
        "span 2.1, noised: sees prompt to plan 2; itself both ways",
    ]
    single = CLEAN.in_place()
    assert describe(single, single, "dense")[2:4] == [
        "span 1.1: sees prompt, plan 1; span 1.2; itself both ways",
        "span 1.2: sees prompt to span 1.1; itself both ways",
    ]


def sentences(figure: plots.Chart) -> list[str]:
    return [text.get_text().replace("\n", " ") for text in figure.axes[0].texts]


def test_captions_one_a_group_one_a_row_or_none():
    copies = ["clean text", "noised copy"]
    assert sentences(attention_mask(BOTH)) == describe(BOTH, BOTH) + copies
    groups = [f"group {i}" for i in range(len(row_groups(BOTH)))]
    rows = [f"row {i}" for i in range(BOTH.shape[1])]
    for captions in (groups, rows, []):
        assert sentences(attention_mask(BOTH, captions=captions)) == captions + copies
    with pytest.raises(ValueError, match=rf"2 captions for {BOTH.shape[1]} rows in {len(groups)} groups"):
        attention_mask(BOTH, captions=["a", "b"])


def test_captions_do_not_overlap_and_stay_in_order():
    figure = attention_mask(BOTH, captions=[f"row {i} says something" for i in range(BOTH.shape[1])])
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text().startswith("row")]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes))


def test_only_streams_are_parted_by_dark_lines():
    def dark(layout: Layout) -> int:
        rules = attention_mask(layout, captions=()).axes[0].collections
        return sum(len(r.get_segments()) for r in rules if to_rgb(r.get_color()[0]) == to_rgb(plots.INK))

    assert (dark(CLEAN), dark(CLEAN.in_place()), dark(BOTH)) == (0, 0, 2)


# Training.

LOG = {
    "step": [0, 1, 2, 3, 4],
    "plan": [4.0, 2.0, 1.0, 0.5, 0.5],
    "content": [3.0] * 5,
    "diffusion": [5.0, math.nan, 5.0, math.nan, 5.0],
    "whole": [math.nan] * 5,
}


def drawn(figure: plots.Chart) -> dict[str, np.ndarray]:
    return {line.get_gid(): line.get_xydata() for line in figure.axes[0].lines if line.get_gid()}


def test_losses_are_smoothed_and_gaps_are_left_out():
    curves = drawn(loss_curves(LOG))
    assert set(curves) == {"plan", "content", "diffusion"}, "what the log does not hold is not drawn"
    assert np.allclose(curves["content"], [[s, 3.0] for s in LOG["step"]])
    assert np.allclose(curves["diffusion"], [[0, 5.0], [2, 5.0], [4, 5.0]])
    second = (0.95 * 4 + 2) / 1.95
    assert np.allclose(curves["plan"][:2], [[0, 4.0], [1, second]]), "a running mean that starts fair"
    assert np.allclose(drawn(loss_curves(LOG, memory=0))["plan"][:, 1], LOG["plan"])


def test_a_running_mean_forgets_by_step():
    log = {"step": [0, 10], "plan": [4.0, 2.0]}
    kept = 0.9**10
    assert np.allclose(drawn(loss_curves(log, memory=0.9))["plan"][1, 1], (kept * 4 + 2) / (kept + 1))


def test_floors_are_dashed_and_in_the_legend():
    figure = loss_curves(LOG, {"plan": 0.25, "diffusion": 2.0})
    curves = drawn(figure)
    assert np.allclose(curves["floor plan"][:, 1], 0.25) and np.allclose(curves["floor diffusion"][:, 1], 2.0)
    assert "floor content" not in curves
    floors = [line for line in figure.axes[0].lines if str(line.get_gid()).startswith("floor")]
    assert all(line.is_dashed() for line in floors)
    told = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert told[1] == "content, token by token: 3.000"
    assert told[2] == "content, by diffusion (a bound): 5.000, floor 2.000"


def test_a_log_without_losses_is_refused():
    with pytest.raises(ValueError, match="none of the columns plan"):
        loss_curves({"step": [0, 1], "learning_rate": [1.0, 1.0]})


# Samplers.

ROWS = [
    {"method": "autoregressive", "label": "autoregressive", "step_ratio": 1.0, "spans_right": 0.98,
     "critical_path": 140.0, "seconds": {1: 0.2, 16: 0.02}},
    {"method": "planned", "label": "planned r=1", "step_ratio": 1.0, "spans_right": 0.97,
     "critical_path": 60.0, "seconds": {1: 0.1, 16: 0.02}},
    {"method": "planned", "label": "planned r=0.1", "step_ratio": 0.1, "spans_right": 0.8,
     "critical_path": 33.0, "seconds": {1: 0.05, 16: 0.01}},
    {"method": "planned", "label": "planned r=0.34", "step_ratio": 0.34, "spans_right": 0.96,
     "critical_path": 40.0, "seconds": {1: 0.06, 16: 0.012}},
    {"method": "outline", "label": "an outline", "spans_right": 0.5,
     "critical_path": 200.0, "seconds": {1: 1.0}},
]  # fmt: skip


def test_every_row_is_a_labelled_marker_and_step_ratios_are_joined_in_order():
    axes = latency_quality(ROWS).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines if line.get_marker() != "None"}
    assert lines == {
        "autoregressive": [[140, 0.98]],
        "planned": [[33, 0.8], [40, 0.96], [60, 0.97]],
        "outline": [[200, 0.5]],
    }
    labels = {text.get_text(): text.xy for text in axes.texts if isinstance(text, Annotation)}
    assert labels == {
        "autoregressive": (140, 0.98),
        "r = 0.1": (33, 0.8),
        "r = 0.34": (40, 0.96),
        "r = 1": (60, 0.97),
        "an outline": (200, 0.5),
    }
    assert len({line.get_color() for line in axes.lines}) == len(axes.lines)


@pytest.mark.parametrize("key", [int, str], ids=["from a race", "from JSON"])
def test_seconds_are_read_at_a_batch(key: type):
    rows = [{**row, "seconds": {key(b): s for b, s in row["seconds"].items()}} for row in ROWS[:4]]
    axes = latency_quality(rows, latency="seconds", batch=16).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0.02, 0.98]]
    assert axes.get_xlabel() == "seconds per document, batch of 16"
    with pytest.raises(KeyError):
        latency_quality(ROWS, latency="seconds", batch=16)


@given(st.lists(st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float)), min_size=1, max_size=12))
def test_the_frontier_is_what_nothing_dominates(points: list[tuple[float, float]]):
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] <= b[0] and a[1] >= b[1]

    best = {b for b in points if not any(beats(a, b) for a in points)}
    front = [points[i] for i in pareto(points)]
    assert front == sorted(best)


def test_the_dominated_area_lies_under_the_frontier():
    axes = latency_quality(ROWS).axes[0]
    area = axes.collections[0].get_paths()[0]
    inside = {
        row["label"]: area.contains_point((row["critical_path"] + 0.5, row["spans_right"] - 0.001)) for row in ROWS
    }
    assert all(inside.values())
    assert not area.contains_point((39, 0.9)) and area.contains_point((41, 0.9))


def test_a_comparison_needs_rows():
    with pytest.raises(ValueError, match="no rows"):
        latency_quality([])


# The order of unmasking.


def planned() -> Generation:
    """Two spans of two tokens, then one; each span's second token comes first."""
    tokens = CLEAN.token[0].tolist()
    span = [i for i, role in enumerate(CLEAN.role[0].tolist()) if role == Role.CONTENT]
    history = [Event("prompt", (0, 1), tuple(tokens[:2]))]
    for stage, contents in enumerate((span[:4], span[4:])):
        where = [i for i in range(2, len(tokens)) if CLEAN.stage[0, i] == stage]
        plan = [i for i in where if CLEAN.role[0, i] == Role.PLAN]
        history += [Event("plan", (i,), (tokens[i],)) for i in plan]
        given_ = [i for i in where if CLEAN.span[0, i] >= 0]
        masked = tuple(int(Tag.MASK) if i in contents else tokens[i] for i in given_)
        history.append(Event("scaffold", tuple(given_), masked))
        for step in (contents[1::2], contents[::2]):
            history.append(Event("denoise", tuple(step), tuple(tokens[i] for i in step)))
        end = given_[-1] + 1
        history.append(Event("commit", (end,), (tokens[end],)))
    return Generation(tokens, 2, critical_path=8 + 3 + 4 + 3 + 4, history=history)


def test_tokens_have_the_colour_of_their_step():
    axes = reveal_order(planned(), TOKENIZER).axes[0]
    viridis = matplotlib.colormaps["viridis"]
    cells = {(p.get_x(), p.get_y()): p.get_facecolor() for p in axes.patches}
    assert cells == {(x, y): viridis(1.0 if x == 0 else 0.0) for x in range(2) for y in range(3)}
    assert [text.get_text() for text in axes.texts] == ["a", "cat", "had", "rooms", "ask", "ada"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["stage 1: pet", "stage 1: home", "stage 2: pet"]
    assert [t.get_color() for t in axes.get_yticklabels()] == [SPAN_COLOURS[i] for i in (0, 1, 0)]


def test_without_spans_there_is_no_order():
    only_prompt = Generation([Tag.BOS], 1, history=[Event("prompt", (0,), (Tag.BOS,))])
    with pytest.raises(ValueError, match="no spans"):
        reveal_order(only_prompt, TOKENIZER)


# Figures in general.


def test_nothing_is_left_in_pyplot_or_in_the_settings(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    for figure in (
        attention_mask(CLEAN),
        loss_curves(LOG),
        latency_quality(ROWS),
        reveal_order(planned(), TOKENIZER),
    ):
        plots.save(figure, tmp_path / "figure.svg")
        assert figure._repr_png_().startswith(b"\x89PNG"), "a notebook shows it"
    assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == before


def test_save_writes_what_the_suffix_says(tmp_path: Path):
    both = plots.save(loss_curves(LOG), tmp_path / "new" / "loss")
    assert [path.name for path in both] == ["loss.png", "loss.svg"]
    (png,) = plots.save(loss_curves(LOG), tmp_path / "only.png")
    assert png.read_bytes().startswith(b"\x89PNG") and not (tmp_path / "only.svg").exists()


def test_the_same_figure_gives_the_same_file(tmp_path: Path):
    files = [plots.save(loss_curves(LOG), tmp_path / name)[0] for name in ("a.svg", "b.svg")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_colours_can_be_told_apart():
    """Okabe and Ito's, and none twice within roles or within spans."""
    for colours in ([*ROLE_COLOURS.values()], [*SPAN_COLOURS]):
        assert len(set(colours)) == len(colours)
    assert set(ROLE_COLOURS) == set(Role)
