"""Diffusion of whole responses: the span it makes of a document, its bound, its sampler."""

from __future__ import annotations

import pytest
import torch

from laws import worlds
from laws.checks import company_and_cache_change_nothing, overheard
from laws.source import FiveSymbols, p_value
from pdref.methods import masked_diffusion
from pdref.methods.decoding import Draw, Speaker
from pdref.methods.denoising import Order, Unmasking
from pdref.methods.masked_diffusion import as_one_span, nll_bound, objective, sample
from pdref.text.layout import NO_SPAN, Grammar, Layout, Role, Stream, TooLong
from pdref.text.mask import dense_mask
from pdref.text.tags import Tag

GRAMMAR = Grammar(grid=2)
LONGEST = max(int((row.role != Role.PROMPT).sum()) for row in worlds.layouts(GRAMMAR))


@pytest.mark.parametrize("length", [LONGEST, LONGEST + 5])
def test_a_response_becomes_one_span_filled_with_pads(length: int) -> None:
    rows = worlds.layouts(GRAMMAR)
    batch = as_one_span(Layout.collate(rows), length)
    for b, row in enumerate(rows):
        given = int((row.role == Role.PROMPT).sum())
        response = row.token[0, given:].tolist()
        content = batch.role[b] == Role.CONTENT
        assert content.nonzero()[:, 0].tolist() == list(range(given, given + length))
        assert batch.token[b, content].tolist() == response + [Tag.PAD] * (length - len(response))
        assert batch.token[b, :given].tolist() == row.token[0, :given].tolist()
        assert (batch.role[b, :given] == Role.PROMPT).all() and (batch.role[b, given + length :] == Role.PAD).all()
        assert torch.equal(content, batch.span[b] == 0) and torch.equal(~content, batch.span[b] == NO_SPAN)
        assert torch.equal(content, batch.stream[b] == Stream.NOISED)
        assert (batch.stage[b] == 0).all()
        assert batch.position[b].tolist() == list(range(batch.shape[1]))


def test_a_response_longer_than_the_span_is_refused() -> None:
    with pytest.raises(TooLong, match=f"a response of {LONGEST} tokens does not fit {LONGEST - 1}"):
        as_one_span(Layout.collate(worlds.layouts(GRAMMAR)), LONGEST - 1)


def test_a_response_sees_prompt_and_itself_and_the_prompt_its_past() -> None:
    batch = as_one_span(Layout.collate(worlds.layouts(GRAMMAR)), LONGEST)
    mask = dense_mask(batch, batch)
    for b, given in enumerate((batch.role == Role.PROMPT).sum(1).tolist()):
        end = given + LONGEST
        assert torch.equal(mask[b, :given], torch.ones(batch.shape[1:] * 2).tril().bool()[:given])
        assert mask[b, given:end, :end].all() and not mask[b, given:end, end:].any()


def test_every_masked_token_weighs_one_over_t(monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = worlds.inventor()
    batch = as_one_span(Layout.collate(worlds.layouts(GRAMMAR)), LONGEST)
    times = torch.tensor([0.2, 0.5, 0.8, 1.0], dtype=torch.float64)[:, None].expand(batch.shape)
    monkeypatch.setattr(masked_diffusion, "draw_times", lambda *_: times)
    with overheard(speaker.model) as calls:
        bound = nll_bound(speaker.model, batch, torch.Generator().manual_seed(2))
        loss = objective(speaker.model, batch, torch.Generator().manual_seed(2))
    masked = calls[0].tokens == Tag.MASK
    log_p = speaker.model.logits(calls[0].hidden).log_softmax(-1).gather(-1, batch.token[..., None])[..., 0]
    assert torch.allclose(bound, torch.where(masked, -log_p / times, 0.0))
    assert torch.equal(calls[0].tokens[~masked], batch.token[~masked])
    assert (batch.role[masked] == Role.CONTENT).all()
    share = masked.sum(1) / LONGEST
    assert (share.diff() > 0).all() and share[-1] == 1
    assert torch.allclose(loss, (bound.sum(1) / LONGEST).mean())


def test_the_bound_of_an_exact_model_is_the_joint_itself() -> None:
    source = FiveSymbols()
    length = source.layouts[0].shape[1] - 2
    batch = as_one_span(Layout.collate(source.layouts), length)
    generator = torch.Generator().manual_seed(3)
    model = source.speaker.model
    draws = torch.stack([nll_bound(model, batch, generator).sum(1).mean() for _ in range(120)])
    exact = -torch.tensor(list(source.joint.values())).log().mean()
    error = draws.std() / len(draws) ** 0.5
    assert error < 0.1 * exact
    assert abs(draws.mean() - exact) < 4 * error


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("ratio", [1, 0.5, 0.34, 0.1, 0.01])
def test_an_oracle_is_recovered_at_the_predicted_cost(ratio: float, cached: bool) -> None:
    targets, length = worlds.documents(GRAMMAR.grid), LONGEST + 3
    prompts = [target.prompt for target in targets]
    found = sample(worlds.oracle(GRAMMAR), prompts, length, Unmasking(ratio), cached=cached)
    for generation, target, layout in zip(found, targets, worlds.layouts(GRAMMAR), strict=True):
        assert generation.tokens == layout.token[0].tolist(), "what follows <eos> is dropped"
        assert generation.document == target and generation.problem is None
        assert worlds.replayed(generation)[: len(generation.tokens)] == generation.tokens
        assert generation.nfe == generation.critical_path == 1 + max(1, round(ratio * length))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_alone_in_a_batch_cached_and_uncached_are_one(temperature: float) -> None:
    company_and_cache_change_nothing("whole-response diffusion", temperature)


@pytest.mark.parametrize("order", ["entropy", "random"])
def test_one_token_a_step_samples_the_joint(order: Order) -> None:
    source = FiveSymbols()
    draw = Draw(1.0, generator=torch.Generator().manual_seed(5))
    length = source.layouts[0].shape[1] - 2
    found = sample(source.speaker, ["go"] * 600, length, Unmasking(1.0, order), draw)
    assert p_value([source.outcome(generation.tokens) for generation in found], source.joint) > 1e-3


def test_a_response_without_an_end_is_kept_whole_and_reported() -> None:
    [generation] = sample(worlds.scripted(lambda _: Tag.EOS), ["ada"], 6)
    assert generation.tokens[2:] == worlds.ids("ant") * 6
    assert generation.document is None and generation.problem


def test_a_shifted_speaker_is_not_shifted_here() -> None:
    """The released trainer shifts spans; whole responses it never saw."""
    grammar = Grammar(grid=1)
    [target, *_] = worlds.documents(1)
    speaker = worlds.oracle(grammar)
    shifted = Speaker(speaker.model, speaker.tokenizer, grammar, shifted=True)
    assert sample(shifted, [target.prompt], 25)[0].document == target


def test_a_response_that_does_not_fit_the_context_is_refused() -> None:
    speaker = worlds.inventor(context=30)
    with pytest.raises(TooLong, match="prompt 1 leaves 27 tokens of 30; 28 are asked for"):
        sample(speaker, ["ada", "ada bo"], 28)
