"""Small documents, the models that know or invent them, and a reader of token lists that owes the library nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch

from laws.seers import Exact, Grammatical, Scripted
from pdref.methods.decoding import Speaker
from pdref.methods.generation import Generation
from pdref.model.transformer import Config, Transformer
from pdref.text.document import Item, PlannedDocument, Span, Stage
from pdref.text.layout import NO_SPAN, Grammar, Layout, Role, encode
from pdref.text.tags import Tag
from pdref.text.tokenizer import Tokenizer

NAMES = ["ada", "bo", "cy", "dee"]
TOPICS = ["sun", "moon", "1920s", "4ever"]
NUMBERS = [str(n) for n in range(10)] + ["99999"]
WORDS = ["ant", "bee", "cat", "dog", "elk", "fox"]
TOKENIZER = Tokenizer.words([*NAMES, *TOPICS, *NUMBERS, *WORDS])
V = len(TOKENIZER)

# Prompt, then stage by stage the topics and their cells: prompts, plans, lengths and stages all differ.
SHAPES: list[tuple[str, list[list[tuple[str, int]]]]] = [
    ("ada", [[("sun", 2), ("1920s 4ever", 1)]]),
    ("bo bo cy", [[("moon", 1)], [("sun moon", 3), ("1920s", 1), ("sun", 1)]]),
    ("cy", [[("sun", 1), ("moon", 1), ("4ever", 2), ("sun 7", 1)], [("moon", 1)], [("sun", 2)]]),
    ("dee ada", [[("4ever", 5)]]),
]


def documents(grid: int) -> list[PlannedDocument]:
    """A document of each shape: some spans are full, some end in fillers, some are nothing else."""
    return [
        PlannedDocument(
            prompt, tuple(_stage(random.Random(f"{prompt}{s}"), plan, grid) for s, plan in enumerate(stages))
        )
        for prompt, stages in SHAPES
    ]


def _stage(rng: random.Random, plan: list[tuple[str, int]], grid: int) -> Stage:
    spans = []
    for _, cells in plan:
        pads = rng.randint(0, min(3, cells * grid))
        spans.append(Span(" ".join(rng.choices(WORDS, k=cells * grid - pads)), pads))
    return Stage(tuple(Item(*item) for item in plan), tuple(spans))


def layouts(grammar: Grammar) -> list[Layout]:
    """`documents` in tokens."""
    return [encode(document, TOKENIZER, grammar) for document in documents(grammar.grid)]


def oracle(grammar: Grammar, context: int = 200) -> Speaker:
    """Knows every document of `documents` by its prompt, token for token."""
    return Speaker(Exact(layouts(grammar), V, context), TOKENIZER, grammar)


def ids(text: str) -> list[int]:
    """Tokens of text."""
    return TOKENIZER.encode(text)


def inventor(grammar: Grammar | None = None, context: int = 120, seed: int = 15) -> Speaker:
    """A random float64 transformer that writes documents of one and several stages, as its weights will have it."""
    torch.manual_seed(seed)
    inner = Transformer(Config(V, context, layers=2, width=24, heads=2, key_heads=1)).double()
    with torch.no_grad():
        for matrix in inner.blocks.parameters():
            matrix.mul_(3 if matrix.dim() > 1 else 1)  # so that what a token sees outweighs what it is
    names, topics, numbers, words = (ids(" ".join(kind)) for kind in (NAMES, TOPICS, "2345", WORDS))
    grammar_of_tokens: list[tuple[list[int], list[int]]] = [
        ([Tag.BOS, Tag.SYNC, *names], [Tag.TOPIC]),
        ([Tag.TOPIC], topics),
        (topics, [*topics, *numbers]),
        (numbers, [Tag.END_TOPIC]),
        ([Tag.END_TOPIC], [Tag.TOPIC, Tag.ASYNC]),
        ([Tag.ASYNC, Tag.PAD, *words], [Tag.PAD, *words, Tag.END_ASYNC]),
        ([Tag.END_ASYNC], [Tag.SYNC, Tag.EOS]),
        ([Tag.MASK, Tag.EOS], list(range(V))),
    ]
    allowed = torch.zeros(V, V, dtype=torch.bool)
    for tokens, after in grammar_of_tokens:
        allowed[torch.tensor(tokens)[:, None], torch.tensor(after)] = True
    return Speaker(Grammatical(inner, allowed), TOKENIZER, grammar or Grammar(grid=2))


def scripted(script: Callable[[list[int]], int], grammar: Grammar | None = None, context: int = 80) -> Speaker:
    """Says next what `script` says of the tokens so far, if there are any but <bos>, and "ant" at every mask."""
    return Speaker(
        Scripted(lambda said: script(said) if said[1:] else Tag.EOS, ids("ant")[0], V, context),
        TOKENIZER,
        grammar or Grammar(grid=2),
    )


def read_layout(tokens: Sequence[int], echo: bool) -> Layout:
    """The layout of a document's tokens, read tag by tag; with `echo`, a span repeats its topic but not the number."""
    rows: list[tuple[int, int, int, int]] = []
    stage, span, topic, given = 0, NO_SPAN, 0, 0
    topics: list[int] = []  # how many tokens each topic of this stage has
    role = Role.PROMPT
    for token in tokens:
        if token == Tag.SYNC:
            stage, span, topics = stage + 1, NO_SPAN, []
        elif token == Tag.TOPIC:
            role, topic = Role.PLAN, -2
        elif token == Tag.ASYNC:
            role, span = Role.CONTENT, span + 1
            given = topics[span] if echo else 0
        if role == Role.PLAN:
            topic += 1
        outside = token in (Tag.SYNC, Tag.EOS)
        control = outside or token in (Tag.ASYNC, Tag.END_ASYNC)
        is_tag = control or (role == Role.CONTENT and given > 0)
        rows.append((token, Role.TAG if is_tag else role, stage, NO_SPAN if outside or role == Role.PLAN else span))
        given -= role == Role.CONTENT and not control
        if token == Tag.END_TOPIC:
            topics.append(topic - 1)
    fields = torch.tensor(rows).T[:, None]
    return Layout(*fields, torch.arange(len(rows))[None], torch.zeros_like(fields[0]))


def replayed(generation: Generation) -> list[int]:
    """The tokens that a history ends in."""
    written: dict[int, int] = {}
    for event in generation.history:
        written |= dict(zip(event.positions, event.tokens, strict=True))
    assert sorted(written) == list(range(len(written))), "a history has no gaps"
    return [token for _, token in sorted(written.items())]
