"""Essays: every form is a document, the nats are those of an enumeration, every violation is found and placed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from pdref.data.essays import WORDS, Essay, Essays, Violation
from pdref.data.essays_grammar import SUBJECTS, VALUES, VERBS
from pdref.text.document import PlannedDocument, parse, render
from pdref.text.layout import Grammar, encode

SOURCE = Essays()
SLIPPING = Essays(kinds=3, values=3, sections=2, paragraphs=3, slip=0.2)
FORMS = {
    "flat": lambda source, essay: source.flat(essay),
    "flat, planned": lambda source, essay: source.flat(essay, planned=True),
    "outlined": lambda source, essay: source.outlined(essay),
    "outlined, not named": lambda source, essay: source.outlined(essay, named=False),
    "tree of 2": lambda source, essay: source.tree(essay, 2),
    "tree of 3": lambda source, essay: source.tree(essay, 3),
}


def text(document: PlannedDocument) -> str:
    """What the last stage says, in a line."""
    return " ".join(span.text for span in document.stages[-1].spans)


def test_values_are_of_one_kind_and_sentences_of_one_length() -> None:
    values = [value for words in VALUES.values() for value in words.split()]
    assert len(values) == len(set(values)) == 8 * len(VERBS)
    assert not {*values} & {*VERBS, *VERBS.values(), *SUBJECTS}
    for sentence in SOURCE.essays(1, 0)[0].sentences:
        assert len(sentence.text.split()) == WORDS


def test_dials_set_the_length() -> None:
    for dials in product((1, 3), (1, 5), (1, 4)):
        source = Essays(kinds=dials[0], sections=dials[1], paragraphs=dials[2])
        essay = source.essays(1, 0)[0]
        assert len(essay.text.split()) == math.prod(dials) * WORDS
        assert source.paragraph_tokens == len(_paragraph_text(essay).split())


def _paragraph_text(essay: Essay) -> str:
    return " ".join(sentence.text for sentence in essay.sections[0][0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grammar", [Grammar(1, True), Grammar(4, False)], ids=str)
def test_every_form_is_a_document_that_holds_the_text_and_fits_its_lengths(form: str, grammar: Grammar) -> None:
    source = replace(SLIPPING, grammar=grammar)
    tokenizer = source.tokenizer()
    for essay in source.essays(5, 1):
        document = FORMS[form](source, essay)
        assert parse(render(document, grammar.echo), grammar.echo) == document
        assert text(document) == essay.text
        encode(document, tokenizer, grammar, context=600)  # raises LengthMismatch


@pytest.mark.parametrize("depth", [2, 3])
def test_the_plan_of_a_level_is_what_the_level_above_lists(depth: int) -> None:
    document = SOURCE.tree(SOURCE.essays(1, 2)[0], depth)
    assert len(document.stages) == depth
    for above, below in zip(document.stages[:-1], document.stages[1:], strict=True):
        listed = " ".join(span.text for span in above.spans)
        assert listed == " ".join(f"{item} ;" for item in below.plan)


def test_an_outline_that_is_not_named_leaves_the_thesis_out() -> None:
    essay = SOURCE.essays(1, 3)[0]
    document = SOURCE.outlined(essay, named=False)
    told = f"{document.prompt} {' '.join(item.topic for item in document.stages[0].plan)}".split()
    assert not {*told} & {*essay.thesis.values()}
    named = SOURCE.outlined(essay)
    assert all({*essay.thesis.values()} <= {*item.topic.split()} for item in named.stages[0].plan)


def test_nats_and_entropy_are_those_of_an_enumeration() -> None:
    """The chances of all essays of one thesis sum to 1, and their mean nats are the entropy."""
    source = Essays(kinds=2, values=3, sections=1, paragraphs=2, slip=0.3)
    example = source.essays(1, 0)[0]
    total = mean = 0.0
    for subject in SUBJECTS:
        for stated in product(*[source.words[sentence.kind] for sentence in example.sentences]):
            values = iter(stated)
            sections = tuple(
                tuple(tuple(replace(s, value=next(values), subject=subject) for s in p) for p in section)
                for section in example.sections
            )
            nats = source.nats(Essay(example.thesis, sections)).total
            total += math.exp(-nats)
            mean += math.exp(-nats) * nats
    assert total == pytest.approx(1, abs=1e-12)
    assert mean == pytest.approx(source.entropy().total, abs=1e-12)


def test_the_source_writes_what_its_nats_say() -> None:
    """Slips come at their rate, uniformly over the other values, the thesis and the subjects uniformly."""
    essays = SLIPPING.essays(2000, 4)
    slips = Counter(s.value for e in essays for s in e.sentences if s.kind == "town" and e.thesis["town"] != s.value)
    count = 2000 * SLIPPING.sections * SLIPPING.paragraphs
    assert slips.total() / count == pytest.approx(0.2, abs=4 * (0.16 / count) ** 0.5)
    assert max(slips.values()) - min(slips.values()) < 6 * slips.total() ** 0.5
    assert {e.sections[0][0][0].subject for e in essays} == {*SUBJECTS}
    measured = sum(SLIPPING.nats(e).total for e in essays) / len(essays)
    assert measured == pytest.approx(SLIPPING.entropy().total, rel=0.02)


def test_what_the_source_cannot_write_has_infinite_nats() -> None:
    essay = SLIPPING.essays(1, 5)[0]
    flipped = Essay(essay.thesis, essay.sections[::-1])
    assert SLIPPING.nats(flipped).total == math.inf
    assert Essays(kinds=3, values=3, sections=2, paragraphs=3).nats(_with_a_slip()).total == math.inf


def _with_a_slip() -> Essay:
    return next(e for e in SLIPPING.essays(50, 6) if SLIPPING.violations(e.text, e.thesis))


def test_every_violation_is_found_with_its_kind_and_distance() -> None:
    """Against the flat document itself: search the value words there."""
    for essay in SLIPPING.essays(20, 7):
        document = SLIPPING.flat(essay)
        words = render(document).replace("<", " <").replace(">", "> ").split()
        tags = words.index("</topic>") - words.index("<topic>") + 2  # <topic> ... </topic> <async>
        expected = []
        for i, sentence in enumerate(essay.sentences):
            if sentence.value != essay.thesis[sentence.kind]:
                start = words.index("<async>") + 1 + i * WORDS
                distance = start + 3 - (words.index(sentence.kind) + 1)
                expected.append(Violation(sentence.kind, i, distance, sentence.value))
        assert SLIPPING.violations(essay.text, essay.thesis, between=tags) == expected


def test_malformed_text_is_reported() -> None:
    source = Essays(kinds=2)
    essay = source.essays(1, 8)[0]
    good = essay.sentences[0].text.split()
    bad = {
        "no words": [],
        "a word short": good[:-1],
        "the value of another kind": [*good[:3], "nell", "."],
        "a kind that is not in use": [*good[:2], "sold", "copper", "."],
        "out of order": good[::-1],
        "no such words": ["what", "is", "this", "even", "?"],
    }
    for name, words in bad.items():
        assert source.violations(" ".join(words), essay.thesis) == [Violation(None, 0, None, None)] * bool(words), name
    mixed = f"{essay.sentences[0].text} what is this even ? {essay.sentences[1].text}"
    assert [v.sentence for v in source.violations(mixed, essay.thesis)] == [1]
    assert source.violations(essay.text, {}) == [], "a kind that the thesis leaves open cannot be violated"


@pytest.mark.parametrize("form", FORMS)
def test_the_judge_knows_right_from_wrong(form: str) -> None:
    essay = SOURCE.essays(1, 9)[0]
    document = FORMS[form](SOURCE, essay)
    assert SOURCE.judge(document).right
    words = text(document).split()
    town = essay.thesis["town"]
    other = next(value for value in SOURCE.words["town"] if value != town)
    last = max(i for i, word in enumerate(words) if word == town)
    for at, word, why in (
        (last, other, "contradicts town"),
        (0, "early", "wrong heading"),
        (6, "nonsense", "not grammatical"),
    ):
        changed = SOURCE.judge(_rewritten(document, [*words[:at], word, *words[at + 1 :]]))
        assert why in changed.problems[0] and sum(changed.spans) == len(changed.spans) - 1
    assert "32 sentences, not 40" in replace(SOURCE, sections=5).judge(document).problems


def _rewritten(document: PlannedDocument, words: list[str]) -> PlannedDocument:
    """The document with other words in its last stage's spans."""
    last, left, spans = document.stages[-1], iter(words), []
    for span in last.spans:
        spans.append(replace(span, text=" ".join(next(left) for _ in span.text.split())))
    return PlannedDocument(document.prompt, (*document.stages[:-1], replace(last, spans=tuple(spans))))


