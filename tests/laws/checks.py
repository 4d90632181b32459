"""The laws as plain functions: each raises AssertionError where the library breaks it.

The tests of each file call them with many arguments; `test_planted_bugs` calls them on code with a bug in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laws import worlds
from laws.source import SPANS, FiveSymbols, p_value
from pdref.methods import autoregressive, masked_diffusion, planned_diffusion
from pdref.methods.decoding import Draw, Speaker
from pdref.methods.denoising import Order, Unmasking
from pdref.methods.generation import Generation
from pdref.methods.planned_diffusion import Likelihood
from pdref.methods.planning import Bounds
from pdref.model.transformer import Transformer
from pdref.text.document import Item
from pdref.text.layout import NO_SPAN, Grammar, Layout, Role
from pdref.text.mask import Siblings, Sight
from pdref.text.tags import Tag

# What an oracle must find, and what it must cost.


def oracle_recovers(
    grammar: Grammar = Grammar(grid=4, echo=True),
    unmasking: Unmasking = Unmasking(),
    siblings: Siblings = "sparse",
    cached: bool = True,
    plans: Sequence[Sequence[Item] | None] | None = None,
) -> list[Generation]:
    """Planned Diffusion with an oracle writes every target token for token, and its history leads there."""
    speaker, targets = worlds.oracle(grammar), worlds.documents(grammar.grid)
    prompts = [target.prompt for target in targets]
    found = planned_diffusion.sample(speaker, prompts, unmasking, siblings=siblings, plans=plans, cached=cached)
    for generation, target, layout in zip(found, targets, worlds.layouts(grammar), strict=True):
        assert generation.tokens == layout.token[0].tolist(), f"{target.prompt}: the target's tokens"
        assert generation.document == target
        assert (generation.problem, generation.cuts) == (None, ())
        assert worlds.replayed(generation) == generation.tokens, "the history leads to the tokens"
    return found


def costs_are_the_closed_forms(
    step_ratio: float = 1.0,
    siblings: Siblings = "sparse",
    cached: bool = True,
    grammar: Grammar = Grammar(grid=4),
) -> None:
    """A stage costs a read, its plan tokens, S steps and a commit; at r = 1 span k takes part in l_k steps."""
    found = oracle_recovers(grammar, Unmasking(step_ratio), siblings, cached)
    for generation, layout in zip(found, worlds.layouts(grammar), strict=True):
        path = nfe = 0
        for lengths, plan_tokens in stages(layout):
            steps = max(1, round(step_ratio * max(lengths)))
            evaluations = sum(lengths) if step_ratio == 1 else steps * len(lengths)
            path += 1 + plan_tokens + steps + 1
            nfe += 1 + plan_tokens + (evaluations if siblings == "sparse" else steps) + 1
        assert (generation.critical_path, generation.nfe) == (path, nfe)


def spans_end_at_their_steps(step_ratio: float = 1.0) -> None:
    """At r = 1 span k reveals its last token at step l_k; below, every span of a request does at step S."""
    grammar = Grammar(grid=4)
    found = oracle_recovers(grammar, Unmasking(step_ratio))
    for generation, layout in zip(found, worlds.layouts(grammar), strict=True):
        events = [event for event in generation.history if event.phase == "denoise"]
        for stage in range(int(layout.stage.max()) + 1):
            of_stage = (layout.role[0] == Role.CONTENT) & (layout.stage[0] == stage)
            own = set(of_stage.nonzero()[:, 0].tolist())
            steps = [set(event.positions) for event in events if own & set(event.positions)]
            longest = max(len(own & _span(layout, stage, k)) for k in range(int(layout.span[0][of_stage].max()) + 1))
            for k in range(int(layout.span[0][of_stage].max()) + 1):
                span = own & _span(layout, stage, k)
                last = max(i for i, revealed in enumerate(steps, 1) if revealed & span)
                assert last == (len(span) if step_ratio == 1 else max(1, round(step_ratio * longest)))


def stages(layout: Layout) -> list[tuple[list[int], int]]:
    """Stage by stage, the spans' lengths and how many plan tokens there are."""
    role, stage, span = layout.role[0], layout.stage[0], layout.span[0]
    found = []
    for s in range(int(stage.max()) + 1):
        content = span[(role == Role.CONTENT) & (stage == s)]
        found.append((content.bincount().tolist(), int(((role == Role.PLAN) & (stage == s)).sum())))
    return found


