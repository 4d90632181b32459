"""The laws of outlines and hierarchies; each raises AssertionError where the library breaks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch

from laws import worlds
from laws.checks import influence, result
from laws.seers import Exact, Grammatical, Scripted
from pdref.methods import hierarchy, outline
from pdref.methods.decoding import Draw, Speaker
from pdref.methods.generation import Generation
from pdref.methods.planning import Bounds
from pdref.model.transformer import Config, Transformer
from pdref.text.document import Item, PlannedDocument, Span, Stage
from pdref.text.filling import Filling, filling_mask, may_read
from pdref.text.layout import NO_SPAN, Grammar, Layout, Role, encode
from pdref.text.tags import CONTENT_FORBIDS, Tag
from pdref.text.tokenizer import Tokenizer

WORDS = ["ant", "bee", "cat", "dog", "sun", "moon", "ada", "bo", "cy", ";", *map(str, range(20))]
TOKENIZER = Tokenizer.words(WORDS)
GRAMMAR = Grammar(grid=1, echo=True)
BOUNDS = Bounds(items=20)
FILLINGS: tuple[Filling, ...] = ("parallel", "sequential", "drafts")


def _document(prompt: str, *levels: list[tuple[str, str]]) -> PlannedDocument:
    stages = (
        Stage(tuple(Item(topic, len(text.split())) for topic, text in level), tuple(Span(text) for _, text in level))
        for level in levels
    )
    return PlannedDocument(prompt, tuple(stages))


def documents() -> list[PlannedDocument]:
    """Of depth 1, 2 and 3, with sections of unequal lengths and a level of one item."""
    return [
        _document("ada", [("sun", "ant bee cat"), ("moon sun", "dog"), ("sun", "ant ant ant bee bee")]),
        _document(
            "bo bo",
            [("sun", "sun 2 ; moon 1 ;"), ("moon", "ant 4 ;")],
            [("sun", "ant bee"), ("moon", "cat"), ("ant", "dog dog dog ant")],
        ),
        _document("cy", [("moon", "bee 3 ;")], [("bee", "cat 2 ;")], [("cat", "dog ant")]),
        _document(
            "cy bo",
            [("moon", "bee 3 ; cat 3 ;")],
            [("bee", "cat 2 ;"), ("cat", "bee 1 ;")],
            [("cat", "dog ant"), ("bee", "ant")],
        ),
    ]


@cache
def oracle() -> Speaker:
    """Knows every document by its prompt."""
    layouts = [encode(document, TOKENIZER, GRAMMAR) for document in documents()]
    return Speaker(Exact(layouts, len(TOKENIZER), 160), TOKENIZER, GRAMMAR)


def an_oracle_is_recovered(filling: Filling = "parallel", cached: bool = True) -> list[Generation]:
    """Any depth, token for token, and the history leads there; `outline` stops after the first level."""
    targets = documents()
    found = hierarchy.sample(oracle(), [d.prompt for d in targets], filling, bounds=BOUNDS, cached=cached)
    for generation, target in zip(found, targets, strict=True):
        assert generation.document == target, generation.problem
        assert generation.tokens == encode(target, TOKENIZER, GRAMMAR).token[0].tolist()
        assert (generation.problem, generation.cuts) == (None, ())
        assert worlds.replayed(generation) == generation.tokens
    [shallow] = outline.sample(oracle(), [targets[1].prompt], filling, cached=cached)
    assert shallow.document == PlannedDocument(targets[1].prompt, targets[1].stages[:1])
    return found


def costs_are_the_closed_forms(filling: Filling = "parallel", at_once: int | None = None, cached: bool = True) -> None:
    """A section of n tokens takes n + 1 forwards, in a pass; the critical path is that of the longest of each turn.

    Level 0 costs a read and a forward for each of its tokens, a later level a read of what is given.
    """
    targets = documents()
    found = hierarchy.sample(
        oracle(), [d.prompt for d in targets], filling, bounds=BOUNDS, at_once=at_once, cached=cached
    )
    for generation, target in zip(found, targets, strict=True):
        plan = sum(len(TOKENIZER.encode(str(item))) + 2 for item in target.stages[0].plan)
        path = nfe = 1 + plan + (len(target.stages) - 1)
        for stage in target.stages:
            forwards = [item.length + 1 for item in stage.plan]
            size = 1 if filling == "sequential" else at_once or len(forwards)
            turns = [max(forwards[i : i + size]) for i in range(0, len(forwards), size)]
            passes = 1 + (filling == "drafts")
            path += passes * sum(turns)
            nfe += passes * sum(forwards)
        assert (generation.critical_path, generation.nfe) == (path, nfe), target.prompt


# A random transformer that writes outlines and sections as its weights will have it.

PROMPTS = ["ada", "bo bo cy", "cy ada dee dee", "dee", "bo"]
BY_HAND = [(Item("sun", 2), Item("1920s", 5)), (Item("moon", 3),), None, (Item("4ever", 1),) * 3, None]
SEEDS = [1, 2, 3, 4, 5]


def _write(
    filling: Filling, temperature: float, prompts: Sequence[str] = PROMPTS, of: slice = slice(None), **how: object
) -> list[Generation]:
    draw = Draw(temperature, seeds=SEEDS[of])
    return outline.sample(worlds.inventor(context=200), prompts[of], filling, draw, BY_HAND[of], **how)  # type: ignore[arg-type]


def side_by_side_is_one_by_one(filling: Filling = "parallel", temperature: float = 0.0) -> None:
    """However many sections are written at once, the text is the same, in as many evaluations and a longer path."""
    together = _write(filling, temperature)
    for at_once in (1, 2):
        for one, other in zip(together, _write(filling, temperature, at_once=at_once), strict=True):
            assert one.tokens == other.tokens and one.nfe == other.nfe
            assert one.critical_path <= other.critical_path
    alone = _write(filling, temperature, at_once=1)
    if filling != "sequential":
        assert all(a.critical_path < b.critical_path for a, b in zip(together[3:4], alone[3:4], strict=True))


def company_and_cache_change_nothing(filling: Filling = "parallel", temperature: float = 0.0) -> list[Generation]:
    """Alone, in a batch, cached and uncached, a request with its seed gives the same result, with its history."""
    batch = _write(filling, temperature)
    together = [result(generation) for generation in batch]
    assert [result(g) for g in _write(filling, temperature, cached=False)] == together, "cached = uncached"
    for b in range(len(PROMPTS)):
        [alone] = _write(filling, temperature, of=slice(b, b + 1))
        assert result(alone) == together[b], f"alone = in a batch, prompt {b}"
    assert all(worlds.replayed(generation) == generation.tokens for generation in batch)
    return batch


def trees_grow_the_same_uncached(filling: Filling = "drafts") -> None:
    """Levels that read levels: with a cache and without, and one after another."""
    prompts = [d.prompt for d in documents()]
    speaker = branching()
    draws = [Draw(1.0, seeds=[seed] * len(prompts)) for seed in range(6)]
    depths = set()
    for draw in draws:
        found, uncached, alone = (
            hierarchy.sample(speaker, prompts, filling, draw, bounds=Bounds(6, 60, 3), **how)
            for how in ({}, {"cached": False}, {"at_once": 1})
        )
        assert [result(g) for g in found] == [result(g) for g in uncached]
        assert [g.tokens for g in found] == [g.tokens for g in alone]
        depths |= {g.tokens.count(Tag.SYNC) for g in found}
    assert depths >= {1, 2}, f"trees of several depths grew: {depths}"


@cache
def branching() -> Speaker:
    """A random float64 transformer under a grammar in which every span is a list of items, so that levels go on."""
    torch.manual_seed(3)
    inner = Transformer(Config(len(TOKENIZER), 400, layers=2, width=24, heads=2, key_heads=1)).double()
    with torch.no_grad():
        for matrix in inner.blocks.parameters():
            matrix.mul_(3 if matrix.dim() > 1 else 1)
    ids = TOKENIZER.encode
    names, things, number, end = ids("ada bo cy"), ids("ant bee sun moon"), ids("3 6"), ids(";")
    follows: list[tuple[list[int], list[int]]] = [
        ([Tag.BOS, Tag.SYNC, *names], [Tag.TOPIC]),
        ([Tag.TOPIC], things),
        (things, number),
        (number, [Tag.END_TOPIC, *end]),
        (end, things),
        ([Tag.END_TOPIC], [Tag.TOPIC, Tag.ASYNC]),
        ([Tag.ASYNC], things),
        ([Tag.END_ASYNC], [Tag.SYNC, Tag.EOS]),
        ([Tag.MASK, Tag.EOS, Tag.PAD], list(range(len(TOKENIZER)))),
    ]
    allowed = torch.zeros(len(TOKENIZER), len(TOKENIZER), dtype=torch.bool)
    for tokens, after in follows:
        allowed[torch.tensor(tokens)[:, None], torch.tensor(after)] = True
    return Speaker(Grammatical(inner, allowed), TOKENIZER, Grammar(grid=1, echo=False))


# The rule, and that training and sampling both keep it.


def reads(layout: Layout, query: int, key: int, filling: Filling) -> bool:
    """The rule once more, in the words of the brief."""
    q, k = ({name: int(f[0, i]) for name, f in layout.items()} for i in (query, key))
    if k["role"] == Role.PAD:
        return False
    siblings = q["span"] != NO_SPAN and k["span"] != NO_SPAN and q["stage"] == k["stage"]
    past = k["position"] <= q["position"]
    if k["stream"]:  # a draft
        if q["stream"]:
            return siblings and q["span"] == k["span"] and past
        return filling == "drafts" and siblings
    if siblings and q["stream"]:
        return False  # a draft reads no finished section of its stage
    if siblings and filling != "sequential":
        return q["span"] == k["span"] and past
    return past


def with_drafts(layout: Layout, drafts: Layout | None = None) -> Layout:
    """A document and a second copy of its spans."""
    return Layout.concatenate([layout, (drafts or layout).span_copy()[0]])


def information_stays_where_it_may(filling: Filling = "parallel") -> None:
    """d(output i) / d(embedding j) is 0 wherever the rule, closed under layers, forbids, and not where it allows."""
    model = worlds.inventor().model.inner  # type: ignore[union-attr]
    layout = with_drafts(worlds.layouts(Grammar(grid=1))[2])
    T = layout.shape[1]
    allowed = torch.tensor([[reads(layout, i, j, filling) for j in range(T)] for i in range(T)])
    found = influence(model, layout, filling_mask(layout, layout, filling), range(T))  # type: ignore[arg-type]
    twice = (allowed.double() @ allowed.double()) > 0  # what the tokens that a token reads have read
    assert not (found[~twice] > 0).any(), "a token's output moves with a token that it may not see"
    assert (found[allowed] > 0).all(), "a token's output does not move with a token that it may see"


def training_is_sampling(filling: Filling = "parallel") -> None:
    """At temperature 0, what sampling wrote is what the training forward finds most probable at every drawn place."""
    speaker = worlds.inventor(context=200)
    never = torch.tensor([int(tag) for tag in CONTENT_FORBIDS])
    drawn = 0
    for generation in _write(filling, 0.0):
        if generation.problem:
            continue
        layout = worlds.read_layout(generation.tokens, speaker.grammar.echo)
        drafts = _drafts(generation, layout) if filling == "drafts" else None
        both = layout if drafts is None else with_drafts(layout, drafts)
        hidden = speaker.model(both.token, both.position, filling_mask(both, both, filling))
        scores = speaker.model.logits(hidden)[0]
        content = (both.role[0] == Role.CONTENT).nonzero()[:, 0]
        free = scores[content - 1].index_fill(1, never, float("-inf"))
        assert torch.equal(free.argmax(-1), both.token[0, content]), filling
        drawn += len(content)
        nats = outline.nats(speaker.model, layout, filling, drafts)[0]
        exact = -scores.log_softmax(-1)[content - 1, both.token[0, content]]
        assert torch.allclose(nats[content], exact), "the loss is of these very tokens"
    assert drawn > 20


def _drafts(generation: Generation, layout: Layout) -> Layout:
    """What the first pass wrote: at each place of the content, the first token that was put there."""
    token = layout.token.clone()
    seen: set[int] = set()
    for event in generation.history:
        if event.phase == "write":
            for position, written in zip(event.positions, event.tokens, strict=True):
                if position not in seen:
                    token[0, position] = written
                    seen.add(position)
    return replace(layout, token=token)


def the_loss_scores_what_is_drawn() -> None:
    """Level 0's plan and its end, all content, and what ends a stage; not what is given. Marked by hand."""
    layout = encode(documents()[1], TOKENIZER, GRAMMAR)
    text = [TOKENIZER.decode([token]) for token in layout.token[0].tolist()]
    marks = {True: [], False: []}
    for word, mark in zip(text, outline.drawn(layout)[0].tolist(), strict=True):
        marks[mark].append(word)
    prompt = "<bos> bo bo"
    given = f"{prompt} sun </async> <async> moon </async>"  # echoes and closings of stage 0, but for its first <async>
    given += " <topic> sun 2 </topic> <topic> moon 1 </topic> <topic> ant 4 </topic>"
    given += " <async> sun </async> <async> moon </async> <async> ant </async>"
    drawn = "<topic> sun 6 </topic> <topic> moon 3 </topic> <async> sun 2 ; moon 1 ; ant 4 ; <sync/>"
    drawn += " ant bee cat dog dog dog ant <eos>"
    assert " ".join(marks[True]) == drawn
    assert " ".join(marks[False]) == given


