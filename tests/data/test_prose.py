"""The whole corpus: every document obeys the grammar, nothing is lost uncounted, the splits do not mix."""

from __future__ import annotations

import hashlib
import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from pdref.data import prose
from pdref.data.annotate import RuleAnnotator
from pdref.data.prose import Corpus, Statistics, cut, overlap, parts, shingles, split, table
from pdref.data.python_docs import Entry, collect, read_compiled, read_source, read_symbols
from pdref.text.document import Item, PlannedDocument, Span, Stage, parse, render
from pdref.text.layout import Grammar, encode

GRAMMAR, CONTEXT, LONGEST = Grammar(grid=10), 384, 200


@pytest.fixture(scope="session")
def entries() -> list[Entry]:
    return collect()


@pytest.fixture(scope="session")
def corpus(entries: list[Entry]) -> Corpus:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "collect", lambda: entries)  # read once for all tests
        return prose.build(grammar=GRAMMAR, context=CONTEXT, longest=LONGEST)


@pytest.fixture(scope="session")
def documents(corpus: Corpus) -> list[PlannedDocument]:
    return corpus.train + corpus.heldout


def test_there_is_enough_to_train_on(corpus: Corpus) -> None:
    assert len(corpus.train) > 2000
    assert len(corpus.heldout) > 80
    assert 1_000_000 < corpus.statistics["train"].characters < 6_000_000
    assert len(corpus.tokenizer) == 2048


def test_every_document_fits_its_context_and_its_grid(corpus: Corpus, documents: list[PlannedDocument]) -> None:
    for document in documents:
        assert encode(document, corpus.tokenizer, GRAMMAR, CONTEXT).shape[1] <= CONTEXT
        for stage in document.stages:
            for item, span in zip(stage.plan, stage.spans, strict=True):
                assert 0 <= span.pads < 10, f"{item} could be shorter"
                assert item.length * 10 <= LONGEST


def test_every_topic_is_up_to_three_words_of_its_span(documents: list[PlannedDocument]) -> None:
    for document in documents:
        for stage in document.stages:
            for item, span in zip(stage.plan, stage.spans, strict=True):
                assert 1 <= len(item.topic.split()) <= 3
                assert all(word in span.text for word in item.topic.split())


@pytest.mark.parametrize("echo", [False, True])
def test_every_document_survives_its_written_form(documents: list[PlannedDocument], echo: bool) -> None:
    for document in documents:
        assert parse(render(document, echo), echo) == document


def test_every_part_is_a_document_or_counted(corpus: Corpus, entries: list[Entry]) -> None:
    limit = int(prose.TEXT_SHARE * CONTEXT)
    for side, chosen in zip(("train", "heldout"), split(entries), strict=True):
        texts = [part for entry in chosen for part in parts(entry, limit, corpus.tokenizer)]
        planned = [(document.prompt, document.text) for document in getattr(corpus, side)]
        rest = iter(texts)
        assert all(pair in rest for pair in planned), "documents are parts, character for character, in order"
        assert len(texts) - len(planned) == sum(corpus.statistics[side].dropped.values())
        assert len(planned) > 0.9 * len(texts)


def test_parts_lose_no_words(corpus: Corpus, entries: list[Entry]) -> None:
    for entry in entries[::7]:
        pieces = cut(entry.text, 100, corpus.tokenizer)
        assert " ".join(pieces).split() == entry.text.split()
        sizes = [len(ids) for ids in corpus.tokenizer.encode_all(pieces)]
        lines = [len(ids) + 1 for ids in corpus.tokenizer.encode_all(entry.text.split("\n"))]
        assert max(sizes) <= max(100, *lines)


def test_the_prompt_names_the_part(corpus: Corpus, entries: list[Entry]) -> None:
    longest = max(entries, key=lambda entry: len(entry.text))
    texts = parts(longest, 100, corpus.tokenizer)
    assert texts[1][0] == f"{longest.prompt} (part 2 of {len(texts)})"
    short = Entry("m.f", "m.f(x)", "Return it.")
    assert parts(short, 100, corpus.tokenizer) == [("m.f(x)", "Return it.")]


