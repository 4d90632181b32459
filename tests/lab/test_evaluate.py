"""Evaluation: judging, measuring nats, racing; and that the shipped checkpoints keep what their cards promise."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest
import torch

from pdref.data.profiles import Profiles
from pdref.lab.checkpoint import Checkpoint, load
from pdref.lab.evaluate import Arm, compare, compressors, held_out, judge, per_byte
from pdref.lab.recipe import Corpus, build_corpus
from pdref.methods.generation import Generation
from pdref.text.document import Span
from pdref.text.tags import Tag


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    """The shipped profiles checkpoint."""
    return load("profiles")


@pytest.fixture(scope="module")
def corpus(shipped: Checkpoint) -> Corpus:
    """Its corpus, with few training documents: only the held-out ones are used."""
    recipe = replace(shipped.recipe, corpus=replace(shipped.recipe.corpus, documents=64))
    return build_corpus(recipe)


def test_text_that_is_no_document_counts_as_wrong() -> None:
    """All its spans too; a document with one bad span is wrong and its other spans are right."""
    source = Profiles()
    good = source.sample(1, 0)[0]
    first = good.stages[0]
    bad = replace(good, stages=(replace(first, spans=(Span("nonsense"), *first.spans[1:])),))
    broken = Generation([Tag.ASYNC, Tag.END_ASYNC, Tag.ASYNC], 0)
    found = [Generation([], 0, good), Generation([], 0, bad), broken]
    spans = [len(s.spans) for s in good.stages]
    documents_right, spans_right = judge(found, source)
    assert documents_right == pytest.approx(1 / 3)
    assert spans_right == pytest.approx((sum(spans) + spans[0] - 1) / (sum(spans) + spans[0] + 2))


def test_nats_are_measured_beside_the_source_on_the_same_documents(shipped: Checkpoint, corpus: Corpus) -> None:
    """The floor is the mean surprisal of those documents, and a model cannot go far below it."""
    some = corpus.held_out[:12]
    found = held_out(shipped.speaker, some, corpus.source, samples=2)
    assert corpus.source is not None
    floors = [corpus.source.nats(document) for document in some]
    assert found.floor_plan == pytest.approx(mean(f.plan + f.tag for f in floors))
    assert found.floor_content == pytest.approx(mean(f.content for f in floors))
    assert found.plan > 0.8 * (found.floor_plan or 0)
    assert found.response_tokens > found.content_tokens > found.planned_tokens


def test_per_byte_and_compressors_count_the_same_text() -> None:
    """A text that repeats itself costs little; nats per byte are log 256 at most, and headers."""
    assert compressors(["ab" * 5000])["gzip -9"] < 0.05
    assert set(compressors(["x"])) == {"gzip -9", "xz -9e"}


def test_nats_per_byte_divide_by_the_text_alone(shipped: Checkpoint, corpus: Corpus) -> None:
    """Plan and tags are paid for and bring no bytes."""
    some = corpus.held_out[:4]
    found = held_out(shipped.speaker, some, samples=2)
    size = mean(len(document.text.encode()) for document in some)
    assert per_byte(found, some)["autoregressive"] == pytest.approx((found.plan + found.content) / size)


def test_the_shipped_profiles_checkpoint_keeps_its_promises(shipped: Checkpoint, corpus: Corpus) -> None:
    """95% of documents (r=1) and spans (r=0.34) right, nats within 10% of the source, path 2.5x shorter."""
    torch.manual_seed(0)
    assert corpus.source is not None
    prompts = [document.prompt for document in corpus.held_out[:40]]
    arms = [Arm("autoregressive"), Arm("planned", 1.0), Arm("planned", 0.34)]
    rows, _ = compare(shipped.speaker, arms, prompts, corpus.source, batches=(8,), race_prompts=8, repeats=1)
    autoregressive, whole, fast = rows
    assert autoregressive.documents_right >= 0.95
    assert whole.documents_right >= 0.95
    assert fast.spans_right >= 0.95
    assert fast.shorter_path >= 2.5
    nats = held_out(shipped.speaker, corpus.held_out[:128], corpus.source, samples=2)
    assert nats.autoregressive_excess is not None and nats.autoregressive_excess < 0.10
    assert nats.plan_excess is not None and nats.plan_excess < 0.10


def test_drafts_are_an_arm_of_their_own(corpus: Corpus) -> None:
    """The same documents in fewer forwards, and what drafting reports; without heads there is nothing to draft."""
    assert corpus.source is not None
    prompts = [document.prompt for document in corpus.held_out[:6]]
    arms = [Arm("autoregressive"), Arm("autoregressive", ahead=None), Arm("autoregressive", ahead=2)]
    assert [arm.label for arm in arms] == ["autoregressive", "autoregressive drafted", "autoregressive drafted 2"]
    timing = {"batches": (6,), "race_prompts": 6, "repeats": 1}
    speaker = load("profiles_heads").speaker
    (plain, drafted, two), found = compare(speaker, arms, prompts, corpus.source, **timing)  # type: ignore[arg-type]
    assert len({str([g.tokens for g in generations]) for generations in found.values()}) == 1
    assert (plain.tokens_per_forward, plain.acceptance) == (1.0, ())
    assert drafted.shorter_path > 2.5 and drafted.tokens_per_forward > 3 > two.tokens_per_forward > 2
    assert len(drafted.acceptance) == 5 and len(two.acceptance) == 2
    assert drafted.predicted_tokens_per_forward == pytest.approx(drafted.tokens_per_forward, rel=0.1)
