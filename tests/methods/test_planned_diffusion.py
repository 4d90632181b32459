"""Planned Diffusion: what an oracle must find, what a known joint must give, what training must compute, and where
runaways end."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from laws import worlds
from laws.checks import (
    SAMPLERS,
    a_cut_shortens_the_history,
    bound_is_exact,
    company_and_cache_change_nothing,
    costs_are_the_closed_forms,
    frequencies_match,
    information_stays_where_it_may,
    loss_is_the_formula,
    oracle_recovers,
    overheard,
    ragged_batches_lose_nothing,
    result,
    spans_end_at_their_steps,
    training_is_inference,
)
from laws.seers import Exact, Seer
from laws.source import FiveSymbols, Outcome, divergence, p_value
from pdref.lab.checkpoint import CHECKPOINTS, load
from pdref.lab.recipe import build_corpus
from pdref.methods.autoregressive import document_nll
from pdref.methods.decoding import Draw, Speaker
from pdref.methods.denoising import Order, Unmasking
from pdref.methods.generation import Generation
from pdref.methods.planned_diffusion import (
    T_FLOOR,
    Bounds,
    Likelihood,
    draw_times,
    log_likelihood,
    released_terms,
    sample,
    terms,
)
from pdref.text.document import Item
from pdref.text.layout import NO_SPAN, Grammar, Layout, Role, TooLong, encode
from pdref.text.mask import Siblings, Sight, dense_mask
from pdref.text.tags import Tag

RATIOS = [1, 0.5, 0.34, 0.1, 0.01]
BOTH: list[Siblings] = ["sparse", "dense"]


# An oracle is recovered.


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("siblings", BOTH)
@pytest.mark.parametrize("ratio", RATIOS)
def test_an_oracle_is_recovered_at_the_predicted_cost(ratio: float, siblings: Siblings, cached: bool) -> None:
    costs_are_the_closed_forms(ratio, siblings, cached)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_span_ends_at_the_step_that_the_ratio_says(ratio: float) -> None:
    spans_end_at_their_steps(ratio)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.9, 1.0])
@pytest.mark.parametrize("meaning", ["defer", "reveal"])
@pytest.mark.parametrize("order", ["entropy", "confidence", "random"])
def test_an_oracle_is_recovered_in_any_order_under_any_threshold(
    order: Order, meaning: str, threshold: float | None
) -> None:
    for ratio in (1.0, 0.34):
        oracle_recovers(unmasking=Unmasking(ratio, order, threshold, meaning))  # type: ignore[arg-type]


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize("grid", [1, 4])
@pytest.mark.parametrize("siblings", BOTH)
def test_an_oracle_is_recovered_in_every_grammar(grid: int, echo: bool, siblings: Siblings) -> None:
    oracle_recovers(Grammar(grid, echo), Unmasking(0.5), siblings)


@pytest.mark.parametrize("by_hand", [*itertools.product([True, False], repeat=2)])
def test_an_oracle_is_recovered_from_plans_written_by_hand(by_hand: tuple[bool, bool]) -> None:
    plans = [t.stages[0].plan for t in worlds.documents(4)]
    given = [plan if hand else None for plan, hand in zip(plans, by_hand * 2, strict=True)]
    free, guided = oracle_recovers(), oracle_recovers(plans=given)
    for before, after, plan in zip(free, guided, given, strict=True):
        saved = sum(len(worlds.ids(str(item))) + 2 for item in plan or ())
        assert before.critical_path - after.critical_path == saved, "a given plan costs no step"


def test_an_oracle_sure_of_everything_reveals_all_at_once() -> None:
    found = oracle_recovers(unmasking=Unmasking(threshold=0.9, threshold_meaning="reveal"))
    for generation, target in zip(found, worlds.documents(4), strict=True):
        assert sum(event.phase == "denoise" for event in generation.history) == len(target.stages)


def test_a_shifted_speaker_reads_a_mask_one_token_earlier() -> None:
    class Shifted(Exact):
        """Predicts the next token everywhere, also at a mask."""

        def answer(self, seen: Tensor, token: Tensor, position: Tensor) -> Tensor:
            return super().answer(seen, token.masked_fill(token == Tag.MASK, Tag.PAD), position)

    grammar = Grammar(grid=4)
    rows = worlds.layouts(grammar)
    speaker = Speaker(Shifted(rows, worlds.V, 200), worlds.TOKENIZER, grammar, shifted=True)
    found = sample(speaker, [shape[0] for shape in worlds.SHAPES])
    assert [generation.tokens for generation in found] == [row.token[0].tolist() for row in rows]


# Cache and company change nothing.


@pytest.mark.parametrize("by_hand", [False, True], ids=["own plans", "some plans by hand"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name.startswith("planned")])
def test_alone_in_a_batch_cached_and_uncached_are_one(sampler: str, temperature: float, by_hand: bool) -> None:
    batch = company_and_cache_change_nothing(sampler, temperature, by_hand)
    stages = {generation.tokens.count(Tag.SYNC) for generation in batch}
    assert len(stages) > 1, "requests of one and of several stages"


def test_a_short_span_at_the_end_of_the_context_has_long_neighbours() -> None:
    speaker = worlds.scripted(lambda _: Tag.EOS, Grammar(grid=3), context=40)
    prompts, plans = [" ".join(["ada"] * 27), "ada"], [[Item("sun", 1)], [Item("sun", 9)]]
    batch = sample(speaker, prompts, plans=plans)
    assert len(batch[0].tokens) == 39 and batch[0].document
    for prompt, plan, together in zip(prompts, plans, batch, strict=True):
        assert result(sample(speaker, [prompt], plans=[plan])[0]) == result(together)


def test_sampling_from_plans_that_are_all_given() -> None:
    [generation] = sample(worlds.scripted(lambda _: Tag.EOS), ["ada"], draw=Draw(1.0), plans=[[Item("sun", 1)]])
    assert generation.document and generation.document.stages[0].plan == (Item("sun", 1),)


# A known joint.


@pytest.mark.parametrize("order", ["entropy", "random"])
def test_one_token_a_step_samples_the_planned_joint(order: Order) -> None:
    source = FiveSymbols()
    assert divergence(source.sampler_law(order), source.planned) == pytest.approx(0, abs=1e-12), "in theory"
    outcomes = frequencies_match(order, count=2500)
    assert p_value(outcomes, source.joint) < 1e-9, "and not the true joint, which the plan does not name"
    assert measured_gap(source, outcomes) == pytest.approx(source.total_correlation, abs=0.03)


def test_spans_are_right_when_the_plan_names_all_that_they_share() -> None:
    source = FiveSymbols(named=True)
    draw = Draw(1.0, generator=torch.Generator().manual_seed(4))
    outcomes = [source.outcome(g.tokens) for g in sample(source.speaker, ["go"] * 2500, draw=draw)]
    assert p_value(outcomes, source.joint) > 1e-3
    assert measured_gap(source, outcomes) == pytest.approx(0, abs=0.03)


def measured_gap(source: FiveSymbols, outcomes: list[Outcome]) -> float:
    """KL(joint || sampled frequencies), less the bias that counting so many outcomes has."""
    frequencies = {o: (outcomes.count(o) + 0.5) / (len(outcomes) + 16) for o in source.joint}
    return divergence(source.joint, frequencies) - (len(source.joint) - 1) / (2 * len(outcomes))


def test_two_tokens_at_once_sample_the_product_of_marginals() -> None:
    source = FiveSymbols()
    marginals = {
        o: source.chance({0: o[0]}) * math.prod(source.conditional(i, {0: o[0]})[o[i]] for i in range(1, 5))
        for o in source.joint
    }
    assert divergence(source.sampler_law(at_once=2), marginals) == pytest.approx(0, abs=1e-12), "in theory"
    assert p_value(frequencies_match(at_once=2), source.planned) < 1e-9


def test_the_order_by_drawn_probability_is_biased_as_predicted() -> None:
    source = FiveSymbols()
    assert divergence(source.planned, source.sampler_law("confidence")) > 0.1, "in theory"
    assert p_value(frequencies_match("confidence"), source.planned) < 1e-9


@pytest.mark.parametrize("order", ["entropy", "random"])
def test_dense_siblings_share_what_is_already_revealed(order: Order) -> None:
    source = FiveSymbols()
    dense, sparse = (divergence(source.joint, source.sampler_law(order, siblings=s)) for s in ("dense", "sparse"))
    assert dense < sparse, "in theory"
    frequencies_match(order, siblings="dense")


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_reaches_plan_and_spans(temperature: float) -> None:
    source = FiveSymbols()
    assert p_value(frequencies_match(temperature=temperature), source.sampler_law()) < 1e-9


def test_a_tiny_nucleus_is_greedy_whatever_the_seed() -> None:
    source = FiveSymbols()
    [greedy] = sample(source.speaker, ["go"])
    for g in sample(source.speaker, ["go"] * 20, draw=Draw(1.0, top_p=1e-6)):
        assert g.tokens == greedy.tokens
    free = sample(source.speaker, ["go"] * 20, draw=Draw(1.0))
    assert len({tuple(g.tokens) for g in free}) > 5


# The joint log-likelihood.


@pytest.fixture(scope="module", params=[False, True], ids=["partly named", "all named"])
def likelihood(request: pytest.FixtureRequest) -> tuple[FiveSymbols, Likelihood]:
    """The source, and the joint log-likelihood of 8 copies of each outcome by its exact model."""
    return FiveSymbols(request.param), bound_is_exact(request.param, copies=8, samples=150)


def test_the_gap_to_the_joint_is_the_total_correlation(likelihood: tuple[FiveSymbols, Likelihood]) -> None:
    source, found = likelihood
    p = torch.tensor(list(source.joint.values()), dtype=torch.float64)
    truth = -document_nll(source.speaker.model, Layout.collate(source.layouts)).sum(1)
    assert torch.allclose(truth, p.log()), "autoregression holds the joint itself"
    estimate = found.joint.view(8, -1).mean(0)
    error = (p * found.spans.error.view(8, -1).square().sum(0).sqrt() / 8).square().sum().sqrt()
    assert error < 0.025
    assert abs((p * (truth - estimate)).sum() - source.total_correlation) < 4 * error
    assert source.total_correlation == pytest.approx(0.0 if source.named else 0.108, abs=1e-3)


def test_error_bars_are_honest(likelihood: tuple[FiveSymbols, Likelihood]) -> None:
    source, found = likelihood
    exact = torch.tensor([*source.planned.values()] * 8, dtype=torch.float64).log()
    off = (found.joint - exact) / found.spans.error
    covered = (off.abs() < 2).double().mean().item()
    assert 0.87 < covered < 0.99, "95% would lie within two errors, were 1/t without its heavy tail"


def test_an_error_needs_two_samples() -> None:
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        log_likelihood(worlds.inventor().model, batch_of_worlds(), 1)


def batch_of_worlds(grid: int = 2) -> Layout:
    """Documents of one, two and three stages."""
    return Layout.collate(worlds.layouts(Grammar(grid)))


# The loss.


def test_the_loss_is_the_formula() -> None:
    loss_is_the_formula()


def test_ragged_batches_lose_nothing() -> None:
    ragged_batches_lose_nothing()


def test_a_noise_level_for_every_span_spread_evenly() -> None:
    layout = batch_of_worlds()
    names = list(zip(*(f.tolist() for f in (layout.stage, layout.span)), strict=True))
    times = draw_times(layout, torch.Generator().manual_seed(8))
    levels: dict[tuple[int, int, int], set[float]] = {}
    for b, (stages, spans) in enumerate(names):
        for stage, span, t in zip(stages, spans, times[b].tolist(), strict=True):
            levels.setdefault((b, stage, span), set()).add(t)
    assert all(len(found) == 1 for found in levels.values())
    of_spans = torch.tensor(sorted(t for (_, _, k), [t] in levels.items() if k != NO_SPAN))
    assert len(of_spans) == 13
    assert torch.allclose(of_spans.diff(), torch.tensor(1 / 13), atol=1e-5), "stratified over the batch's spans"


def test_noise_levels_are_uniform_and_floored() -> None:
    layout, generator = batch_of_worlds(), torch.Generator().manual_seed(9)
    first = (layout.span[0] == 0).nonzero()[0, 0]
    levels = [draw_times(layout, generator)[0, first].item() for _ in range(500)]
    assert kstest(levels, "uniform").pvalue > 1e-3
    assert min(levels) >= T_FLOOR and max(levels) <= 1


def test_only_content_is_masked_and_only_in_the_noised_stream() -> None:
    speaker, layout = worlds.inventor(), batch_of_worlds()
    with overheard(speaker.model) as calls:
        terms(speaker.model, layout, torch.Generator().manual_seed(10))
    [call] = calls
    T = layout.shape[1]
    copy, _ = layout.span_copy()
    assert torch.equal(call.tokens[:, :T], layout.token)
    masked = call.tokens[:, T:] == Tag.MASK
    assert masked.any() and (copy.role[masked] == Role.CONTENT).all()
    assert torch.equal(call.positions[:, T:][copy.real], copy.position[copy.real])


# The released trainer's four deviations, one by one.


class Blind(Seer):
    """Its answer depends on the position alone, so that every loss can be computed by hand."""

    def __init__(self, context: int = 160) -> None:
        super().__init__(worlds.V, context)
        noise = torch.randn(context, worlds.V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.table = noise.log_softmax(-1)

    def answer(self, seen: Tensor, token: Tensor, position: Tensor) -> Tensor:
        return self.table[position]


@pytest.fixture
def released() -> tuple[Layout, Tensor, Tensor, Tensor, Tensor]:
    """A batch, what the released trainer masked, its times, its terms, and each token's nats by hand."""
    model, layout = Blind(), batch_of_worlds()
    with overheard(model) as calls:
        found = released_terms(model, layout, torch.Generator().manual_seed(11))
    [call] = calls
    assert call.tokens.shape == layout.shape, "one stream"
    times = torch.rand(layout.shape[0], 1, generator=torch.Generator().manual_seed(11))
    nats = torch.zeros(layout.shape, dtype=torch.float64)
    for b, i in layout.real.nonzero().tolist():
        if i:
            nats[b, i] = -model.table[i - 1, layout.token[b, i]]  # from the position before
    return layout, call.tokens == Tag.MASK, times, torch.stack([found.plan, found.diffusion]), nats


