"""Writers see what their arm says, plans decide what the planned one writes, and plans are given as named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from laws import writers
from pdref.data.essays import Essays
from pdref.lab.essay_writers import ARMS, GAP, Writer, batch, plans, train
from pdref.lab.recipe import TrainRecipe
from pdref.text.layout import Role

SOURCE = Essays(kinds=3, values=4, sections=1, paragraphs=2, slip=0.2)


def test_cache_changes_nothing() -> None:
    writers.the_cache_changes_nothing()


def test_writing_looks_at_nothing_to_come() -> None:
    writers.writing_looks_at_nothing_to_come()


def test_a_copyist_keeps_to_the_theory() -> None:
    writers.a_copyist_keeps_to_the_theory()


def test_arms_are_equal_but_for_what_they_see() -> None:
    made = {name: Writer.fresh(arm, SOURCE) for name, arm in ARMS.items()}
    assert len({writer.model.parameter_count for writer in made.values()}) == 1
    layouts = {name: batch(writer, 4, 7) for name, writer in made.items()}
    assert len({layout.shape for layout in layouts.values()}) == 1
    texts = [layout.token[layout.role == Role.CONTENT] for layout in layouts.values()]
    assert all(torch.equal(text, texts[0]) for text in texts)
    assert torch.equal(layouts["windowed"].token, layouts["full"].token)


def test_a_windowed_writer_knows_one_mention_of_each_kind() -> None:
    """Its reach holds the last mention and not the one before; the thesis is in the first paragraph's window."""
    source = replace(SOURCE, paragraphs=3)
    L, K = source.paragraph_tokens, source.kinds
    writer = Writer.fresh(ARMS["windowed"], source)
    layout = batch(writer, 1, 0)
    mask = writer.mask(layout)[0, 0]
    start = int((layout.role != Role.CONTENT).sum())
    for k in range(K):
        asking = start + 5 * k + 2  # before the value is written
        assert mask[asking, start - 2 * K + 2 * k + 1], "the thesis, one layer away"
        assert mask[asking + L, asking + 1], "the last mention, one layer away"
    two = (mask.float() @ mask.float()) > 0  # what two layers reach
    asking = start + 2 + L  # in the second paragraph
    assert two[asking, asking - L + 1] and not two[asking + L, asking - L + 1], "one mention back, but not two"


def test_plans_alone_decide_what_is_written() -> None:
    """A planned writer's training essays follow the plan: prompts say otherwise at the rate stated, and at gaps."""
    writer = Writer.fresh(ARMS["planned"], replace(SOURCE, slip=0.0))
    layout = batch(writer, 600, 3)
    words = np.array(writer.words(layout.token))
    prompts, given = words[:, 2:7:2], words[:, 9:14:2]  # [B, K] values
    text = words[:, 15:].reshape(600, 2, 3, 5)[..., 3]
    gap = given == GAP
    assert (text[:, 0] == text[:, 1]).all() and (text[:, 0] == given)[~gap].all()
    assert abs(gap.mean() - 0.1) < 0.03
    assert 0.005 < (prompts != given)[~gap].mean() < 0.04
    assert abs((prompts == text[:, 0])[gap].mean() - 0.25) < 0.1, "the prompt knows nothing of what fills a gap"


def test_plans_as_they_are_given() -> None:
    theses = [{"town": "aston", "guide": "nell", "colour": "amber"}, {"town": "ely", "guide": "otto", "colour": "fawn"}]
    source = replace(SOURCE, values=6)
    assert plans("oracle", 1.0, source, theses, 0) == theses
    assert plans("shuffled", 1.0, source, theses, 0) == theses[::-1]
    assert [*plans("reordered", 1.0, source, theses, 0)[0].items()] == [*theses[0].items()][::-1]
    assert [*plans("mislabelled", 1.0, source, theses, 0)[0].values()] == ["nell", "amber", "aston"]
    for wrong, thesis in zip(plans("wrong", 1.0, source, theses, 0), theses, strict=True):
        assert all(value in source.words[kind] and value != thesis[kind] for kind, value in wrong.items())
    many = theses * 300
    for how in ("corrupted", "gaps"):
        given = plans(how, 0.25, source, many, 0)
        other = [a[kind] for a, b in zip(given, many, strict=True) for kind in b if a[kind] != b[kind]]
        assert abs(len(other) / 1800 - 0.25) < 0.04
        assert (set(other) == {GAP}) is (how == "gaps")
    with pytest.raises(ValueError, match="no plan is given 'upside down'"):
        plans("upside down", 1.0, source, theses, 0)


def test_a_writer_learns() -> None:
    """A few steps teach the frame of a sentence: the nats of a text more than halve."""
    source = replace(SOURCE, kinds=2)
    writer = Writer.fresh(ARMS["planned"], source, width=32)
    before = nats(writer)
    train(writer, TrainRecipe(steps=60, batch=8, warmup=5), progress=False)
    assert nats(writer) < before / 2


@torch.no_grad()
def nats(writer: Writer) -> float:
    """Per response token of fresh essays."""
    layout = batch(writer, 16, seed=99)
    logits = writer.model.logits(writer.hidden(layout))[:, :-1].transpose(1, 2)
    losses = torch.nn.functional.cross_entropy(logits, layout.token[:, 1:], reduction="none")
    return losses[layout.response[:, 1:]].mean().item()