def a_level_reads_the_whole_level_above() -> None:
    """A token of a level moves with every token of the level above, whichever branch it is of, and of no sibling."""
    model = branching().model.inner  # type: ignore[union-attr]
    layout = encode(documents()[3], TOKENIZER, GRAMMAR)
    span, stage = layout.span[0], layout.stage[0]
    found = influence(model, layout, filling_mask(layout, layout, "parallel"), range(layout.shape[1]))  # type: ignore[arg-type]
    for level, k in ((1, 0), (1, 1), (2, 0), (2, 1)):
        last = int(((stage == level) & (span == k)).nonzero()[-1])
        above = (stage == level - 1) & (span != NO_SPAN)
        assert above.sum() > 5 and (found[last][above] > 0).all()
        siblings = (stage == level) & (span != NO_SPAN) & (span != k)
        assert siblings.any() and not (found[last][siblings] > 0).any()


def the_rule_is_one() -> None:
    """`may_read` equals the rule in words, for every pair of a document of three stages with its drafts."""
    layout = with_drafts(worlds.layouts(Grammar(grid=1))[2])
    columns, rows = layout.map(lambda f: f[:, :, None]), layout.map(lambda f: f[:, None, :])
    for filling in FILLINGS:
        found = may_read(columns, rows, filling)[0]
        T = layout.shape[1]
        expected = torch.tensor([[reads(layout, i, j, filling) for j in range(T)] for i in range(T)])
        assert torch.equal(found, expected), filling