def _span(layout: Layout, stage: int, span: int) -> set[int]:
    return set(((layout.stage[0] == stage) & (layout.span[0] == span)).nonzero()[:, 0].tolist())


def the_surest_goes_first() -> None:
    """The first step reveals, in each span, the place of least entropy."""
    source = FiveSymbols()
    [generation] = planned_diffusion.sample(source.speaker, ["go"])
    z = generation.tokens[source.places[0]]
    chances = {place: torch.tensor([*source.conditional(place, {0: z}).values()]) for place in range(1, 5)}
    surest = [min(span, key=lambda place: torch.special.entr(chances[place]).sum().item()) for span in SPANS]
    first = next(event for event in generation.history if event.phase == "denoise")
    assert list(first.positions) == [source.places[place] for place in surest]


def deferring_ends_in_time() -> None:
    """However unsure the model, the last of the S steps reveals all that was deferred."""
    unmasking = Unmasking(0.5, threshold=1.0)
    [generation] = planned_diffusion.sample(
        worlds.inventor(), ["ada"], unmasking, plans=[[Item("sun", 5), Item("moon", 3)]]
    )
    steps = [event for event in generation.history if event.phase == "denoise" and event.positions[0] < 30]
    assert len(steps) == 5
    assert len(steps[0].positions) == 2, "one a span, since none is sure"


def no_mask_is_ever_drawn() -> None:
    """A model that gives <mask> all but a millionth still reveals a token a step, and no <mask>."""
    grammar = Grammar(grid=4)
    speaker = worlds.scripted(lambda _: Tag.EOS, grammar)
    speaker.model.filler = Tag.MASK  # type: ignore[assignment]
    with no_more_calls_than(speaker.model, 20):
        [generation] = planned_diffusion.sample(speaker, ["ada"], plans=[[Item("sun", 1)]])
    assert generation.critical_path == 1 + 4 + 1
    assert Tag.MASK not in generation.tokens


def a_cut_shortens_the_history() -> None:
    """A plan by hand that fits in part is cut, and its history still leads to the tokens."""
    speaker = worlds.scripted(lambda _: Tag.EOS, Grammar(grid=4), context=40)
    plan = [Item("sun", 3), Item("moon", 5), Item("1920s", 1)]
    [generation] = planned_diffusion.sample(speaker, ["ada"], plans=[plan])
    assert generation.cuts == ("a plan does not fit the context of 40: cut after 1 items",)
    assert worlds.replayed(generation) == generation.tokens
    assert generation.document and generation.document.stages[0].plan == tuple(plan[:1])


# What must not change a result: caching, company.


def _autoregressive(speaker: Speaker, prompts: Sequence[str], plans: Any, draw: Draw, cached: bool) -> list[Generation]:
    return autoregressive.sample(speaker, prompts, draw, limit=30, cached=cached)


def _whole(speaker: Speaker, prompts: Sequence[str], plans: Any, draw: Draw, cached: bool) -> list[Generation]:
    return masked_diffusion.sample(speaker, prompts, 14, Unmasking(0.7), draw, cached)


def _planned(siblings: Siblings, unmasking: Unmasking) -> Callable[..., list[Generation]]:
    def sample(speaker: Speaker, prompts: Sequence[str], plans: Any, draw: Draw, cached: bool) -> list[Generation]:
        bounds = Bounds(items=4, plan_tokens=40, stages=3)
        return planned_diffusion.sample(
            speaker, prompts, unmasking, draw, siblings=siblings, plans=plans, bounds=bounds, cached=cached
        )

    return sample


SAMPLERS: dict[str, Callable[..., list[Generation]]] = {
    "autoregressive": _autoregressive,
    "whole-response diffusion": _whole,
    "planned, sparse": _planned("sparse", Unmasking()),
    "planned, sparse, r=0.34": _planned("sparse", Unmasking(0.34)),
    "planned, dense": _planned("dense", Unmasking(0.6, "confidence")),
    "planned, random order": _planned("sparse", Unmasking(1.0, "random")),
    "planned, deferring": _planned("sparse", Unmasking(0.5, threshold=0.5)),
    "planned, revealing": _planned("sparse", Unmasking(threshold=0.4, threshold_meaning="reveal")),
}

# Prompts, a plan by hand for some, a seed for each. The inventor writes the other plans and one to three stages.
PROMPTS = ["ada", "bo bo cy", "cy ada dee dee", "dee", "bo"]
BY_HAND = [(Item("sun", 2), Item("1920s", 5)), (Item("moon", 3),), None, (Item("4ever", 1),) * 3, None]
SEEDS = [11, 12, 13, 14, 15]


