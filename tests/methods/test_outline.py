"""Outline, then fill: what sections read, what training scores, and what becomes of outlines that are none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from laws import outlines, worlds
from laws.outlines import FILLINGS, GRAMMAR, PROMPTS, TOKENIZER
from laws.seers import Scripted
from pdref.methods import outline
from pdref.methods.decoding import Draw, Speaker
from pdref.methods.planning import Bounds
from pdref.model.transformer import Config, Transformer
from pdref.text.document import Item
from pdref.text.filling import Filling
from pdref.text.layout import Layout, Role, TooLong
from pdref.text.tags import Tag


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("filling", FILLINGS)
def test_an_oracle_is_recovered(filling: Filling, cached: bool) -> None:
    outlines.an_oracle_is_recovered(filling, cached)


@pytest.mark.parametrize("filling", FILLINGS)
def test_information_stays_where_it_may(filling: Filling) -> None:
    outlines.information_stays_where_it_may(filling)


@pytest.mark.parametrize("filling", FILLINGS)
def test_training_is_sampling(filling: Filling) -> None:
    outlines.training_is_sampling(filling)


def test_the_loss_scores_what_is_drawn() -> None:
    outlines.the_loss_scores_what_is_drawn()


@pytest.mark.parametrize("filling", FILLINGS)
def test_a_batch_is_its_documents(filling: Filling) -> None:
    """Ragged batches cost what their documents cost alone, and the objective is the mean of these."""
    speaker = worlds.inventor(context=200)
    layouts = worlds.layouts(speaker.grammar)
    batch = Layout.collate(layouts)
    drafts = _other_words(batch) if filling == "drafts" else None
    together = outline.nats(speaker.model, batch, filling, drafts)
    costs = []
    for b, layout in enumerate(layouts):
        own = drafts and drafts.map(lambda f, b=b, T=layout.shape[1]: f[b : b + 1, :T])
        alone = outline.nats(speaker.model, layout, filling, own).sum()
        assert together[b].sum().item() == pytest.approx(alone.item())
        costs.append(alone.item() / outline.drawn(layout).sum().item())
    found = outline.objective(speaker.model, batch, filling, drafts).item()
    assert found == pytest.approx(sum(costs) / len(costs))


def _other_words(layout: Layout) -> Layout:
    """The same documents with the words of their contents turned round."""
    content = layout.role == Role.CONTENT
    words = layout.token.where(content & (layout.token != Tag.PAD), 0)
    other = torch.where(words > 0, words.max() + words[words > 0].min() - words, layout.token)
    return replace(layout, token=other)


def test_drafts_are_paid_for_beside_the_sections_that_read_them() -> None:
    """Two terms: the drafts as in "parallel", and sections whose cost moves with any draft."""
    speaker = worlds.inventor(context=200)
    layout = worlds.layouts(speaker.grammar)[2]
    drafts = _other_words(layout)
    T = layout.shape[1]
    nats = outline.nats(speaker.model, layout, "drafts", drafts)[0]
    copy, index = drafts.span_copy()
    parallel = outline.nats(speaker.model, drafts, "parallel")[0][index[0]]
    content = copy.role[0] == Role.CONTENT
    first = copy.stage[0] == 0  # later drafts are written in sight of the finished sections, not of drafts
    assert torch.allclose(nats[T:][content & first], parallel[content & first])
    same = outline.nats(speaker.model, layout, "drafts", layout)[0, :T]
    inside = (layout.role[0] == Role.CONTENT) & (layout.stage[0] == 0)
    assert inside.any() and not torch.isclose(nats[:T][inside], same[inside]).any()


def test_drafts_and_fillings_must_match() -> None:
    speaker = worlds.inventor(context=200)
    layout, other = worlds.layouts(speaker.grammar)[:2]
    with pytest.raises(ValueError, match="drafts are for filling 'drafts'"):
        outline.nats(speaker.model, layout, "drafts")
    with pytest.raises(ValueError, match="filling is 'parallel'"):
        outline.nats(speaker.model, layout, "parallel", layout)
    prompt = replace(layout, token=layout.token.roll(1, 1))
    for drafts in (other, prompt):
        with pytest.raises(ValueError, match="of the same documents"):
            outline.nats(speaker.model, layout, "drafts", drafts)


# Outlines that are none, or run away.


def scripted(*words: str, context: int = 120) -> Speaker:
    """After a prompt of one word says `words` and then its last word for ever."""
    ids = TOKENIZER.encode("".join(words))

    def script(said: list[int]) -> int:
        return ids[min(len(said) - 2, len(ids) - 1)] if len(said) > 1 else Tag.EOS

    return Speaker(Scripted(script, 0, len(TOKENIZER), context), TOKENIZER, GRAMMAR)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("<eos>", "MisplacedTag: the plan of stage 0 ends in <eos>"),
        ("<topic>sun</topic><async>", "MissingLength: topic 'sun' does not end in a length"),
        ("<topic>3</topic><async>", "EmptyTopic"),
        ("<topic>sun 0</topic><async>", "LengthOutOfRange: topic 'sun' plans '0'|0 cells"),
        ("sun<async>", "TextOutsideSpan: 'sun'"),
        ("<topic>sun 3<async>", "UnbalancedTag|MisplacedTag"),
        ("<async>", "EmptyPlan"),
    ],
)
def test_an_outline_that_is_none_is_reported(words: str, problem: str) -> None:
    [generation] = outline.sample(scripted(words), ["ada"])
    assert generation.document is None
    assert generation.problem is not None
    assert any(generation.problem.startswith(p) or p in generation.problem for p in problem.split("|"))


def test_a_runaway_outline_is_cut_and_what_is_kept_is_written() -> None:
    speaker = scripted("<topic>sun 2</topic>" * 20)
    [generation] = outline.sample(speaker, ["ada"], bounds=Bounds(items=3))
    assert generation.cuts == ("a plan ran away: cut after 3 items",)
    assert generation.document is None or len(generation.document.stages[0].plan) == 3
    [long] = outline.sample(scripted("<topic>sun 9</topic>" * 4 + "<async>", context=60), ["ada"])
    assert long.cuts == ("a plan does not fit the context of 60: cut after 3 items",)
    assert worlds.replayed(long) == long.tokens and len(long.tokens) <= 60


@pytest.mark.parametrize("filling", FILLINGS)
def test_sections_are_as_long_as_their_items_say(filling: Filling) -> None:
    plans = [[Item("sun", 5), Item("moon", 1), Item("1920s", 3)]] * len(PROMPTS)
    draw = Draw(1.0, seeds=range(len(PROMPTS)))
    for generation in outline.sample(worlds.inventor(context=200), PROMPTS, filling, draw, plans):
        layout = worlds.read_layout(generation.tokens, True)
        lengths = layout.span[layout.role == Role.CONTENT].bincount().tolist()
        assert lengths == [10, 2, 6], "on a grid of two"
        assert not {*generation.tokens} & {Tag.MASK}


def test_bad_arguments_are_refused() -> None:
    speaker = worlds.inventor()
    with pytest.raises(ValueError, match="2 plans for 1 prompts"):
        outline.sample(speaker, ["ada"], plans=[None, None])
    with pytest.raises(ValueError, match="at least one section is written at once, not 0"):
        outline.sample(speaker, ["ada"], plans=[[Item("sun", 1)]], at_once=0)
    with pytest.raises(ValueError, match="filling is one of parallel, sequential, drafts, not 'both'"):
        outline.sample(speaker, ["ada"], "both", plans=[[Item("sun", 1)]])  # type: ignore[arg-type]
    with pytest.raises(TooLong, match="plan 0 has"):
        outline.sample(speaker, ["ada"], plans=[[Item("sun", 1)] * 60])
    with pytest.raises(ValueError, match="no prompts"):
        outline.sample(speaker, [])


@pytest.mark.parametrize("filling", FILLINGS)
def test_grouped_key_heads_in_single_precision(filling: Filling) -> None:
    torch.manual_seed(0)
    model = Transformer(Config(len(TOKENIZER), 80, layers=2, width=32, heads=4, key_heads=2)).eval()
    plans = [[Item("sun", 3), Item("moon", 5)]]
    speaker = Speaker(model, TOKENIZER, GRAMMAR)
    one, other = (outline.sample(speaker, ["ada"], filling, plans=plans, cached=cached) for cached in (True, False))
    assert one[0].tokens == other[0].tokens
    assert one[0].document is None or [len(span.text.split()) for span in one[0].document.stages[0].spans] == [3, 5]
