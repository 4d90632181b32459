"""Writers of essays that differ in what they see: a window, the whole text, or a window and a plan.

The layouts of all writers have the same tokens, the plan or as many fillers:

    windowed, full    <bos> any any ... any   town aston guide nell ...                        text
    planned           <bos>                   town aston guide nell ...   <topic> plan </topic>  text
                            filler            thesis (the prompt)

Fillers stand before the thesis, because after it they would only push it out of the first paragraph's window.
The window is one paragraph, so one layer reaches a kind's last mention and two layers, 2 (w - 1) tokens, do not reach
the one before it: of each kind a windowed writer knows what was said last, not what was said first.

A planned writer learns from essays that follow their plan, not their prompt. With probability `PLANNED_WRONG` a value
of the plan is not the prompt's: a planner that errs. With probability `PLANNED_GAP` the plan says "any", and the
essay keeps to a value of its author's own making: an underspecified plan. So plans alone decide what is written.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pdref.data.essays import Essay, Essays
from pdref.data.essays_grammar import ERAS, SENTENCE_END, SUBJECTS, VERBS
from pdref.lab.recipe import TrainRecipe
from pdref.lab.train import descend, make_optimizers, set_rates
from pdref.methods.autoregressive import next_token_nll
from pdref.model.cache import Cache
from pdref.model.transformer import Config, Transformer
from pdref.ops.unmask import unmask
from pdref.text.layout import Layout, LayoutBuilder, Role
from pdref.text.tags import Tag
from pdref.text.tokenizer import Tokenizer
from pdref.text.window import window_mask

GAP = "any"  # a plan's word where it leaves a value open, and the filler of layouts without a plan
PLANNED_WRONG, PLANNED_GAP = 0.02, 0.1

Values = dict[str, str]  # a value for each kind: a thesis, or a plan


@dataclass(frozen=True, slots=True)
class Arm:
    """What a writer sees beside its own last words."""

    name: Literal["windowed", "full", "planned"]
    windowed: bool
    planned: bool


ARMS = {arm.name: arm for arm in (Arm("windowed", True, False), Arm("full", False, False), Arm("planned", True, True))}


@dataclass(frozen=True, slots=True)
class Writer:
    """A network, its arm, and the source whose essays it writes."""

    arm: Arm
    model: Transformer
    tokenizer: Tokenizer
    source: Essays

    @classmethod
    def fresh(cls, arm: Arm, source: Essays, layers: int = 2, width: int = 48, heads: int = 2, seed: int = 0) -> Writer:
        """An untrained one, for essays up to the length of the source's."""
        torch.manual_seed(seed)
        tokenizer = source.tokenizer(GAP)
        context = 3 + 4 * source.kinds + tokens_of_text(source)
        return cls(arm, Transformer(Config(len(tokenizer), context, layers, width, heads, heads)), tokenizer, source)

    def layout(self, prompt: Values, plan: Values, text: str) -> Layout:
        """One essay, [1, T]; the arm decides whether the plan is in it."""
        builder = LayoutBuilder(self.tokenizer, self.source.grammar)
        stated, planned = self.tokenizer.encode(_statement(prompt)), self.tokenizer.encode(_statement(plan))
        fillers = [] if self.arm.planned else self.tokenizer.encode(GAP) * (len(planned) + 2)
        builder.add([Tag.BOS, *fillers, *stated], Role.PROMPT)
        if self.arm.planned:
            builder.add([Tag.TOPIC, *planned, Tag.END_TOPIC], Role.PLAN)
        builder.add(self.tokenizer.encode(text), Role.CONTENT)
        return builder.build()

    def mask(self, layout: Layout) -> Tensor:
        """Who sees whom, [1, 1, T, T]; the same for all rows, whose roles are the same."""
        row = layout.map(lambda field: field[:1])
        return window_mask(row, row, self.source.paragraph_tokens if self.arm.windowed else None)

    def words(self, tokens: Tensor) -> list[list[str]]:
        """Tokens [B, T] one by one as words; a tag is a word, too."""
        known = [self.tokenizer.decode([token]) for token in range(len(self.tokenizer))]
        return [[known[token] for token in row] for row in tokens.tolist()]

    @property
    def text_choices(self) -> list[Sequence[str]]:
        """The words that the grammar has for each place of a paragraph."""
        kinds = self.source.words.items()
        return [words for kind, values in kinds for words in (ERAS, SUBJECTS, [VERBS[kind]], values, [SENTENCE_END])]

    @property
    def plan_choices(self) -> list[Sequence[str]]:
        """The words for each place of a plan that leaves nothing open."""
        pairs = [words for kind, values in self.source.words.items() for words in ([kind], values)]
        return [[Tag.TOPIC.text], *pairs, [Tag.END_TOPIC.text]]

    def refused(self, words: Sequence[str]) -> Tensor:
        """All tokens but those of `words`."""
        allowed = {token for word in words for token in self.tokenizer.encode(word)}
        return torch.tensor([token for token in range(len(self.tokenizer)) if token not in allowed])

    def hidden(self, layout: Layout) -> Tensor:
        """Hidden states [B, T, D] of whole essays."""
        return self.model(layout.token, layout.position, self.mask(layout))


def tokens_of_text(source: Essays) -> int:
    """Words of an essay's text."""
    return source.sections * source.paragraphs * source.paragraph_tokens


def _statement(values: Values) -> str:
    return " ".join(f"{kind} {value}" for kind, value in values.items())