def test_heldout_shares_no_name_and_little_text_with_training(entries: list[Entry]) -> None:
    train, heldout = split(entries)
    assert sorted(train + heldout) == sorted(entries)
    assert not {entry.name for entry in heldout} & {entry.name for entry in train}
    known = {shingle for entry in train for shingle in shingles(entry.text)}
    assert max(overlap(entry.text, known) for entry in heldout) <= 0.25
    assert 0.02 < sum(len(e.text) for e in heldout) / sum(len(e.text) for e in entries) < 0.1


def test_a_heldout_text_that_repeats_training_is_trained_on() -> None:
    text = " ".join(f"word{i}" for i in range(50))
    held = next(f"f{i}" for i in range(1000) if prose._fraction(f"f{i}") < 0.06)
    kept = next(f"f{i}" for i in range(1000) if prose._fraction(f"f{i}") >= 0.06)
    own = Entry(held, held, text)
    assert split([own]) == ([], [own])
    assert split([own, Entry(kept, kept, f"Again: {text}")])[1] == []


def test_the_tokenizer_has_seen_training_text_only(corpus: Corpus, entries: list[Entry]) -> None:
    train, _ = split(entries)
    again = type(corpus.tokenizer).byte_pairs((f"{e.prompt}\n{e.text}" for e in train), 2048)
    sample = [document.text for document in corpus.heldout]
    assert again.encode_all(sample) == corpus.tokenizer.encode_all(sample)


def test_several_stages_and_several_spans_are_common(corpus: Corpus) -> None:
    statistics = corpus.statistics["train"]
    assert sum(n > 1 for n in statistics.stages) / len(statistics.stages) > 0.2
    assert statistics.plans.count(1) / len(statistics.plans) < 0.45


def digest() -> str:
    """A fingerprint of some entries, their split and their plans."""
    seen: set[str] = set()
    source = Path(textwrap.__file__).read_text(encoding="utf-8")
    entries = [*read_symbols(read_source("textwrap", source), seen)]
    entries += read_symbols(read_compiled("builtins") or read_source("none", ""), seen)
    plans = [RuleAnnotator()(entry.prompt, entry.text) for entry in entries]
    return hashlib.sha256(repr((split(entries, 0.3), plans)).encode()).hexdigest()


def test_another_process_with_other_hashes_makes_the_same() -> None:
    code = f"{inspect.getsource(sys.modules[__name__])}\nprint(digest())"
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest()


def test_the_split_is_pinned() -> None:
    """Another hash would shuffle the splits under checkpoints that were trained on them."""
    assert prose._fraction("textwrap.wrap") == pytest.approx(0.7828737692298328)


def test_statistics_of_a_corpus_done_by_hand() -> None:
    one = Stage((Item("a", 1), Item("b", 3)), (Span("first", 4), Span("second", 0)))
    two = Stage((Item("c", 2),), (Span("thïrd", 5),))
    documents = [PlannedDocument("p", (one, two)), PlannedDocument("q", (two,))]
    statistics = Statistics.of(documents, {"TooLong": 3}, grid=10)
    assert statistics.plans == (2, 1, 1)
    assert statistics.lengths == (10, 30, 20, 20)
    assert statistics.stages == (2, 1)
    assert statistics.tokens == 80 - 4 - 5 - 5
    assert statistics.characters == len("first\nsecond\nthïrd") + len("thïrd")
    rows = statistics.rows()
    assert rows["spans per plan: mean"] == "1.3"
    assert rows["plans with one span"] == "67%"
    assert rows["documents with several stages"] == "50%"
    assert rows["stages that end in <sync/>"] == "33%"
    assert rows["dropped: TooLong"] == "3"
    assert rows["bytes per token"] == f"{(statistics.characters + 2) / 66:.2f}"


def test_the_table_stands_beside_real_plans() -> None:
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table(train=Statistics.of([], {"TooLong": 1}, 10)))
    text = console.export_text()
    assert "real plans" in text
    assert "AlpacaEval" in text
    assert "dropped: TooLong" in text
    assert "3.1" in text


def test_small_sizes_give_small_documents(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("m.f", "m.f(x)", "\n\n".join(f"Paragraph {i} says what there is to say of it." for i in range(90)))
    monkeypatch.setattr(prose, "collect", lambda: [entry])
    built = prose.build(500, Grammar(grid=4, echo=False), context=120, longest=40, annotator=RuleAnnotator(20, 40, 90))
    assert len(built.train) > 5
    assert len(built.tokenizer) <= 500
    for document in built.train:
        assert encode(document, built.tokenizer, Grammar(4, False), 120).shape[1] <= 120
