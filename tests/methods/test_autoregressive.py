"""Autoregression: nats token by token, and a sampler that an oracle, a known joint and company cannot upset."""

from __future__ import annotations

import pytest
import torch

from laws import worlds
from laws.checks import company_and_cache_change_nothing, result
from laws.source import FiveSymbols, p_value
from pdref.methods.autoregressive import document_nll, next_token_nll, objective, per_document_mean, sample
from pdref.methods.decoding import Draw
from pdref.text.layout import Grammar, Layout, Role
from pdref.text.tags import Tag

GRAMMAR = Grammar(grid=2)


def test_each_token_is_predicted_by_the_one_before() -> None:
    model, batch = worlds.inventor().model, Layout.collate(worlds.layouts(GRAMMAR))
    hidden = model(batch.token, batch.position)
    expected = torch.zeros(batch.shape, dtype=torch.float64)
    for b, length in enumerate(batch.real.sum(1).tolist()):
        for i in range(int((batch.role[b] == Role.PROMPT).sum()), length):
            expected[b, i] = -model.logits(hidden[b, i - 1]).log_softmax(-1)[batch.token[b, i]]
    assert torch.allclose(next_token_nll(model, hidden, batch), expected)
    assert torch.allclose(document_nll(model, batch), expected)
    assert expected[:, :2].eq(0).all(), "<bos> and the prompt are given"


def test_a_document_weighs_the_same_however_long_it_is() -> None:
    rows = worlds.layouts(GRAMMAR)
    model, batch = worlds.inventor().model, Layout.collate(rows)
    means = [document_nll(model, row).sum() / (row.role != Role.PROMPT).sum() for row in rows]
    assert torch.allclose(per_document_mean(document_nll(model, batch), batch), torch.stack(means))
    assert torch.allclose(objective(model, batch), torch.stack(means).mean())


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize("grid", [1, 4])
def test_an_oracle_is_recovered_at_a_forward_a_token(grid: int, echo: bool, cached: bool) -> None:
    grammar = Grammar(grid, echo)
    targets = worlds.documents(grid)
    found = sample(worlds.oracle(grammar), [target.prompt for target in targets], cached=cached)
    for generation, target, layout in zip(found, targets, worlds.layouts(grammar), strict=True):
        assert generation.tokens == layout.token[0].tolist() == worlds.replayed(generation)
        assert (generation.document, generation.problem, generation.cuts) == (target, None, ())
        read_and_written = 1 + layout.shape[1] - generation.prompt_length - 1  # <eos> is drawn and never read
        assert generation.nfe == generation.critical_path == read_and_written


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_alone_in_a_batch_cached_and_uncached_are_one(temperature: float) -> None:
    batch = company_and_cache_change_nothing("autoregressive", temperature)
    assert len({len(generation.tokens) for generation in batch}) > 1, "some end early"


def test_an_exact_model_samples_the_joint() -> None:
    source = FiveSymbols()
    draw = Draw(1.0, generator=torch.Generator().manual_seed(1))
    outcomes = [source.outcome(g.tokens) for g in sample(source.speaker, ["go"] * 2000, draw)]
    assert p_value(outcomes, source.joint) > 1e-3
    assert p_value(outcomes, source.planned) < 1e-9, "nothing is lost between the spans"


@pytest.mark.parametrize(("limit", "context", "length"), [(7, 80, 9), (None, 20, 20), (18, 20, 20), (19, 20, 20)])
def test_what_does_not_end_is_cut_at_the_limit_or_the_context(limit: int | None, context: int, length: int) -> None:
    speaker = worlds.scripted(lambda _: Tag.TOPIC, context=context)
    [generation] = sample(speaker, ["ada"], limit=limit)
    assert generation.cuts == (f"no <eos> within {length} tokens",)
    assert len(generation.tokens) == length and generation.tokens[-1] == Tag.TOPIC
    assert generation.document is None and "UnbalancedTag" in str(generation.problem)


def test_an_end_that_just_fits_is_no_cut() -> None:
    for limit, context in ((8, 80), (None, 10)):
        speaker = worlds.scripted(lambda said: Tag.EOS if len(said) == 9 else Tag.TOPIC, context=context)
        [generation] = sample(speaker, ["ada"], limit=limit)
        assert generation.cuts == () and generation.tokens[-1] == Tag.EOS


def test_a_runaway_does_not_touch_its_neighbour() -> None:
    ada = worlds.ids("ada")[0]
    speaker = worlds.scripted(lambda said: Tag.EOS if said[1] == ada else Tag.TOPIC)
    sane, wild = sample(speaker, ["ada", "bo"])
    assert result(sane) == result(sample(speaker, ["ada"])[0])
    assert len(wild.tokens) == 80


def test_the_seed_decides_and_temperature_0_does_not_ask_it() -> None:
    speaker = worlds.inventor()
    tokens = {
        (temperature, seed): tuple(sample(speaker, ["ada"], Draw(temperature, seeds=[seed]), limit=20)[0].tokens)
        for temperature in (0.0, 1.0)
        for seed in (1, 2)
    }
    assert tokens[0.0, 1] == tokens[0.0, 2]
    assert tokens[1.0, 1] != tokens[1.0, 2]
    assert tokens[1.0, 1] == tuple(sample(speaker, ["ada"], Draw(1.0, seeds=[1]), limit=20)[0].tokens)
