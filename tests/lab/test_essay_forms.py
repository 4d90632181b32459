"""Essays in every form: what a step asks for, what a form costs in closed form, and what the shipped writer writes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from laws.seers import Exact
from pdref.lab import checkpoint
from pdref.lab.essay_forms import FORMS, RECIPE, batch, clock, forwards, measure, train, violations
from pdref.methods.decoding import Draw, Speaker
from pdref.methods.generation import Generation
from pdref.text.document import PlannedDocument, Span
from pdref.text.layout import NO_SPAN, Role, encode

NAMED = [name for name, form in FORMS.items() if form.named]


@cache
def shipped() -> Speaker:
    return checkpoint.load("essays").speaker


@pytest.mark.parametrize("name", FORMS)
def test_a_step_asks_for_one_form_and_shows_drafts_where_there_are_some(name: str) -> None:
    form, speaker = FORMS[name], shipped()
    texts, drafts = batch(form, speaker, 3)
    assert len(texts.token) == form.batch and texts.shape[1] <= speaker.model.config.context
    assert (drafts is not None) == (form.filling == "drafts")
    if drafts is not None:
        inside = (texts.span != NO_SPAN) & (texts.role == Role.CONTENT)
        changed = (texts.token != drafts.token)[inside].float().mean().item()
        assert not (texts.token != drafts.token)[~inside].any()
        assert changed == 0 if form.named else 0.05 < changed < 0.2  # 3 of 4 sections, 1 word of 5, 3 of 4 values


@pytest.mark.parametrize("name", FORMS)
def test_the_cost_in_closed_form_is_the_cost_counted(name: str) -> None:
    """With an oracle, so that what is written is what was meant."""
    form = replace(FORMS[name], source=replace(FORMS[name].source, sections=3, paragraphs=2))
    document = form.document(form.source.essays(1, 5)[0])
    tokenizer = form.source.tokenizer()
    layout = encode(document, tokenizer, form.source.grammar)
    speaker = Speaker(Exact([layout], len(tokenizer), layout.shape[1]), tokenizer, form.source.grammar)
    for at_once in (None, 1, 2):
        [generation] = form.write(speaker, [document.prompt], at_once=at_once)
        assert generation.document == document
        assert forwards(document, form.filling, at_once) == (generation.critical_path, generation.nfe)
        assert violations(form, generation) == 0


def test_violations_count_contradictions_nonsense_and_what_is_missing() -> None:
    form = FORMS["parallel"]
    essay = form.source.essays(1, 6)[0]
    document = form.document(essay)
    [stage] = document.stages

    def of(*texts: str) -> int:
        spans = tuple(Span(text) for text in texts)
        return violations(form, Generation([], 0, PlannedDocument(document.prompt, (replace(stage, spans=spans),))))

    texts = [span.text for span in stage.spans]
    other = next(value for value in form.source.words["town"] if value != essay.thesis["town"])
    assert of(*texts) == 0
    assert of(texts[0].replace(essay.thesis["town"], other), *texts[1:]) == 4, "one sentence in each of four paragraphs"
    assert of(*texts[:3], " ".join(texts[3].split()[:-5])) == 1, "a sentence is missing"
    assert of(*texts[:3], texts[3].replace(".", ";")) == 8, "no sentences"
    assert violations(form, Generation([], 0)) == 32, "no document at all"


def test_training_is_a_function_of_its_recipe() -> None:
    recipe = replace(RECIPE.with_train(steps=2), model=replace(RECIPE.model, depth=1))
    (one, losses), (other, again) = train(recipe, progress=False), train(recipe, progress=False)
    assert losses == again and len(losses) == 2
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not one.model.training


@pytest.mark.parametrize("name", NAMED)
def test_the_shipped_writer_knows_every_form(name: str) -> None:
    form = FORMS[name]
    marks = measure(form, shipped(), 3, 77)
    assert marks.right >= 2 / 3 and marks.violations <= 2
    assert marks.tokens > 150


def test_the_clock_takes_turns_and_keeps_the_least() -> None:
    [flat, parallel] = clock([FORMS["flat"], FORMS["parallel"]], shipped(), rounds=2)
    assert 0 < parallel < flat, "two fifths of the path"


def test_side_by_side_is_one_by_one_with_the_shipped_writer() -> None:
    """Issue 5's bar: eight sections, temperature 0, the same text; the path is what one by one divides."""
    form = FORMS["eight sections"]
    prompts = [form.document(essay).prompt for essay in form.source.essays(4, 78)]
    together, alone = (form.write(shipped(), prompts, Draw(), at_once=at_once) for at_once in (None, 1))
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens and one.nfe == other.nfe
        assert other.critical_path - one.critical_path == 7 * 21