def result(generation: Generation) -> tuple[object, ...]:
    """All that a generation says but its seconds."""
    g = generation
    return g.tokens, g.document, g.problem, g.cuts, g.nfe, g.critical_path, g.history


def company_and_cache_change_nothing(
    sampler: str = "planned, sparse", temperature: float = 0.0, by_hand: bool = False
) -> list[Generation]:
    """Alone, in a batch, cached and uncached, a request with its seed gives the same result, with its history."""
    speaker, sample = worlds.inventor(), SAMPLERS[sampler]
    plans = BY_HAND if by_hand else [None] * len(PROMPTS)
    draw = Draw(temperature, seeds=SEEDS)
    batch = sample(speaker, PROMPTS, plans, draw, True)
    for generation in batch:
        assert worlds.replayed(generation)[: len(generation.tokens)] == generation.tokens
    together = [result(generation) for generation in batch]
    assert [result(g) for g in sample(speaker, PROMPTS, plans, draw, False)] == together, "cached = uncached"
    for b, prompt in enumerate(PROMPTS):
        [alone] = sample(speaker, [prompt], [plans[b]], Draw(temperature, seeds=[SEEDS[b]]), True)
        assert result(alone) == together[b], f"alone = in a batch, prompt {b}"
    return batch


# What a source with a known joint must give.


def frequencies_match(
    order: Order = "entropy",
    at_once: int = 1,
    siblings: Siblings = "sparse",
    temperature: float = 1.0,
    count: int = 2000,
) -> list[tuple[int, ...]]:
    """Outcomes that Planned Diffusion samples from an exact model follow the law found by enumeration."""
    source = FiveSymbols()
    unmasking = Unmasking(1.0 if at_once == 1 else 0.5, order)
    draw = Draw(temperature, generator=torch.Generator().manual_seed(1))
    found = planned_diffusion.sample(source.speaker, ["go"] * count, unmasking, draw, siblings=siblings)
    outcomes = [source.outcome(generation.tokens) for generation in found]
    law = source.sampler_law(order, at_once, siblings, temperature)  # type: ignore[arg-type]
    assert p_value(outcomes, law) > 1e-3
    return outcomes


def bound_is_exact(named: bool = False, copies: int = 1, samples: int = 100) -> Likelihood:
    """With an exact model, plan and diffusion terms have the means -log p(z) and -log p(x | z) p(y | z)."""
    source = FiveSymbols(named)
    batch = Layout.collate(source.layouts * copies)
    generator = torch.Generator().manual_seed(2)
    found = planned_diffusion.log_likelihood(source.speaker.model, batch, samples, generator)
    plan = torch.tensor([source.chance({0: o[0]}) for o in source.joint] * copies, dtype=torch.float64).log()
    both = torch.tensor([*source.planned.values()] * copies, dtype=torch.float64).log()
    assert torch.allclose(found.plan, plan)
    error = found.spans.error.square().sum().sqrt()
    assert (found.joint - both).sum().abs() < 4 * error
    assert error < 0.1 * both.abs().sum()
    return found


def loss_is_the_formula() -> None:
    """Every nat of a batch, its 1/t, the planned and the clean ones, and 1/|Y|, against the source's own table."""
    source = FiveSymbols()
    outcomes = list(source.joint)[5:8]
    batch = Layout.collate([source.layout(o) for o in outcomes])
    times = torch.tensor([0.5, 0.8, 0.3], dtype=torch.float64)[:, None].expand(batch.shape)
    written = ["<topic>", "z", "1", "</topic>", "<topic>", "rest", "1", "</topic>", "<async>"]
    z = [False] * 2 + [True] * len(written) + [False] * 7 + [True]  # <bos> go, the plan and its end, spans, <eos>
    assert batch.planned.tolist() == [z] * 3
    terms = planned_diffusion.terms(source.speaker.model, batch, torch.Generator().manual_seed(3), times)
    expected_loss = expected_rest = 0.0
    masked_ever = 0
    for b, o in enumerate(outcomes):
        # Nothing but the five symbols is uncertain; the causal stream reads them from left to right.
        causal = {place: _nats(source, place, {i: o[i] for i in range(place)}, o) for place in range(5)}
        plan = {source.places[0]: causal[0]}
        clean = {source.places[place]: nats for place, nats in causal.items()}
        masked = [place for place in range(1, 5) if terms.diffusion[b, source.places[place]].item() > 0]
        masked_ever += len(masked)
        diffusion = {}
        for place in masked:
            own = (1, 2) if place < 3 else (3, 4)
            known = {i: o[i] for i in (0, *own) if i not in masked}
            diffusion[source.places[place]] = _nats(source, place, known, o) / times[b, 0].item()
        for name, nats in {"plan": plan, "clean": clean, "diffusion": diffusion}.items():
            row = torch.zeros(batch.shape[1], dtype=torch.float64)
            row[list(nats)] = torch.tensor(list(nats.values()), dtype=torch.float64)
            assert torch.allclose(getattr(terms, name)[b], row), f"{name} of {o}"
        response = batch.shape[1] - 2  # all but <bos> and "go"
        expected_loss += (sum(plan.values()) + sum(diffusion.values())) / response / 3
        expected_rest += (sum(clean.values()) - sum(plan.values())) / response / 3
    assert 0 < masked_ever < 12, "some are masked and some are not"
    assert abs(terms.loss().item() - expected_loss) < 1e-12
    assert abs(terms.loss(clean_weight=0.7).item() - expected_loss - 0.7 * expected_rest) < 1e-12