def governed(source: Essays, essay: Essay, rng: random.Random) -> tuple[Values, Values]:
    """A prompt and a plan of an essay that follows its plan: both are its thesis, but for wrong values and gaps."""
    prompt, plan = dict(essay.thesis), dict(essay.thesis)
    for kind, values in source.words.items():
        if rng.random() < PLANNED_GAP:
            prompt[kind], plan[kind] = rng.choice(values), GAP
        elif rng.random() < PLANNED_WRONG:
            prompt[kind] = another(values, plan[kind], rng)
    return prompt, plan


def another(values: Sequence[str], value: str, rng: random.Random) -> str:
    """One of the other values."""
    return rng.choice([other for other in values if other != value])


def batch(writer: Writer, size: int, seed: int) -> Layout:
    """Fresh essays to learn from, [B, T]: the same texts for all arms."""
    rng = random.Random(f"plans of {seed}")
    rows = []
    for essay in writer.source.essays(size, seed):
        prompt, plan = governed(writer.source, essay, rng) if writer.arm.planned else (essay.thesis, essay.thesis)
        rows.append(writer.layout(prompt, plan, essay.text))
    return Layout.collate(rows)


def train(writer: Writer, settings: TrainRecipe, progress: bool = True) -> None:
    """Next-token prediction of texts, and of plans where there are any, on fresh essays at every step."""
    optimizers = make_optimizers(writer.model, settings)
    smooth = None
    with tqdm(
        total=settings.steps, desc=f"{writer.arm.name} {settings.seed}", disable=not progress, unit="step"
    ) as bar:
        for step in range(settings.steps):
            set_rates(optimizers, settings, step)
            layout = batch(writer, settings.batch, settings.seed * 1_000_003 + step)
            loss = next_token_nll(writer.model, writer.hidden(layout), layout).sum() / layout.response.sum()
            descend(loss, writer.model, optimizers, settings)
            smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
            bar.set_postfix_str(f"nats/token {smooth:.4f}", refresh=False)
            bar.update()


@torch.inference_mode()
def write(
    writer: Writer,
    layout: Layout,
    start: int,
    end: int,
    choices: Sequence[Sequence[str]],
    seeds: Tensor,
    temperature: float = 1.0,
    cached: bool = True,
) -> Layout:
    """Draw the tokens start..end - 1 of each row of `layout` [B, T], one after the other, all rows in step.

    What stands there is not looked at; roles say which of them the plan is. The n-th is one of the words that
    `choices` has for it, over and over. `seeds` [B] make a row's draws its own, alone or in a batch.
    """
    model, mask = writer.model, writer.mask(layout)  # [1, 1, T, T]
    tokens = layout.token.clone()
    refused = [writer.refused(words) for words in choices]
    cache = Cache(model.config, len(tokens), end, model.embed.weight) if cached else None
    read = 0
    for i in range(start, end):
        unread = layout.position[:, read:i]
        memory = cache.at(unread) if cache else None
        hidden = model(tokens[:, read:i], unread, mask[:, :, read:i, :i], memory)[:, -1]  # [B, D]
        forbidden = refused[(i - start) % len(refused)]
        at = torch.full_like(seeds, i)
        drawn = unmask(hidden, model.unembed.weight, seeds, at, temperature=temperature, forbidden=forbidden)
        tokens[:, i] = drawn.token
        read = i if cached else 0
    return replace(layout, token=tokens)


def plans(how: str, share: float, source: Essays, theses: Sequence[Values], seed: int) -> list[Values]:
    """The plans that are given to the writers of essays on `theses`. Raises ValueError for an unknown `how`."""
    rng = random.Random(f"{how} {share} {seed}")

    def each(kind: str, value: str) -> str:
        if rng.random() >= share:
            return value
        return GAP if how == "gaps" else another(source.words[kind], value, rng)

    match how:
        case "none" | "own" | "oracle":
            return [*theses]
        case "wrong" | "corrupted" | "gaps":
            return [{kind: each(kind, value) for kind, value in thesis.items()} for thesis in theses]
        case "shuffled":
            return [*theses[1:], theses[0]]
        case "reordered":
            return [dict(reversed(thesis.items())) for thesis in theses]
        case "mislabelled":
            return [dict(zip(t, [*t.values()][1:] + [*t.values()][:1], strict=True)) for t in theses]
    raise ValueError(f"no plan is given {how!r}")


class Written(NamedTuple):
    """Essays by a writer: texts, and the plans that they were written by."""

    texts: list[str]
    plans: list[Values]


def compose(writer: Writer, essays: Sequence[Essay], how: str, share: float, seed: int, cached: bool = True) -> Written:
    """Write an essay on the thesis of each of `essays`, as long as they are, at temperature 1."""
    theses = [essay.thesis for essay in essays]
    given = plans(how, share, writer.source, theses, seed)
    rows = [writer.layout(t, p, e.text) for t, p, e in zip(theses, given, essays, strict=True)]
    layout = Layout.collate(rows)
    start = int((layout.role[0] != Role.CONTENT).sum())
    seeds = torch.randint(2**31, (len(rows),), generator=torch.Generator().manual_seed(seed))
    if how == "own":
        first = int((layout.role[0] == Role.PROMPT).sum())
        layout = write(writer, layout, first, start, writer.plan_choices, seeds, cached=cached)
        spoken = [words[1:-1] for words in writer.words(layout.token[:, first:start])]
        given = [dict(zip(words[::2], words[1::2], strict=True)) for words in spoken]
    layout = write(writer, layout, start, layout.shape[1], writer.text_choices, seeds, cached=cached)
    return Written([" ".join(words) for words in writer.words(layout.token[:, start:])], given)
