"""Trees of outlines: levels read the whole level above, grow the same however they are run, and end at their bounds."""

from __future__ import annotations

import pytest

from laws import outlines, worlds
from laws.outlines import FILLINGS, GRAMMAR, TOKENIZER
from laws.seers import Exact
from pdref.methods import hierarchy, outline
from pdref.methods.decoding import Draw, Speaker
from pdref.methods.planning import Bounds
from pdref.text.document import Item, PlannedDocument
from pdref.text.filling import Filling
from pdref.text.layout import encode


@pytest.mark.parametrize("filling", FILLINGS)
def test_trees_grow_the_same_cached_uncached_and_one_by_one(filling: Filling) -> None:
    outlines.trees_grow_the_same_uncached(filling)


def test_a_level_reads_the_whole_level_above() -> None:
    outlines.a_level_reads_the_whole_level_above()


@pytest.mark.parametrize(("items", "stages"), [(3, 4), (8, 3), (1, 2), (5, 1)])
def test_a_runaway_level_is_cut(items: int, stages: int) -> None:
    outlines.a_runaway_level_is_cut(items, stages)


def test_an_outline_is_the_hierarchy_of_depth_one() -> None:
    prompt = outlines.documents()[0].prompt
    [one], [other] = (method.sample(outlines.oracle(), [prompt]) for method in (outline, hierarchy))
    assert outlines.result(one) == outlines.result(other)


def test_levels_go_on_as_long_as_the_model_says() -> None:
    depths = [len(generation.document.stages) for generation in outlines.an_oracle_is_recovered()]
    assert depths == [1, 2, 3, 3]


def test_the_plan_of_a_level_costs_one_read_however_long() -> None:
    """It is read off the spans above: no token of it is drawn."""
    target = outlines.documents()[3]
    [generation] = hierarchy.sample(outlines.oracle(), [target.prompt])
    later = [event for event in generation.history if event.phase == "plan" and len(event.tokens) > 1]
    assert len(later) == len(target.stages) - 1


BAD_TREES = {
    "a level that lists nothing": ("ant bee", "BadListing: 'ant bee'"),
    "an item without a length": ("ant ;", "MissingLength: topic 'ant'"),
    "an item without a topic": ("4 ;", "EmptyTopic"),
    "a length of zero": ("ant 0 ;", "LengthOutOfRange: topic 'ant' plans 0 cells"),
    "words after the last item": ("ant 2 ; bee", "BadListing: 'bee'"),
}


@pytest.mark.parametrize("name", BAD_TREES)
def test_a_bad_tree_is_a_clear_problem(name: str) -> None:
    """What the spans say is kept; the rest of the batch goes on."""
    text, problem = BAD_TREES[name]
    good = outlines.documents()[1]
    first = outlines._document("ada", [("sun", text)])
    bad = PlannedDocument("ada", (*first.stages, *outlines._document("ada", [("bee", "cat")]).stages))
    layouts = [encode(document, TOKENIZER, GRAMMAR) for document in (bad, good)]
    speaker = Speaker(Exact(layouts, len(TOKENIZER), 120), TOKENIZER, GRAMMAR)
    broken, whole = hierarchy.sample(speaker, ["ada", good.prompt])
    assert broken.document is None and broken.problem is not None and broken.problem.startswith(problem)
    assert TOKENIZER.decode(broken.tokens).count(text) == 1
    assert whole.document == good


def test_a_level_without_room_is_a_problem_or_a_cut() -> None:
    target = outlines._document(
        "ada", [("sun", "ant 9 ; bee 9 ; cat 9 ;")], [(t, " ".join(["dog"] * 9)) for t in ("ant", "bee", "cat")]
    )
    layout = encode(target, TOKENIZER, GRAMMAR)

    def grown(context: int) -> tuple[str | None, tuple[str, ...], int]:
        speaker = Speaker(Exact([layout], len(TOKENIZER), context), TOKENIZER, GRAMMAR)
        [generation] = hierarchy.sample(speaker, ["ada"])
        assert len(generation.tokens) <= context
        return generation.problem, generation.cuts, generation.tokens.count(TOKENIZER.encode("dog")[0])

    size = layout.shape[1]
    assert grown(size) == (None, (), 27)
    # The oracle knows no such document, so it is at a loss for words, but the level is two items.
    assert grown(size - 1)[1] == (f"a plan does not fit the context of {size - 1}: cut after 2 items",)
    problem, _, written = grown(size - 30)
    assert problem is not None and problem.startswith("LengthOutOfRange") and not written
    problem, _, written = grown(30)
    assert problem is not None and problem.startswith("TooLong: plan 0 has 12 tokens") and not written


def test_a_tree_by_hand_is_grown() -> None:
    """Level 0 given, as `plans` of an outline; with a seed each, alone as in a batch."""
    speaker = outlines.branching()
    plans = [[Item("sun", 6), Item("moon", 3)], None, [Item("ant", 3)]]
    prompts = ["ada", "bo", "cy"]
    bounds = Bounds(6, 60, 3)
    together = hierarchy.sample(speaker, prompts, "drafts", Draw(1.0, seeds=[4, 5, 6]), plans, bounds)
    assert together[0].tokens[2:].count(TOKENIZER.encode("sun")[0]) > 0
    for b, prompt in enumerate(prompts):
        [alone] = hierarchy.sample(speaker, [prompt], "drafts", Draw(1.0, seeds=[4 + b]), plans[b : b + 1], bounds)
        assert outlines.result(alone) == outlines.result(together[b])
        assert worlds.replayed(alone) == alone.tokens