def _nats(source: FiveSymbols, place: int, known: dict[int, int], outcome: Sequence[int]) -> float:
    return -torch.tensor(source.conditional(place, known)[outcome[place]], dtype=torch.float64).log().item()


def ragged_batches_lose_nothing() -> None:
    """Documents of unequal length have the nats, token for token, that each has alone."""
    speaker = worlds.inventor()
    rows = worlds.layouts(speaker.grammar)
    batch = Layout.collate(rows)
    everything = (batch.role == Role.CONTENT).double()
    together = planned_diffusion.terms(speaker.model, batch, times=everything)
    losses = []
    for b, row in enumerate(rows):
        alone = planned_diffusion.terms(speaker.model, row, times=everything[b : b + 1, : row.shape[1]])
        losses.append(planned_diffusion.per_document_mean((alone.plan + alone.diffusion.nan_to_num()), row))
        for name in ("clean", "diffusion"):
            padded = torch.zeros(batch.shape[1], dtype=torch.float64)
            padded[: row.shape[1]] = getattr(alone, name)[0].nan_to_num()
            assert torch.allclose(getattr(together, name)[b].nan_to_num(), padded, atol=1e-10), f"{name} of row {b}"
    means = planned_diffusion.per_document_mean(together.plan + together.diffusion.nan_to_num(), batch)
    assert torch.allclose(means, torch.cat(losses))


# What training and inference share.


class Call(NamedTuple):
    """One forward of a model."""

    tokens: Tensor
    positions: Tensor
    hidden: Tensor


@contextmanager
def overheard(model: Transformer) -> Iterator[list[Call]]:
    """The forwards of a model while the block runs."""
    calls: list[Call] = []

    def listen(_: Transformer, given: tuple[Any, ...], hidden: Tensor) -> None:
        calls.append(Call(given[0], given[1], hidden))

    handle = model.register_forward_hook(listen)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def no_more_calls_than(model: Transformer, count: int) -> Iterator[None]:
    """Fail, rather than run for ever, when a sampler asks the model more often."""
    calls: list[object] = []

    def listen(*call: object) -> None:
        calls.append(call)
        assert len(calls) <= count, f"more than {count} forwards"

    handle = model.register_forward_hook(listen)
    try:
        yield
    finally:
        handle.remove()


def training_is_inference(siblings: Siblings = "sparse", cached: bool = True, step_ratio: float = 0.4) -> None:
    """Whatever a sampler's model computed on the way, the training forward on the finished document computes too."""
    speaker = worlds.inventor()
    shapes = []
    for seed in range(6):
        unmasking, draw, bounds = Unmasking(step_ratio), Draw(1.0, seeds=[seed]), Bounds(4, 40, 3)
        with overheard(speaker.model) as calls:
            [generation] = planned_diffusion.sample(
                speaker, ["bo bo"], unmasking, draw, siblings=siblings, bounds=bounds, cached=cached
            )
        if any("plan" in cut for cut in generation.cuts):
            continue  # what was cut is in no document
        layout = worlds.read_layout(generation.tokens, speaker.grammar.echo)
        shapes.append([len(lengths) for lengths, _ in stages(layout)])
        for call in calls:
            _compare(speaker.model, call, layout, siblings)
    assert any(max(shape) > 1 < len(shape) for shape in shapes), f"several stages, several spans: {shapes}"