def test_released_a_the_plan_term_is_divided_by_t_too(released: tuple[Layout, ...]) -> None:
    layout, _, times, (plan, _), nats = released  # type: ignore[misc]
    assert torch.allclose(plan, nats * layout.planned / times)
    ours = terms(Blind(), layout, torch.Generator().manual_seed(11))
    assert torch.allclose(ours.plan, nats * layout.planned), "the formula does not"


def test_released_b_labels_are_shifted_but_their_gate_is_not(released: tuple[Layout, ...]) -> None:
    layout, masked, times, (_, diffusion), nats = released  # type: ignore[misc]
    expected = torch.zeros_like(nats)
    visible_targets = 0
    for b, i in masked.nonzero().tolist():
        expected[b, i + 1] = nats[b, i + 1] / times[b, 0]  # a mask at i gates the target i + 1
        visible_targets += not masked[b, i + 1]
    assert torch.allclose(diffusion, expected)
    assert visible_targets > 0
    ours = terms(Blind(), layout, torch.Generator().manual_seed(11), torch.ones(layout.shape))
    by_hand = -Blind().table[layout.position, layout.token] * (layout.role == Role.CONTENT)
    assert torch.allclose(ours.diffusion, by_hand), "the formula scores a mask at its own place"


def test_released_c_async_tags_can_be_masked(released: tuple[Layout, ...]) -> None:
    layout, masked, *_ = released
    assert {Tag.ASYNC, Tag.END_ASYNC} <= set(layout.token[masked & (layout.role == Role.TAG)].tolist())
    assert not masked[(layout.role == Role.PROMPT) | (layout.role == Role.PLAN)].any()


