"""The profiles corpus: it judges itself rightly, and its probabilities are those of its samples."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from scipy import stats

from pdref.data.profiles import Profiles
from pdref.data.profiles_grammar import (
    BODY_COUNTS,
    BODY_TOPICS,
    PRONOUNS,
    RECALL_COUNTS,
    SEASONS,
    SECOND_STAGE,
)
from pdref.text.document import Item, PlannedDocument, Span, Stage, parse, render
from pdref.text.layout import Grammar, encode

SOURCES = {
    f"difficulty {d}, choices {'named' if named else 'left to the text'}": Profiles(d, names_choices=named)
    for d in (1, 2, 3)
    for named in (True, False)
}
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


# Judging.


@every_source
def test_every_sample_is_right(source: Profiles) -> None:
    for document in source.sample(200, seed=1):
        verdict = source.judge(document)
        assert verdict.right and not verdict.problems
        assert verdict.spans == (True,) * sum(len(stage.spans) for stage in document.stages)


# A small grammar of the tests' own, so that tuning the corpus does not touch what the judge is asked.
FACTS = {
    "name": ["ada", "ben"],
    "job": ["baker", "nurse"],
    "city": ["lyon", "oslo"],
    "animal": ["cat", "dog"],
}
DETAILS = {
    "opening": {"slowly": 0.5, "gladly": 0.5},
    "work": {"ledger": 0.5, "lantern": 0.5},
    "pet": {"blanket": 0.5, "basket": 0.5},
}
TEMPLATES = {
    "opening": (
        "{name} came to {city} in {season} and {detail} found work as a {job} ; "
        "{pos} friends said {sub} {detail} belonged there ."
    ),
    "work": (
        "every {season} morning {name} the {job} carried a {detail} across {city} , "
        "because without the {detail} {sub} could not begin ."
    ),
    "pet": ("{pos} {animal} slept by the {detail} all {season} , and {name} would not move the {detail} for anyone ."),
    "recall": "years later {name} still spoke of the {detail} and of that {season} in {city} .",
}


def small(names_choices: bool = True) -> Profiles:
    """A source with the grammar above."""
    source = Profiles(1, names_choices=names_choices)
    templates = {topic: {line: 1.0} for topic, line in TEMPLATES.items()}
    vars(source).update(facts=FACTS, details=DETAILS, templates=templates)  # which it would else compute itself
    return source


# A right document, written by hand. Fillers bring its words to the grid of 4: 22, 21, 19 and 15 of them.
PROMPT = "name ada job baker city lyon animal cat"
WORK = (
    "every spring morning ada the baker carried a ledger across lyon , because without the ledger she could not begin ."
)
PET = "her cat slept by the blanket all spring , and ada would not move the blanket for anyone ."
RIGHT = (
    f"{PROMPT}<topic>opening she spring 6</topic><topic>work 6</topic><topic>pet 5</topic>"
    "<async>ada came to lyon in spring and slowly found work as a baker ; "
    "her friends said she slowly belonged there .<pad><pad></async>"
    f"<async>{WORK}<pad><pad><pad></async><async>{PET}<pad></async>"
    "<sync/><topic>recall pet 4</topic><async>"
    "years later ada still spoke of the blanket and of that spring in lyon .<pad></async><eos>"
)
SECOND_STAGE_TEXT = RIGHT[RIGHT.index("<sync/>") : -len("<eos>")]


def test_the_document_written_by_hand_is_right() -> None:
    assert small().judge(parse(RIGHT)).problems == ()


# What is replaced (everywhere), by what, which spans that makes wrong, and what the judge says.
OK, NO = True, False
CORRUPTIONS: dict[str, tuple[str, str, Sequence[bool], str]] = {
    "a wrong fact": ("across lyon", "across oslo", [OK, NO, OK, OK], "'work' of stage 0 contradicts city"),
    "a wrong name": ("later ada", "later ben", [OK, OK, OK, NO], "'recall pet' of stage 1 contradicts name"),
    "another prompt": ("animal cat", "animal dog", [OK, OK, NO, OK], "'pet' of stage 0 contradicts animal"),
    "two wrong facts": ("ada the baker", "ben the nurse", [OK, NO, OK, OK], "contradicts name, job"),
    "a wrong pronoun": ("ledger she", "ledger he", [OK, NO, OK, OK], "contradicts sub"),
    "pronouns that clash": (
        "said she",
        "said he",
        [NO, OK, OK, OK],
        "'opening she spring' of stage 0 is not",
    ),
    "a wrong season": ("all spring", "all winter", [OK, OK, NO, OK], "contradicts season"),
    "another plan": ("she spring 6", "they winter 6", [NO, NO, NO, NO], "contradicts season, sub"),
    "a detail not repeated": (
        "without the ledger",
        "without the lantern",
        [OK, NO, OK, OK],
        "is not grammatical",
    ),
    "a detail of another topic": ("ledger", "window", [OK, NO, OK, OK], "is not grammatical"),
    "a recall of another detail": ("of the blanket", "of the ledger", [OK, OK, OK, NO], "contradicts detail"),
    "a recall of an unknown thing": ("of the blanket", "of the boat", [OK, OK, OK, NO], "is not grammatical"),
    "a fact that is none": ("the baker", "the wizard", [OK, NO, OK, OK], "is not grammatical"),
    "a word dropped": ("still spoke", "spoke", [OK, OK, OK, NO], "is not grammatical"),
    "a word too many": ("could not begin", "could not ever begin", [OK, NO, OK, OK], "is not grammatical"),
    "words swapped": ("a ledger across", "across a ledger", [OK, NO, OK, OK], "is not grammatical"),
    "spans in another order": (
        f"<async>{WORK}<pad><pad><pad></async><async>{PET}<pad></async>",
        f"<async>{PET}<pad></async><async>{WORK}<pad><pad><pad></async>",
        [OK, NO, NO, NO],  # nothing was told of a pet that could be recalled
        "'pet' of stage 0 is not grammatical",
    ),
    "too long a plan": ("recall pet 4", "recall pet 5", [OK, OK, OK, NO], "is not as long as planned"),
    "a cell of fillers": (
        "lyon .<pad></async><eos>",
        "lyon .<pad><pad><pad><pad><pad></async><eos>",
        [OK, OK, OK, NO],
        "is not as long as planned",
    ),
    "a plan that wastes a cell": (
        "recall pet 4|lyon .<pad></async><eos>",
        "recall pet 5|lyon .<pad><pad><pad><pad><pad></async><eos>",
        [OK, OK, OK, NO],
        "is not as long as planned",
    ),
    "a filler missing": ("anyone .<pad>", "anyone .", [OK, OK, NO, OK], "is not as long as planned"),
    "an empty span": (f"{WORK}<pad>", "<pad>", [OK, NO, OK, OK], "is not grammatical"),
    "a topic that is none": (
        "work 6",
        "hobby 6",
        [OK, NO, OK, OK],
        "the plan names the topics ['hobby', 'pet']",
    ),
    "a topic with a choice": (
        "work 6",
        "work hard 6",
        [OK] * 4,
        "the plan names the topics ['work hard', 'pet']",
    ),
    "no opening": (
        "opening she",
        "beginning she",
        [NO, OK, OK, OK],
        "the plan opens with 'beginning she spring'",
    ),
    "a choice that is none": (
        "opening she",
        "opening it",
        [OK] * 4,
        "the plan opens with 'opening it spring'",
    ),
    "a season that is none": ("she spring 6", "she april 6", [NO, NO, NO, NO], "the plan opens with"),
    "choices left out": ("opening she spring", "opening", [OK] * 4, "the plan opens with 'opening'"),
    "a topic twice": (
        f"<topic>pet 5</topic>|<async>{PET}<pad></async>",
        f"<topic>work 6</topic>|<async>{WORK}<pad><pad><pad></async>",
        [OK, OK, OK, NO],
        "the plan names the topics ['work', 'work']",
    ),
    "a single topic": (
        f"<topic>work 6</topic>|<async>{WORK}<pad><pad><pad></async>",
        "|",
        [OK, OK, OK],
        "the plan names the topics ['pet']",
    ),
    "a recall of what was not told": ("recall pet", "recall game", [OK, OK, OK, NO], "the second plan names"),
    "a recall of the opening": ("recall pet", "recall opening", [OK, OK, OK, NO], "['recall opening']"),
    "a second stage that is no recall": (
        "recall pet 4",
        "pet 5",
        [OK, OK, OK, NO],
        "the second plan names the topics ['pet']",
    ),
    "a second stage that begins again": (
        SECOND_STAGE_TEXT,
        f"<sync/><topic>pet 5</topic><async>{PET}<pad></async>",
        [OK] * 4,
        "the second plan names the topics ['pet']",
    ),
    "a third stage": (SECOND_STAGE_TEXT, SECOND_STAGE_TEXT * 2, [OK] * 5, "3 stages"),
}


def corrupted(name: str) -> PlannedDocument:
    before, after, _, _ = CORRUPTIONS[name]
    text = RIGHT
    for old, new in zip(before.split("|"), after.split("|"), strict=True):  # in several places at once
        assert old in text
        text = text.replace(old, new)
    return parse(text)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_kind_of_corruption_is_judged_wrong_where_it_is(name: str) -> None:
    _, _, spans, problem = CORRUPTIONS[name]
    verdict = small().judge(corrupted(name))
    assert verdict.spans == tuple(spans)
    assert problem in "\n".join(verdict.problems)
    assert not verdict.right


def test_with_choices_left_to_the_text_its_spans_must_still_agree() -> None:
    source = small(names_choices=False)
    text = RIGHT.replace("opening she spring", "opening")
    assert source.judge(parse(text)).right
    everywhere = text.replace("spring", "winter").replace(" her ", " their ").replace(">her ", ">their ")
    assert source.judge(parse(everywhere.replace(" she ", " they "))).right, "any choice will do"
    for before, after, slot in (("ledger she", "ledger they", "sub"), ("all spring", "all winter", "season")):
        verdict = source.judge(parse(text.replace(before, after)))
        assert sum(verdict.spans) == 3 and f"contradicts {slot}" in verdict.problems[0]
    assert not source.judge(parse(RIGHT)).right, "this source names no choices in its plan"


# Probabilities.


@every_source
def test_the_mean_surprisal_of_samples_is_the_entropy(source: Profiles) -> None:
    drawn = [source.nats(document) for document in source.sample(800, seed=2)]
    for role in ("plan", "tag", "content", "total"):
        values = [getattr(nats, role) for nats in drawn]
        mean = math.fsum(values) / len(values)
        error = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) / (len(values) - 1))
        assert abs(mean - getattr(source.entropy(), role)) <= 4 * error + 1e-9, role


def test_choices_cost_the_same_wherever_they_are_paid() -> None:
    for difficulty in (1, 2, 3):
        named, unnamed = (Profiles(difficulty, names_choices=n).entropy() for n in (True, False))
        assert named.total == pytest.approx(unnamed.total)
        assert named.plan - unnamed.plan == pytest.approx(math.log(len(PRONOUNS) * len(SEASONS)))


def written(
    source: Profiles,
    stages: Sequence[Sequence[tuple[str, str, int]]],
    pronoun: str = "she",
    season: str = "spring",
) -> PlannedDocument:
    """A document of (topic, detail, number of the template) triples, composed without the sampler."""
    slots = {key: values[0] for key, values in source.facts.items()} | PRONOUNS[pronoun] | {"season": season}
    opening = f"opening {pronoun} {season}" if source.names_choices else "opening"
    built = []
    for triples in stages:
        plan, spans = [], []
        for topic, detail, template in triples:
            text = list(source.templates[topic.split()[0]])[template].format(**slots, detail=detail)
            count = len(text.split())
            cells = -(-count // source.grammar.grid)
            plan.append(Item(opening if topic == "opening" else topic, cells))
            spans.append(Span(text, cells * source.grammar.grid - count))
        built.append(Stage(tuple(plan), tuple(spans)))
    return PlannedDocument(" ".join(f"{key} {values[0]}" for key, values in source.facts.items()), tuple(built))


CHOICES = list(itertools.product(PRONOUNS, SEASONS))


def plans() -> Iterator[list[list[str]]]:
    """All topics that a document may have, stage by stage."""
    for count in BODY_COUNTS:
        for body in itertools.permutations(BODY_TOPICS, count):
            yield [["opening", *body]]
            for recalls in RECALL_COUNTS:
                for recalled in itertools.permutations(body, recalls):
                    yield [["opening", *body], [f"recall {topic}" for topic in recalled]]


def test_the_probabilities_of_all_plans_sum_to_one() -> None:
    # At difficulty 1 a topic has one template, so a plan is its topics and choices.
    source = Profiles(1)
    first = {topic: next(iter(details)) for topic, details in source.details.items()}
    total = 0.0
    for stages in plans():
        triples = [[(topic, first[topic.split()[-1]], 0) for topic in topics] for topics in stages]
        nats = source.nats(written(source, triples))
        total += math.exp(-nats.plan - nats.tag)
    assert total * len(PRONOUNS) * len(SEASONS) == pytest.approx(1)


@pytest.mark.parametrize("named", [True, False])
def test_all_choices_are_equally_likely(named: bool) -> None:
    source = Profiles(2, names_choices=named)
    stage = [(topic, next(iter(source.details[topic])), 1) for topic in ("opening", "work", "pet")]
    documents = [written(source, [stage], *choice) for choice in CHOICES]
    assert len({source.nats(document) for document in documents}) == 1


@pytest.mark.parametrize("named", [True, False])
def test_the_probabilities_of_all_texts_under_given_topics_sum_to_those_of_the_topics(named: bool) -> None:
    # Opening, work, pet, then a recall of the pet, at difficulty 2, in all templates and with all details.
    source = Profiles(2, names_choices=named)
    ways = {topic: range(len(templates)) for topic, templates in source.templates.items()}
    spans = [itertools.product(source.details[topic], ways[topic]) for topic in ("opening", "work", "pet")]
    total = 0.0
    for (how, first), (work, second), (pet, third), recall in itertools.product(*spans, ways["recall"]):
        stages = [
            [("opening", how, first), ("work", work, second), ("pet", pet, third)],
            [("recall pet", pet, recall)],
        ]
        total += math.exp(-source.nats(written(source, stages)).total)
    # By hand: a body of 2 (of 2 to 4), work and pet of 5 topics in order, a second stage, a recall (of 1, 2),
    # pet (of 2); and one of 3 pronouns and 4 seasons, which the sum above keeps fixed.
    assert total == pytest.approx(1 / 3 * 1 / (5 * 4) * SECOND_STAGE * 1 / 2 * 1 / 2 * 1 / 12)


def test_given_a_plan_the_probabilities_of_all_contents_sum_to_one() -> None:
    source = Profiles(3)
    topics = ["opening", "home", "food"]
    per_topic = []
    for topic in topics:  # the plan asks for the length of each topic's first template
        cells = [source.cells(template) for template in source.templates[topic]]
        fitting = [n for n, count in enumerate(cells) if count == cells[0]]
        per_topic.append([(topic, detail, n) for detail in source.details[topic] for n in fitting])
    contents = [source.nats(written(source, [triples])) for triples in itertools.product(*per_topic)]
    assert len({nats.plan for nats in contents}) == 1, "the plan is the same in all of them"
    assert sum(math.exp(-nats.content) for nats in contents) == pytest.approx(1)


@pytest.mark.parametrize("name", ["a wrong fact", "a third stage", "a filler missing", "choices left out"])
def test_what_the_source_cannot_write_is_infinitely_surprising(name: str) -> None:
    nats = small().nats(corrupted(name))
    assert nats.plan == nats.tag == nats.content == nats.total == math.inf


def test_samples_follow_the_stated_probabilities() -> None:
    source, count = Profiles(3), 1000
    documents = source.sample(count, seed=3)
    stages = Counter(len(document.stages) for document in documents)
    sizes = Counter(len(document.stages[0].plan) - 1 for document in documents)
    hows = Counter(  # the opening's detail stands twice in each of its templates
        next(word for word in document.stages[0].spans[0].text.split() if word in source.details["opening"])
        for document in documents
    )
    seen_expected = [
        ([stages[1], stages[2]], [1 - SECOND_STAGE, SECOND_STAGE]),
        ([sizes[n] for n in BODY_COUNTS], [1 / 3] * 3),
        ([hows[how] for how in source.details["opening"]], list(source.details["opening"].values())),
    ]
    for seen, expected in seen_expected:
        assert sum(seen) == count
        assert stats.chisquare(seen, [count * p for p in expected]).pvalue > 1e-3


# The rest of the contract.


@every_source
def test_a_seed_is_a_corpus(source: Profiles) -> None:
    corpus = source.sample(30, seed=5)
    assert source.sample(30, seed=5) == corpus
    assert source.sample(10, seed=5) == corpus[:10], "a smaller corpus is the beginning of a larger one"
    assert source.sample(30, seed=6) != corpus


@pytest.mark.parametrize("grid", [1, 4, 10])
@pytest.mark.parametrize("echo", [True, False])
def test_the_tokenizer_and_the_layout_take_every_document(grid: int, echo: bool) -> None:
    source = Profiles(3, Grammar(grid, echo))
    tokenizer = source.tokenizer()
    for document in source.sample(60, seed=7):
        assert source.judge(document).right
        ids = encode(document, tokenizer, source.grammar).token[0].tolist()
        assert parse(tokenizer.decode(ids[1:]), echo) == document == parse(render(document, echo), echo)


def test_each_step_of_the_dial_adds_to_what_there_is_to_know() -> None:
    for easier, harder in itertools.pairwise(Profiles(difficulty) for difficulty in (1, 2, 3)):
        for sets in ("facts", "details", "templates"):
            for key, values in getattr(easier, sets).items():
                more = list(getattr(harder, sets)[key])
                assert more[: len(values)] == list(values) and len(more) > len(values)


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_chances_sum_to_one_and_only_the_hardest_prompt_is_shuffled(difficulty: int) -> None:
    source = Profiles(difficulty)
    chances = [*source.details.values(), *source.templates.values(), *source.lengths.values()]
    assert [sum(chance.values()) for chance in chances] == pytest.approx([1] * len(chances))
    orders = {tuple(document.prompt.split()[::2]) for document in source.sample(20, seed=8)}
    assert (len(orders) > 1) == (difficulty == 3)


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_every_opening_tells_the_choices_that_the_plan_may_leave_out(difficulty: int) -> None:
    # Or the text of two choices would be one, and its surprisal less than that of either.
    source = Profiles(difficulty, names_choices=False)
    for template in range(difficulty):
        stage = [(topic, next(iter(source.details[topic])), 0) for topic in ("opening", "home", "game")]
        stage[0] = (*stage[0][:2], template)
        openings = {written(source, [stage], *choice).stages[0].spans[0] for choice in CHOICES}
        assert len(openings) == len(CHOICES)


def test_difficulty_is_dearer_at_every_step() -> None:
    first, second, third = (Profiles(difficulty).entropy() for difficulty in (1, 2, 3))
    assert first.content < second.content < third.content
    assert first.total < second.total < third.total