def _compare(model: Transformer, call: Call, layout: Layout, siblings: Siblings) -> None:
    """A call's hidden states are those of the training forward with the same tokens masked."""
    masked = torch.zeros(layout.shape, dtype=torch.bool)
    masked[0, call.positions[call.tokens == Tag.MASK]] = True
    trained = training_forward(model, layout, masked, siblings)
    # Inference denoises one stage at a time; what stands before its first span is clean.
    of_stage = layout.stage == layout.stage[masked].max() if masked.any() else masked
    noised_from = int((of_stage & (layout.span != NO_SPAN)).nonzero()[0, 1]) if masked.any() else layout.shape[1]
    for token, position, hidden in zip(*map(_flat, call), strict=True):
        if int(token) in (Tag.MASK, int(layout.token[0, position])):  # the rest is batch padding
            half = "noised" if position >= noised_from else "clean"
            assert torch.allclose(hidden, trained[half][int(position)], atol=1e-10), f"{half} token at {int(position)}"


def training_forward(
    model: Transformer, layout: Layout, masked: Tensor, siblings: Siblings
) -> dict[str, dict[int, Tensor]]:
    """Hidden states by position of the clean and the noised stream of `terms`, with exactly `masked` masked."""
    with overheard(model) as calls:
        planned_diffusion.terms(model, layout, times=masked.double(), siblings=siblings)
    [call] = calls
    T = layout.shape[1]
    streams = {"clean": slice(0, T), "noised": slice(T, None)}
    return {
        name: dict(zip(call.positions[0, part].tolist(), call.hidden[0, part], strict=True))
        for name, part in streams.items()
    }


def _flat(field: Tensor) -> Tensor:
    return field.flatten(0, 1)


# Where information may flow.


def sees(layout: Layout, query: int, key: int, siblings: Siblings) -> bool:
    """The rule in words: may the token at index `query` of a two-stream layout look at the one at `key`?"""
    stage, span, position, noised = (
        [int(field[0, i]) for i in (query, key)]
        for field in (layout.stage, layout.span, layout.position, layout.stream)
    )
    if not noised[0]:
        return not noised[1] and position[1] <= position[0]  # a clean token sees its clean past
    if noised[1]:
        return stage[0] == stage[1] and (siblings == "dense" or span[0] == span[1])  # a noised one sees its region
    earlier_stage = stage[1] < stage[0]
    own_plan = stage[1] == stage[0] and span[1] == NO_SPAN and position[1] < position[0]
    return earlier_stage or own_plan


def two_streams(layout: Layout) -> Layout:
    """A document and the noised copy of its spans, every second content token masked, as training lays them out."""
    copy, _ = layout.span_copy()
    content = (copy.role == Role.CONTENT) & (torch.arange(copy.shape[1]) % 2 == 0)
    return Layout.concatenate([layout, copy.masked(content)])


def information_stays_where_it_may(
    model: Transformer | None = None,
    layout: Layout | None = None,
    siblings: Siblings = "sparse",
    every: int = 1,
    complete: bool = True,
) -> None:
    """d(output i) / d(embedding j) is 0 wherever the rule forbids; where it allows, it is not (if `complete`)."""
    speaker = worlds.inventor()
    model = model or speaker.model.inner  # type: ignore[assignment]
    layout = two_streams(layout or worlds.layouts(Grammar(grid=1))[2])
    queries = range(0, layout.shape[1], every)
    found = influence(model, layout, Sight.of(layout, layout, siblings), queries)
    allowed = torch.tensor([[sees(layout, i, j, siblings) for j in range(layout.shape[1])] for i in queries])
    assert not (found[~allowed] > 0).any(), "a token's output moves with a token that it may not see"
    assert (found[allowed] > 0).all() if complete else ((found > 0) & allowed).any(1).all()


def influence(model: Transformer, layout: Layout, mask: Sight, queries: Sequence[int]) -> Tensor:
    """Norms of d(output of token i) / d(embedding of token j), [len(queries), T], of one document."""
    embedded: list[Tensor] = []

    def capture(_: torch.nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    handle = model.embed.register_forward_hook(capture)
    try:
        hidden = model(layout.token, layout.position, mask)
    finally:
        handle.remove()
    direction = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(5), dtype=hidden.dtype)
    rows = [torch.autograd.grad(hidden[0, i] @ direction, embedded[0], retain_graph=True)[0][0] for i in queries]
    return torch.stack(rows).norm(dim=-1)