def test_released_d_later_stages_read_noised_spans() -> None:
    speaker, layout = worlds.inventor(), batch_of_worlds()
    later_plans = (layout.role == Role.PLAN) & (layout.stage > 0)

    def plans(objective: object, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        found = objective(speaker.model, layout, generator)  # type: ignore[operator]
        times = torch.rand(layout.shape[0], 1, generator=generator.manual_seed(seed))
        return (found.plan * (times if objective is released_terms else 1))[later_plans]

    assert torch.allclose(plans(terms, 1), plans(terms, 2)), "the formula's plans read clean text"
    assert not torch.allclose(plans(released_terms, 1), plans(released_terms, 2))


# Training and inference agree; information flows where the rule says.


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("siblings", BOTH)
@pytest.mark.parametrize("ratio", [1.0, 0.4])
def test_training_computes_what_inference_computes(siblings: Siblings, cached: bool, ratio: float) -> None:
    training_is_inference(siblings, cached, ratio)


@pytest.mark.parametrize("siblings", BOTH)
def test_gradients_flow_exactly_where_the_rule_allows(siblings: Siblings) -> None:
    information_stays_where_it_may(siblings=siblings)


@pytest.mark.parametrize("siblings", BOTH)
@pytest.mark.parametrize("stream", ["two", "one"])
def test_layers_carry_nothing_that_the_rule_forbids(siblings: Siblings, stream: str) -> None:
    layout = worlds.layouts(Grammar(grid=1))[2]
    layout = layout.in_place() if stream == "one" else Layout.concatenate([layout, layout.span_copy()[0]])
    (once,) = dense_mask(layout, layout, siblings)
    twice = (once.float() @ once.float()) > 0
    assert torch.equal(once, twice), "what a token sees through others, it may see itself"


@pytest.mark.parametrize("siblings", BOTH)
def test_no_output_moves_when_a_token_changes_that_it_may_not_see(siblings: Siblings) -> None:
    model = worlds.inventor().model.inner  # type: ignore[union-attr]
    layout = worlds.layouts(Grammar(grid=1))[2]
    layout = Layout.concatenate([layout, layout.span_copy()[0]])
    T = layout.shape[1]
    batch = layout.map(lambda field: field.expand(T + 1, -1))
    tokens = batch.token.clone()
    tokens[range(T), range(T)] = worlds.ids("fox")[0]  # row j has another token at j; the last row is as it was
    hidden = model(tokens, batch.position, Sight.of(batch, batch, siblings))
    moved = (hidden[:T] - hidden[T]).abs().amax(-1).T > 1e-12  # [T, T]: output i moves with token j
    assert not (moved & ~dense_mask(layout, layout, siblings)[0]).any()
    assert (moved.diagonal() | (layout.token[0] == worlds.ids("fox")[0])).all()


@pytest.mark.skipif(not (CHECKPOINTS / "profiles" / "model.safetensors").is_file(), reason="no shipped checkpoint")
def test_the_shipped_model_keeps_the_rule() -> None:
    checkpoint = load("profiles")
    recipe = checkpoint.recipe
    few = replace(recipe, corpus=replace(recipe.corpus, documents=1))
    document = next(document for document in build_corpus(few).held_out if len(document.stages) > 1)
    layout = encode(document, checkpoint.speaker.tokenizer, recipe.grammar)
    model = checkpoint.speaker.model.double()
    information_stays_where_it_may(model, layout, recipe.train.siblings, every=9, complete=False)


# Bounds: a runaway ends where the bound says, and its neighbour does not notice.

BOUNDS = Bounds(items=4, plan_tokens=20, stages=3)
SANE = "<topic>sun 2</topic><async>"
RUNAWAYS: dict[str, tuple[str, str, str, str | None, str | None, list[int] | None]] = {
    # what it says first, then for ever, and after a stage; the problem, the cut, and the items of each stage
    "topics for ever": ("", "<topic>sun 1</topic>", "<eos>", None, "cut after 4 items", [4]),
    "a topic without end": ("<topic>", "sun", "<eos>", "EmptyPlan", "cut after 0 items", None),
    "a last topic without end": (
        "<topic>sun 1</topic><topic>",
        "sun",
        "<eos>",
        None,
        "cut after 1 items",
        [1],
    ),
    "topics that only open": ("", "<topic>", "<eos>", "EmptyPlan", "cut after 0 items", None),
    "topics that only close": ("", "</topic>", "<eos>", "UnbalancedTag", "cut after 20 items", None),
    "fillers for ever": ("", "<pad>", "<eos>", "EmptyPlan", "cut after 0 items", None),
    "stages for ever": (SANE, "", "<sync/>", None, "ended after 3 stages", [1, 1, 1]),
    "a span over the context": (
        "<topic>sun 99999</topic><async>",
        "",
        "<eos>",
        "LengthOutOfRange",
        None,
        None,
    ),
    "a second one over it": (
        "<topic>sun 1</topic><topic>moon 99999</topic><async>",
        "",
        "<eos>",
        None,
        "does not fit the context of 80: cut after 1 items",
        [1],
    ),
    "a plan that ends in <sync/>": ("<topic>sun 1</topic><sync/>", "", "<eos>", "MisplacedTag", None, None),
    "a plan that ends in <eos>": ("<topic>sun 1</topic><eos>", "", "<eos>", "MisplacedTag", None, None),
    "no plan": ("<async>", "", "<eos>", "EmptyPlan", None, None),
    "no number": ("<topic>sun</topic><async>", "", "<eos>", "MissingLength", None, None),
    "a number in the middle": ("<topic>sun 3 moon</topic><async>", "", "<eos>", "MissingLength", None, None),
    "length 0": ("<topic>sun 0</topic><async>", "", "<eos>", "LengthOutOfRange", None, None),
    "a topic in a topic": (
        "<topic>sun<topic>moon 1</topic><async>",
        "",
        "<eos>",
        "UnbalancedTag",
        None,
        None,
    ),
    "a word after a stage": (SANE, "", "sun", "MisplacedTag", None, None),
}


def speak(first: str, forever: str, after: str, said: list[int]) -> int:
    """Plan with `first`, then `forever`; follow a finished span with `after`."""
    if said[-1] == Tag.END_ASYNC:
        return worlds.ids(after)[0]
    stage = said[len(said) - said[::-1].index(Tag.SYNC) :] if Tag.SYNC in said else said[2:]
    plan = itertools.chain(worlds.ids(first), itertools.cycle(worlds.ids(forever)))
    return next(itertools.islice(plan, len(stage), None), Tag.EOS)


def run_wild(name: str, bounds: Bounds, context: int = 80) -> Generation:
    """Let "bo" run wild beside a sane "ada", who must not notice; returns what became of "bo"."""
    first, forever, after, *_ = RUNAWAYS[name]
    wild = {worlds.ids("ada")[0]: (SANE, "", "<eos>"), worlds.ids("bo")[0]: (first, forever, after)}
    speaker = worlds.scripted(lambda said: speak(*wild[said[1]], said), context=context)
    sane, generation = sample(speaker, ["ada", "bo"], bounds=bounds)
    [alone] = sample(speaker, ["ada"], bounds=bounds)
    assert result(sane) == result(alone) and sane.document
    assert worlds.replayed(generation) == generation.tokens
    assert (generation.document is None) == (generation.problem is not None)
    return generation


@pytest.mark.parametrize("name", RUNAWAYS)
def test_a_runaway_is_cut_and_reported(name: str) -> None:
    *_, problem, cut, items = RUNAWAYS[name]
    generation = run_wild(name, BOUNDS)
    assert generation.problem is None if problem is None else problem in str(generation.problem)
    assert bool(generation.cuts) == bool(cut) and (cut or "") in " ".join(generation.cuts)
    found = generation.document and [len(stage.plan) for stage in generation.document.stages]
    assert found == items
    longest_span = 2 * Grammar().grid
    assert generation.critical_path <= BOUNDS.stages * (BOUNDS.plan_tokens + longest_span + 2)


@pytest.mark.parametrize("name", ["a topic without end", "fillers for ever"])
def test_without_a_bound_of_its_own_a_plan_ends_with_the_context(name: str) -> None:
    generation = run_wild(name, Bounds(plan_tokens=10_000), context=60)
    assert generation.critical_path == 1 + (60 - 2), "a read, and every token that fits"
    assert "EmptyPlan" in str(generation.problem)


def test_a_plan_of_just_as_many_items_as_allowed_is_left_alone() -> None:
    plan = "<topic>sun 1</topic>" * 4 + "<async>"
    speaker = worlds.scripted(lambda said: speak(plan, "", "<eos>", said))
    [generation] = sample(speaker, ["ada"], bounds=BOUNDS)
    assert generation.cuts == () and generation.document and len(generation.document.stages[0].plan) == 4


@pytest.mark.parametrize("token", [tag for tag in Tag if tag is not Tag.PAD])
def test_spans_hold_no_control_tag_however_sure_the_model_is(token: Tag) -> None:
    speaker = worlds.scripted(lambda said: speak(SANE, "", "<eos>", said))
    speaker.model.filler = token  # type: ignore[assignment]
    for unmasking in (Unmasking(), Unmasking(0.3), Unmasking(threshold=0.5, threshold_meaning="reveal")):
        [generation] = sample(speaker, ["ada"], unmasking)
        assert generation.document and generation.tokens.count(Tag.ASYNC) == 1


# Arguments.


@pytest.mark.parametrize(("factor", "lengths"), [(1.0, [4, 2]), (0.5, [2, 1]), (0.1, [1, 1]), (2.5, [10, 5])])
def test_the_length_factor_scales_the_planned_lengths(factor: float, lengths: list[int]) -> None:
    speaker = worlds.scripted(lambda _: Tag.EOS, Grammar(grid=2))
    plan = [Item("sun", 2), Item("moon", 1)]
    [generation] = sample(speaker, ["ada"], length_factor=factor, plans=[plan])
    assert generation.document
    assert [len(span.text.split()) for span in generation.document.stages[0].spans] == lengths


def test_a_plan_by_hand_that_fits_in_part_is_cut_and_its_history_too() -> None:
    a_cut_shortens_the_history()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length_factor": 0}, "length factor is positive, not 0"),
        ({"length_factor": -1.0}, "length factor is positive"),
        ({"plans": []}, "0 plans for 1 prompts"),
        ({"draw": Draw(seeds=[1, 2])}, "2 seeds for 1 requests"),
        ({"siblings": "twins", "cached": False}, "'twins'"),
        ({"draw": Draw(temperature=-1.0)}, "temperature is at least 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(worlds.inventor(), ["ada"], **{"plans": [[Item("sun", 1)]], **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("cached", [True, False])
def test_a_plan_by_hand_longer_than_the_context_is_refused(cached: bool) -> None:
    speaker = worlds.scripted(lambda _: Tag.EOS, context=40)
    with pytest.raises(TooLong, match="plan 0 has 80 tokens"):
        sample(speaker, ["ada"], plans=[[Item("sun", 1)] * 20], cached=cached)