def runaway(said: list[int]) -> int:
    """A script without end: an outline of one item, and every span lists two more; after every level comes another."""
    last = TOKENIZER.decode(said[-1:])
    if last in ("sun", "ant", "6", ";"):
        planning = Tag.ASYNC not in said
        after = {"sun": "6" if planning else "ant", "ant": "6", "6": "</topic>" if planning else ";", ";": "ant"}
    else:
        after = {"<topic>": "sun", "</topic>": "<async>", "</async>": "<sync/>"}
    if last == "ant" and TOKENIZER.decode(said[-2:-1]) in ("<topic>", "<async>"):
        after = {"ant": "ant"}  # the echo
    return TOKENIZER.encode(after.get(last, "<topic>"))[0]


def a_runaway_level_is_cut(items: int = 3, stages: int = 4) -> None:
    """Levels of 1, 2, 4, 8, ... items are cut at the bounds, and the generation says so."""
    speaker = Speaker(Scripted(runaway, 0, len(TOKENIZER), 400), TOKENIZER, GRAMMAR)
    [generation] = hierarchy.sample(speaker, ["ada"], bounds=Bounds(items, 60, stages))
    assert generation.problem is None and generation.document is not None
    sizes = [min(items, 2**level) for level in range(stages)]
    for level in range(1, stages):
        sizes[level] = min(items, 2 * sizes[level - 1])
    assert [len(stage.plan) for stage in generation.document.stages] == sizes
    cut = [f"level {k} ran away: cut after {items} items" for k in range(1, stages) if 2 * sizes[k - 1] > items]
    assert generation.cuts == (*cut, f"the document was ended after {stages} stages")
    assert worlds.replayed(generation) == generation.tokens
