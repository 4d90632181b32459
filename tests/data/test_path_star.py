"""The path-star corpus: one path, found by any search; only its second node is hidden; guessing earns 1/d."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from scipy import stats

from pdref.data.path_star import SYLLABLES, PathStar
from pdref.text.document import Item, PlannedDocument, Span, Stage, parse, render
from pdref.text.layout import Grammar, Role, encode

SOURCES = [PathStar(), PathStar(2, 3, 5), PathStar(5, 4, 30), PathStar(3, 10, 85)]
every_source = pytest.mark.parametrize("source", SOURCES, ids=str)
PROMPT = "ba ke | ke du | ba mi | mi lo / ba lo"  # two arms: ba ke du, ba mi lo
SMALL = PathStar(2, 3)


def answered(text: str, prompt: str = PROMPT, topic: str = "path", length: int = 3) -> PlannedDocument:
    return PlannedDocument(prompt, (Stage((Item(topic, length),), (Span(text),)),))


def paths(prompt: str) -> list[list[str]]:
    """Every walk from start to goal, by trying all of them: an oracle that shares nothing with the source."""
    listed, question = prompt.split(" / ")
    start, goal = question.split()
    after: dict[str, list[str]] = {}
    for edge in listed.split(" | "):
        a, b = edge.split()
        after.setdefault(a, []).append(b)
    found, open_walks = [], [[start]]
    while open_walks:
        walk = open_walks.pop()
        found += [walk] if walk[-1] == goal else []
        open_walks += [[*walk, node] for node in after.get(walk[-1], [])]
    return found


@every_source
def test_the_answer_is_the_only_path_from_start_to_goal(source: PathStar) -> None:
    for document in source.sample(50, seed=1):
        assert paths(document.prompt) == [document.text.split()]
        assert source.path(document.prompt) == tuple(document.text.split())
        assert source.judge(document).right and source.judge(document).spans == (True,)
        assert all(source.marks(document)) and source.is_walk(document)
        assert len(document.text.split()) == source.length == document.stages[0].plan[0].length


@every_source
def test_only_the_second_node_has_several_candidates(source: PathStar) -> None:
    for document in source.sample(50, seed=2):
        edges = source.edges(document.prompt)
        assert len({node for edge in edges for node in edge}) == source.nodes
        follow = [sum(a == node for a, _ in edges) for node in document.text.split()]
        assert follow == [source.degree, *[1] * (source.length - 2), 0]
        assert all(sum(b == node for _, b in edges) == 1 for node in document.text.split()[1:]), "backwards it is plain"


def test_edges_and_goal_come_in_any_order() -> None:
    source = PathStar(2, 3, 5)
    documents = source.sample(6000, seed=3)
    places = Counter()
    for document in documents:
        places[source.edges(document.prompt).index(tuple(document.text.split()[:2]))] += 1
    assert len(places) == 4 and stats.chisquare(list(places.values())).pvalue > 1e-3
    starts = Counter(document.text.split()[0] for document in documents)
    assert len(starts) == 5 and stats.chisquare(list(starts.values())).pvalue > 1e-3


@pytest.mark.parametrize("source", [PathStar(), PathStar(5, 4, 30)], ids=str)
def test_following_edges_and_guessing_the_arm_earns_chance(source: PathStar) -> None:
    rng, exact = random.Random(0), 0
    for document in source.sample(2000, seed=4):
        after: dict[str, list[str]] = {}
        for a, b in source.edges(document.prompt):
            after.setdefault(a, []).append(b)
        walk = [document.prompt.split()[-2]]
        while walk[-1] in after:
            walk.append(rng.choice(after[walk[-1]]))
        guess = answered(" ".join(walk), document.prompt, length=source.length)
        assert source.is_walk(guess), "locally it is right"
        marks = source.marks(guess)
        assert marks[0] and len(set(marks[1:])) == 1, "after the second node all is decided"
        assert source.judge(guess).right == all(marks)
        exact += source.judge(guess).right
    assert source.chance == 1 / source.degree
    assert stats.binomtest(exact, 2000, source.chance).pvalue > 1e-3


@pytest.mark.parametrize(
    ("document", "marks", "walks"),
    [
        (answered("ba mi lo"), (True, True, True), True),
        (answered("ba ke du"), (True, False, False), True),
        (answered("ba ke lo"), (True, False, True), False),
        (answered("ba mi"), (True, True, False), True),
        (answered("mi lo"), (False, False, False), True),
        (answered("ba mi lo lo"), (True, True, True), False),
        (answered(""), (False, False, False), True),
    ],
    ids=lambda value: value.text if isinstance(value, PlannedDocument) else "",
)
def test_paths_are_marked_place_by_place(document: PlannedDocument, marks: tuple[bool, ...], walks: bool) -> None:
    assert SMALL.marks(document) == marks
    assert SMALL.is_walk(document) == walks
    right = document.text == "ba mi lo"
    assert SMALL.judge(document).right == right
    assert SMALL.judge(document).spans == (right,)


@pytest.mark.parametrize(
    "wrong",
    [
        answered("ba mi lo", length=4),
        answered("ba mi lo", topic="walk"),
        replace(answered("ba mi lo"), stages=(Stage((Item("path", 3),), (Span("ba mi lo", 1),)),)),
        replace(answered("ba mi lo"), stages=(Stage((Item("path", 3),) * 2, (Span("ba mi lo"),) * 2),)),
        replace(answered("ba mi lo"), stages=answered("ba mi lo").stages * 2),
    ],
    ids=["length", "topic", "filler", "two spans", "two stages"],
)
def test_a_right_path_under_a_wrong_plan_is_wrong(wrong: PlannedDocument) -> None:
    verdict = SMALL.judge(wrong)
    assert not verdict.right and verdict.problems
    assert len(verdict.spans) == sum(len(stage.spans) for stage in wrong.stages)


def test_the_prompt_decides_the_answer() -> None:
    assert SMALL.nats(answered("ba mi lo")).total == 0
    assert SMALL.nats(answered("ba ke du")).total == float("inf")


@every_source
def test_documents_are_spelled_and_laid_out(source: PathStar) -> None:
    tokenizer = source.tokenizer()
    for document in source.sample(20, seed=5):
        for echo in (False, True):
            assert parse(render(document, echo), echo) == document
            layout = encode(document, tokenizer, Grammar(grid=1, echo=echo))
            content = layout.token[layout.role == Role.CONTENT].tolist()
            assert tokenizer.decode(content) == document.text


def test_the_seed_decides_the_sample() -> None:
    assert PathStar().sample(5, seed=6) == PathStar().sample(5, seed=6) != PathStar().sample(5, seed=7)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 5, 30), "at least 2 arms"),
        ((2, 2, 30), "at least 3 nodes"),
        ((2, 5, 8), "9 nodes need as many"),
        ((2, 5, len(SYLLABLES) + 1), f"there are {len(SYLLABLES)}"),
    ],
)
def test_impossible_sizes_are_named(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathStar(*sizes)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "a prompt is"),
        ("ba ke | ke du", "a prompt is"),
        ("ba ke | ke / ba ke", "a prompt is"),
        ("ba ke / ba", "a prompt is"),
        ("ba ke / ba ke / ba ke", "a prompt is"),
        ("ba ke / ba du", "no path leads from 'ba' to 'du'"),
        ("ke du | du ke / ba ke", "no path leads from 'ba' to 'ke'"),
    ],
)
def test_prompts_that_ask_for_no_path_are_refused(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SMALL.path(prompt)
