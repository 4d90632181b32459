"""The path-star corpus: one path, found by any search; only its second node is hidden; guessing earns 1/d."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from scipy import stats

from laws.planting import Bug
from pdref.data.path_star import SYLLABLES, Marks, PathStar, teacherless
from pdref.text.document import Item, PlannedDocument, Span, Stage, parse, render
from pdref.text.layout import Grammar, Layout, Role, encode
from pdref.text.tags import Tag

SOURCES = [PathStar(), PathStar(2, 3, 5), PathStar(5, 4, 30), PathStar(3, 10, 85)]
every_source = pytest.mark.parametrize("source", SOURCES, ids=str)
VARIANTS = [
    replace(SOURCES[0], reversed=r, plan=p) for r in (False, True) for p in ("length", "arm", "forwards", "backwards")
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.plan}{', reversed' * v.reversed}")
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


def test_an_unknown_plan_is_named() -> None:
    with pytest.raises(ValueError, match="length, arm, forwards, backwards, not 'oracle'"):
        PathStar(plan="oracle")  # type: ignore[arg-type]


# Variants.


def test_variants_write_what_their_names_say() -> None:
    graph = {
        (r, p): replace(SMALL, reversed=r, plan=p).answered(PROMPT, ()).stages[0].plan[0].topic
        for r in (False, True)
        for p in ("length", "arm", "forwards", "backwards")
    }
    for r in (False, True):
        assert [graph[r, p] for p in ("length", "arm", "forwards", "backwards")] == [
            "path",
            "path mi",
            "path ba mi lo",
            "path lo mi ba",
        ]
    assert replace(SMALL, reversed=True).judge(answered("lo mi ba")).right
    assert not replace(SMALL, reversed=True).judge(answered("ba mi lo")).right
    assert replace(SMALL, reversed=True).is_walk(answered("du ke ba")) and not SMALL.is_walk(answered("du ke ba"))


def test_the_plain_task_is_what_it_was() -> None:
    """The shipped checkpoint and chapter 01 rest on these graphs."""
    (document,) = PathStar().sample(1, seed=0)
    assert document.text == "ji hu be ge jo"
    assert document.prompt == "be ge | ji fi | hu be | fi fo | ge jo | fo do | do ga | ji hu / ji jo"


@every_variant
def test_variants_tell_of_the_same_graphs(variant: PathStar) -> None:
    for plain, document in zip(PathStar().sample(20, seed=8), variant.sample(20, seed=8), strict=True):
        assert document.prompt == plain.prompt
        nodes = document.text.split()
        assert plain.text.split() == (nodes[::-1] if variant.reversed else nodes)
        assert document == variant.answered(document.prompt, nodes)
        assert variant.judge(document).right and all(variant.marks(document)) and variant.is_walk(document)
        assert variant.nats(document).total == 0
        encode(document, PathStar().tokenizer(), Grammar(grid=1, echo=False))  # one tokenizer spells them all


@every_variant
def test_right_paths_under_the_plan_of_another_variant_are_wrong(variant: PathStar) -> None:
    for other in VARIANTS:
        (document,) = other.sample(1, seed=9)
        assert variant.judge(document).right == ((variant.plan, variant.reversed) == (other.plan, other.reversed))


def look_up(variant: PathStar, document: PlannedDocument, forced: bool, rng: random.Random) -> PlannedDocument:
    """The answer of one who looks up edges and copies start and goal, and where several edges lead on guesses.

    Written node by node: what is `forced` is told the true plan and, for each node, the true path so far.
    """
    source, prompt = replace(variant, reversed=False), document.prompt
    start, goal = prompt.split()[-2:]
    after: dict[str, list[str]] = {}
    for a, b in source.edges(prompt):
        after.setdefault(a, []).append(b)
    before = {b: a for a, b in source.edges(prompt)}
    truth = list(source.path(prompt))
    backwards = [goal]
    while backwards[-1] != start:
        backwards.append(before[backwards[-1]])
    guess = rng.choice(after[start])
    walk = [start, guess]
    while len(walk) < variant.length - 1:
        walk.append(after[walk[-1]][0])
    guessed = [*walk, goal]
    if forced or variant.plan == "backwards":
        item = document.stages[0].plan[0]
    else:
        decision = {"length": [], "arm": guessed[1:2], "forwards": guessed}[variant.plan]
        item = Item(" ".join(["path", *decision]), variant.length)
    if variant.reversed or variant.plan == "backwards":
        nodes = backwards if variant.reversed else backwards[::-1]
    elif not forced:
        nodes = guessed
    else:
        second = guess if variant.plan == "length" else truth[1]
        nodes = [start, second, *(after[node][0] for node in truth[1:-1])]
    return PlannedDocument(prompt, (Stage((item,), (Span(" ".join(nodes)),)),))


@every_variant
@pytest.mark.parametrize("forced", [False, True], ids=["alone", "forced"])
@pytest.mark.parametrize("size", [(2, 5, 30), (3, 4, 20)], ids=str)
def test_chances_are_what_looking_up_and_guessing_earns(variant: PathStar, forced: bool, size: tuple) -> None:
    variant = PathStar(*size, variant.reversed, variant.plan)
    rng = random.Random(1)
    found = variant.mark(look_up(variant, document, forced, rng) for document in variant.sample(1500, seed=10))
    chances = variant.chances(forced)
    assert len(chances) == variant.length
    for share, chance in zip(found.places, chances, strict=True):
        assert share == chance == 1 or stats.binomtest(round(share * 1500), 1500, chance).pvalue > 1e-3
    if forced:
        assert found.plans == 1 and found.exact == pytest.approx(min(found.places))
    else:
        assert stats.binomtest(round(found.exact * 1500), 1500, variant.chance).pvalue > 1e-3
        assert found.plans == 1 or stats.binomtest(round(found.plans * 1500), 1500, variant.chance).pvalue > 1e-3


def test_only_a_plan_or_a_path_from_the_goal_is_no_guess() -> None:
    assert [variant.guesses for variant in VARIANTS] == [True, True, True, False, False, True, True, False]
    assert [variant.chance for variant in VARIANTS] == [0.5, 0.5, 0.5, 1, 1, 0.5, 0.5, 1]
    assert PathStar().chances(forced=True) == (1, 0.5, 1, 1, 1)
    assert PathStar().chances(forced=False) == (1, 0.5, 0.5, 0.5, 1)


def test_marks_are_shares_and_count_text_that_is_no_document() -> None:
    right, wrong = answered("ba mi lo"), answered("ba ke lo")
    assert SMALL.mark([right, wrong, None, answered("ba mi lo", topic="walk")]) == Marks(
        places=(0.75, 0.5, 0.75), plans=0.5, exact=0.25, walks=0.5
    )
    assert SMALL.mark([right] * 19 + [wrong]).solved() and not SMALL.mark([right] * 18 + [wrong] * 2).solved()
    with pytest.raises(ValueError, match="no answers"):
        SMALL.mark([])


def test_teacherless_layouts_say_nothing_of_the_path() -> None:
    tokenizer, grammar = SMALL.tokenizer(*PROMPT.split()), Grammar(grid=1, echo=False)
    right, wrong = (encode(answered(text), tokenizer, grammar) for text in ("ba mi lo", "ba ke du"))
    assert not right.token.equal(wrong.token)
    assert teacherless(right).token.equal(teacherless(wrong).token)
    batch = Layout.collate([right, wrong])
    blind = teacherless(batch)
    assert (blind.token == Tag.MASK).sum() == 6
    assert blind.token[batch.role != Role.CONTENT].equal(batch.token[batch.role != Role.CONTENT])
    assert blind.role.equal(batch.role) and blind.position.equal(batch.position)


@pytest.mark.parametrize(
    "bug",
    [
        Bug("pdref.data.path_star:PathStar._ordered", "if self.reversed", "if not self.reversed", ()),
        Bug("pdref.data.path_star:PathStar._item", '"backwards": path[::-1]', '"backwards": path', ()),
        Bug("pdref.data.path_star:PathStar._item", "path[1:2]", "path[:1]", ()),
        Bug("pdref.data.path_star:PathStar.is_walk", "self._ordered(", "list(", ()),
    ],
    ids=[
        "forwards is backwards",
        "a plan from the goal begins at the start",
        "the arm is the start",
        "walks go forwards",
    ],
)
def test_planted_bugs_turn_variants_red(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    test_variants_write_what_their_names_say()
    bug.plant(monkeypatch)
    with pytest.raises(AssertionError):
        test_variants_write_what_their_names_say()