@pytest.mark.parametrize(
    "dials",
    [{"kinds": 0}, {"kinds": 9}, {"values": 1}, {"values": 9}, {"sections": 17}, {"paragraphs": 0}, {"slip": 1.0}],
    ids=str,
)
def test_dials_outside_what_the_words_allow_are_refused(dials: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(dials))} is "):
        Essays(**dials)


@pytest.mark.parametrize("depth", [0, 4])
def test_a_tree_of_a_depth_that_essays_have_not_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="depth of 1 to 3"):
        SOURCE.tree(SOURCE.essays(1, 0)[0], depth)


def test_drafts_keep_the_headings_and_the_first_section_and_nothing_else() -> None:
    """Each section is true to one thesis; over many essays, the theses of the others are independent and uniform."""
    source = replace(SOURCE, kinds=2)
    agree = Counter()
    for seed, essay in enumerate(source.essays(400, 10)):
        draft = source.drafted(essay, seed)
        assert draft.sections[0] == essay.sections[0] and draft.thesis == essay.thesis
        pairs = zip(draft.sentences, essay.sentences, strict=True)
        assert all((a.era, a.subject, a.kind) == (b.era, b.subject, b.kind) for a, b in pairs)
        for section in draft.sections:
            said = {(s.kind, s.value) for paragraph in section for s in paragraph}
            assert len(said) == source.kinds
        agree.update(s.value == essay.thesis[s.kind] for s in draft.sections[2][0])
    assert agree[True] / agree.total() == pytest.approx(1 / source.values, abs=4 * (3 / 16 / 800) ** 0.5)


def test_a_document_without_a_thesis_is_held_to_what_it_states_first() -> None:
    essay = SOURCE.essays(1, 11)[0]
    for depth in (1, 2, 3):
        document = SOURCE.tree(essay, depth, named=False)
        assert document.prompt.startswith("essay in ")
        assert SOURCE.thesis(document) == SOURCE.thesis(SOURCE.tree(essay, depth)) == essay.thesis
    draft = SOURCE.drafted(essay, 1)
    assert SOURCE.judge(SOURCE.outlined(draft, named=False)).spans[0]
    assert not SOURCE.judge(SOURCE.outlined(draft, named=False)).right
