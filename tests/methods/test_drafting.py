"""Drafting: the same text in fewer forwards; the same distribution under the rejection rule, and the books kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from laws import worlds
from laws.checks import result
from laws.planting import Bug
from laws.source import FiveSymbols, p_value
from pdref.data.profiles import Profiles
from pdref.lab.checkpoint import load
from pdref.methods import autoregressive, drafting, multi_token, planned_diffusion
from pdref.methods.decoding import Draw, Requests, Speaker
from pdref.methods.denoising import Unmasking
from pdref.methods.drafting import ACCEPT, DRAFT, Attentive, Draft, Pick
from pdref.methods.generation import Drafted, Generation
from pdref.methods.planning import Bounds
from pdref.model.heads import KINDS, Kind, MultiToken
from pdref.model.transformer import Config
from pdref.ops.impl import Impl
from pdref.ops.unmask.counters import gumbel
from pdref.text.layout import Grammar, Layout, Role
from pdref.text.tags import Tag

EVERY = pytest.mark.parametrize("kind", KINDS)
GRAMMAR = Grammar(grid=2)
PROMPTS = ["ada", "bo bo cy", "cy ada dee dee", "dee", "cy"]
SEEDS = [11, 12, 13, 14, 15]
CONTEXT = 70


def speaker_of(kind: Kind) -> Speaker:
    """A float64 model with four heads that has learned a little of a few documents: some of its drafts come true."""
    torch.manual_seed(0)
    model = MultiToken(Config(worlds.V, CONTEXT, layers=2, width=16, heads=2, key_heads=1), 4, kind).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    batch = Layout.collate(worlds.layouts(GRAMMAR)).map(lambda field: field[:, :CONTEXT])
    for _ in range(25):
        optimizer.zero_grad()
        multi_token.objective(model, batch).backward()
        optimizer.step()
    return Speaker(model.eval(), worlds.TOKENIZER, GRAMMAR)


@pytest.fixture(scope="module")
def speakers() -> dict[Kind, Speaker]:
    return {kind: speaker_of(kind) for kind in KINDS}


def wrote(generation: Generation) -> tuple[object, ...]:
    """What a generation says, however it came about."""
    return generation.tokens, generation.document, generation.problem, generation.cuts


def sample(
    speaker: Speaker, draw: Draw, prompts: Sequence[str] = PROMPTS, cached: bool = True, impl: Impl = "auto"
) -> list[Generation]:
    """Whole documents, token by token, cut by the context."""
    return autoregressive.sample(speaker, prompts, draw, cached=cached, impl=impl)


# The same text in fewer forwards.


@EVERY
@pytest.mark.parametrize("temperature", [0.0, 0.6])
@pytest.mark.parametrize("cached", [True, False])
def test_drafts_change_no_token(kind: Kind, temperature: float, cached: bool, speakers: dict[Kind, Speaker]) -> None:
    plain = sample(speakers[kind], Draw(temperature, seeds=SEEDS, ahead=0), cached=cached)
    assert all(g.drafted is None for g in plain)
    for ahead in (None, 1, 2, 7):
        found = sample(speakers[kind], Draw(temperature, seeds=SEEDS, ahead=ahead), cached=cached)
        for ours, theirs in zip(found, plain, strict=True):
            assert wrote(ours) == wrote(theirs)
            assert worlds.replayed(ours) == ours.tokens
            assert ours.drafted and ours.nfe == ours.critical_path == 1 + ours.drafted.forwards
            written = [event for event in ours.history if event.phase == "write"]
            most = min(3, ahead or 3) + 1
            assert max(len(event.tokens) for event in written) <= most, "no event is of two forwards"
        total = Drafted.total(found)
        assert total.tokens_per_forward > 1.05, "some came true"
        assert 0.05 < total.acceptance[0] < 1, "and some did not"
        assert sum(g.critical_path for g in found) < sum(g.critical_path for g in plain)


@EVERY
@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_company_changes_nothing(kind: Kind, rule: str, speakers: dict[Kind, Speaker]) -> None:
    draw = Draw(0.6, seeds=SEEDS, rule=rule)  # type: ignore[arg-type]
    together = sample(speakers[kind], draw)
    assert [result(g) for g in sample(speakers[kind], draw, cached=False)] == [result(g) for g in together]
    for b, prompt in enumerate(PROMPTS):
        [alone] = sample(speakers[kind], Draw(0.6, seeds=[SEEDS[b]], rule=rule), [prompt])  # type: ignore[arg-type]
        assert result(alone) == result(together[b])
        assert alone.drafted == together[b].drafted


def test_a_nucleus_is_drafted_in_too(speakers: dict[Kind, Speaker]) -> None:
    plain = sample(speakers["medusa"], Draw(0.9, 0.7, SEEDS, ahead=0))
    assert [wrote(g) for g in sample(speakers["medusa"], Draw(0.9, 0.7, SEEDS))] == [wrote(g) for g in plain]
    inside = sample(speakers["medusa"], Draw(0.9, 1e-6, SEEDS, rule="rejection"))
    greedy = sample(speakers["medusa"], Draw(seeds=SEEDS))
    assert [wrote(g) for g in inside] == [wrote(g) for g in greedy], "a nucleus of one token leaves no choice"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cached", [True, False])
def test_a_small_model_drafts(temperature: float, cached: bool) -> None:
    large = worlds.inventor()
    draw, off = (Draw(temperature, seeds=SEEDS, ahead=ahead) for ahead in (None, 0))
    plain = sample(large, off, cached=cached)
    for small, least in ((worlds.inventor(seed=16).model, 1.05), (large.model, 4)):
        speaker = Speaker(large.model, large.tokenizer, large.grammar, small=small)
        found = sample(speaker, draw, cached=cached)
        assert [wrote(g) for g in found] == [wrote(g) for g in plain]
        total = Drafted.total(found)
        assert total.tokens_per_forward > least
    assert set(total.acceptance) == {1.0} and total.predicted == 5, "who drafts for itself is never wrong"


def test_a_small_model_speaks_the_same_tokens() -> None:
    large, small = worlds.inventor(), worlds.inventor(context=60)
    with pytest.raises(ValueError, match="at least 120 positions, not in 34 and 60"):
        sample(Speaker(large.model, large.tokenizer, large.grammar, small=small.model), Draw())
    other = FiveSymbols().speaker.model
    with pytest.raises(ValueError, match="in the same 34 tokens"):
        sample(Speaker(large.model, large.tokenizer, large.grammar, small=other), Draw())


@pytest.mark.parametrize("wrong", [{"ahead": -1}, {"rule": "hope"}])
def test_no_such_drafting(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"'coupled' or 'rejection'.*at least 0"):
        Draw(**wrong)  # type: ignore[arg-type]


# Plans.


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cached", [True, False])
def test_plans_are_those_without_drafts(temperature: float, cached: bool) -> None:
    """Documents of one to three stages, whose plans a small model drafts."""
    large = worlds.inventor()
    drafted = Speaker(large.model, large.tokenizer, large.grammar, small=worlds.inventor(seed=16).model)
    bounds = Bounds(items=3, plan_tokens=20, stages=3)

    def planned(speaker: Speaker) -> list[Generation]:
        draw = Draw(temperature, seeds=SEEDS)
        return planned_diffusion.sample(speaker, PROMPTS, draw=draw, bounds=bounds, cached=cached)

    ours, theirs = planned(drafted), planned(large)
    assert [wrote(g) for g in ours] == [wrote(g) for g in theirs]
    assert any(g.document and len(g.document.stages) > 1 for g in ours) and any(g.cuts for g in ours)
    assert sum(g.critical_path for g in ours) < 0.95 * sum(g.critical_path for g in theirs)
    for g in ours:
        assert worlds.replayed(g)[: len(g.tokens)] == g.tokens


@EVERY
def test_heads_draft_plans(kind: Kind, speakers: dict[Kind, Speaker]) -> None:
    bounds = Bounds(items=3, plan_tokens=20, stages=2)
    ours, theirs = (
        planned_diffusion.sample(speakers[kind], PROMPTS, draw=Draw(seeds=SEEDS, ahead=ahead), bounds=bounds)
        for ahead in (None, 0)
    )
    assert [wrote(g) for g in ours] == [wrote(g) for g in theirs]
    assert sum(g.critical_path for g in ours) < sum(g.critical_path for g in theirs)


# Where writing ends.


def in_flight(speaker: Speaker, ahead: int | None, cached: bool = True) -> Requests:
    """Requests that have read their prompts."""
    requests = Requests(speaker, PROMPTS, Draw(0.6, seeds=SEEDS, ahead=ahead), cached)
    requests.read(range(len(PROMPTS)))
    return requests


def stop_after(counts: Sequence[int], told: list[list[int]]) -> Callable[[int, int], bool]:
    """Stops request b at its token number counts[b]; `told` are the tokens that it was asked about."""

    def stop(b: int, token: int) -> bool:
        told[b].append(token)
        return len(told[b]) > counts[b]

    return stop


@EVERY
@pytest.mark.parametrize("cached", [True, False])
def test_a_stop_within_a_draft_is_a_stop(kind: Kind, cached: bool, speakers: dict[Kind, Speaker]) -> None:
    """Wherever it stands: what was told, written, read and reported is what plain writing tells, and it goes on so."""
    for shift in range(4):
        counts = [0 + shift, 7 - shift, 3, 2 * shift, 11]
        ends = []
        for ahead in (0, None):
            requests, told = in_flight(speakers[kind], ahead, cached), [[] for _ in PROMPTS]
            stopped = requests.write(range(5), "write", stop_after(counts, told), 30)
            assert requests.seen == [requests.length(b) for b in range(5)]
            hidden = requests.hidden.clone()
            for b in range(5):
                requests.add(b, "write", [Tag.SYNC], Role.PLAN, 0)
            requests.read(range(5))
            ends.append((stopped, told, [requests.tokens(b) for b in range(5)], hidden, requests.hidden))
        assert ends[0][:3] == ends[1][:3]
        assert [len(tokens) for tokens in ends[1][1]] == [count + 1 for count in counts], (
            "each token is asked about once"
        )
        for before, after in zip(ends[0][3:], ends[1][3:], strict=True):
            torch.testing.assert_close(before, after)


@EVERY
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 6])
def test_no_limit_is_passed(kind: Kind, limit: int, speakers: dict[Kind, Speaker]) -> None:
    requests, plain = (in_flight(speakers[kind], ahead) for ahead in (None, 0))
    for either in (requests, plain):
        assert either.write(range(5), "write", lambda *_: False, limit) == {}
        assert either.seen == [either.length(b) for b in range(5)]
    assert [requests.tokens(b) for b in range(5)] == [plain.tokens(b) for b in range(5)]
    for ours, theirs in zip(requests.generations, plain.generations, strict=True):
        assert ours.critical_path <= theirs.critical_path == 1 + limit
    torch.testing.assert_close(requests.hidden, plain.hidden)
    for either in (requests, plain):  # and they write on
        for b in range(5):
            either.add(b, "write", [Tag.SYNC], Role.PLAN, 0)
        either.read(range(5))
        either.write(range(5), "write", lambda *_: True, 1)
    torch.testing.assert_close(requests.hidden, plain.hidden)
    for either in (requests, plain):
        either.write(range(5), "write", lambda *_: False, limit)
    assert [requests.tokens(b) for b in range(5)] == [plain.tokens(b) for b in range(5)]
    torch.testing.assert_close(requests.hidden, plain.hidden)


@EVERY
@pytest.mark.parametrize("cached", [True, False])
def test_the_context_is_filled_and_not_passed(kind: Kind, cached: bool, speakers: dict[Kind, Speaker]) -> None:
    requests, plain = (in_flight(speakers[kind], ahead, cached) for ahead in (None, 0))
    for either in (requests, plain):
        either.write(range(5), "write", lambda *_: False, 1000)
        assert [either.length(b) for b in range(5)] == [CONTEXT] * 5
    assert [requests.tokens(b) for b in range(5)] == [plain.tokens(b) for b in range(5)]
    torch.testing.assert_close(requests.hidden, plain.hidden)


# Caches rewind for free.


@EVERY
def test_what_was_drafted_in_vain_is_seen_by_nobody(
    kind: Kind, speakers: dict[Kind, Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between rounds every slot behind the text, of trunk and heads, is filled with nonsense."""
    expected = [wrote(g) for g in sample(speakers[kind], Draw(seeds=SEEDS))]
    read = Requests.read

    def spoil(requests: Requests, *given: object) -> Tensor:
        drafter = requests.drafter
        caches = [requests.cache, *([drafter.cache] if isinstance(drafter, Attentive) else [])]
        for b in range(len(requests)):
            for cache in caches:
                cache.entries[:, b, :, requests.length(b) :] = 1e3
            if isinstance(drafter, Attentive):
                drafter.z[b, requests.length(b) :] = 1e3
        return read(requests, *given)

    monkeypatch.setattr(Requests, "read", spoil)
    assert [wrote(g) for g in sample(speakers[kind], Draw(seeds=SEEDS))] == expected


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "medusa"])
def test_heads_that_read_as_they_go_draft_like_heads_that_read_everything_anew(
    kind: Kind, speakers: dict[Kind, Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    propose, rounds = Attentive.propose, []

    def compare(
        drafter: Attentive, rows: Sequence[int], text: Callable[[int], list[int]], *rest: Tensor | Pick | Impl
    ) -> Draft:
        anew = Attentive(drafter.model, drafter.most, len(drafter.z))
        anew.z = drafter.z
        expected = propose(anew, rows, text, *rest)  # type: ignore[arg-type]
        found = propose(drafter, rows, text, *rest)  # type: ignore[arg-type]
        torch.testing.assert_close(found.hidden, expected.hidden)
        assert torch.equal(found.tokens, expected.tokens)
        rounds.append(rows)
        return found

    monkeypatch.setattr(Attentive, "propose", compare)
    sample(speakers[kind], Draw(0.6, seeds=SEEDS))
    assert len(rounds) > 10 and {len(rows) for rows in rounds} > {1}, "requests end at different times"


# The books.


def test_acceptance_predicts_tokens_a_forward() -> None:
    drafted = Drafted()
    for accepted in (0, 1, 3, 3):  # of three drafts each
        drafted.count(min(3, accepted + 1), accepted)
        drafted.tokens += accepted + 1
        drafted.forwards += 1
    assert (drafted.tried, drafted.accepted) == ([4, 3, 2], [3, 2, 2])
    assert drafted.acceptance == [3 / 4, 2 / 3, 1]
    assert drafted.predicted == pytest.approx(1 + 3 / 4 + 2 / 4 + 2 / 4)
    assert drafted.tokens_per_forward == pytest.approx(drafted.predicted) == 11 / 4


def test_totals_are_of_all_who_were_drafted_for() -> None:
    one, other = Drafted([4, 3], [3, 1], 8, 4), Drafted([2, 2, 2], [2, 2, 1], 7, 2)
    found = Drafted.total([Generation([], 0, drafted=d) for d in (one, None, other)])
    assert found == Drafted([6, 5, 2], [5, 3, 1], 15, 6)
    assert (Drafted().acceptance, Drafted().predicted) == ([], 1)


def test_what_was_counted_is_what_happened(speakers: dict[Kind, Speaker]) -> None:
    """Drafts counted as true are the tokens that took no forward of their own."""
    for generation in sample(speakers["medusa"], Draw(seeds=SEEDS)):
        drafted = generation.drafted
        assert drafted and all(a <= t for a, t in zip(drafted.accepted, drafted.tried, strict=True))
        assert drafted.tried[1:] <= drafted.accepted[:-1], "a draft is tried where the one before it came true"
        ended = generation.tokens[-1] == Tag.EOS
        written = len(generation.tokens) - generation.prompt_length - ended
        assert drafted.tokens == written
        in_vain = drafted.tokens - drafted.forwards - sum(drafted.accepted)
        assert -1 <= in_vain <= 0, "the end may be a draft that came true and was not written"


# The rejection rule, on chains of five symbols.

V, J, DRAWS = 5, 3, 50_000
P = torch.from_numpy(np.random.default_rng(1).dirichlet(np.full(V, 0.7), V))  # [from, to]
Q = torch.from_numpy(np.random.default_rng(2).dirichlet(np.full(V, 0.7), V))


def chains(count: int = DRAWS, offered: int = J) -> Tensor:
    """`count` chains of P of J + 1 symbols from symbol 0: drafted by Q, verified, and drawn from P to the end."""
    seeds = torch.randint(2**31, (count,), generator=torch.Generator().manual_seed(3))
    said, start = torch.zeros(count, J + 2, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    draft = said.clone()
    for j in range(1, J + 1):
        draft[:, j] = (Q[draft[:, j - 1]].log() + gumbel(seeds, start + j, DRAFT, V)).argmax(-1)
    counts = torch.full((count,), offered)
    log_p, log_q = P[draft[:, : J + 1]].log(), Q[draft[:, :J]].log()
    kept, token = drafting.rejection(log_p, log_q, draft[:, 1 : J + 1], counts, seeds, start + 1)
    assert int(kept.max()) <= offered
    for j in range(1, J + 2):
        plain = (P[said[:, j - 1]].log() + gumbel(seeds, start + j, 0, V)).argmax(-1)
        said[:, j] = torch.where(j <= kept, draft[:, min(j, J)], torch.where(j == kept + 1, token, plain))
    return said[:, 1:]


def chance(found: Tensor) -> float:
    """p-value of the frequencies of the first three symbols under P."""
    law = P[0][:, None, None] * P[:, :, None] * P[None]  # [x1, x2, x3]
    counts = torch.bincount(found[:, 0] * V * V + found[:, 1] * V + found[:, 2], minlength=V**3)
    expected = law.flatten() * len(found)
    often = expected >= 5
    rest = (counts[~often].sum(), expected[~often].sum())
    observed = [*counts[often].tolist(), int(rest[0])]
    return float(chisquare(observed, [*expected[often].tolist(), float(rest[1])]).pvalue)


@pytest.mark.parametrize("offered", [0, 1, J])
def test_the_rejection_rule_keeps_the_distribution(offered: int) -> None:
    assert chance(chains(offered=offered)) > 0.01


WRONG = {
    "everything is accepted": ("< ratio", "< ratio + 1"),
    "the ratio upside down": ("log_p[:, :J] - log_q", "log_q - log_p[:, :J]"),
    "a second chance": ("(uniform(", "(0.9 * uniform("),
    "replaced from p, not from what q left": ("(p - q).clamp_min(0)", "p"),
    "judged by the place after": ("log_p[:, :J] - log_q", "log_p[:, 1:] - log_q"),
    "one number decides and replaces": ("positions + accepted, REPLACE", "positions + accepted, DRAFT"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Bug("pdref.methods.drafting:rejection", *WRONG[name], red=()).plant(monkeypatch)
    assert chance(chains()) < 1e-6


def test_a_perfect_draft_is_never_rejected() -> None:
    log_p = P[torch.zeros(1000, J + 1, dtype=torch.int64)].log()
    seeds, drafts = torch.arange(1000), torch.randint(V, (1000, J), generator=torch.Generator().manual_seed(4))
    counts = torch.full((1000,), J)
    kept, _ = drafting.rejection(log_p, log_p[:, :J], drafts, counts, seeds, torch.zeros(1000, dtype=torch.int64))
    assert (kept == J).all()


def test_steps_of_the_counter_are_not_shared() -> None:
    assert len({0, DRAFT, ACCEPT, drafting.REPLACE}) == 4


@pytest.mark.parametrize("ahead", [1, 3])
def test_sampling_with_rejection_follows_the_source(ahead: int) -> None:
    """A model of a known joint, drafted for by one that believes in another joint."""
    source, other = FiveSymbols(), FiveSymbols(named=True)
    speaker = Speaker(source.speaker.model, source.tokenizer, source.grammar, small=other.speaker.model)
    draw = Draw(1.0, generator=torch.Generator().manual_seed(1), ahead=ahead, rule="rejection")
    found = autoregressive.sample(speaker, ["go"] * 1500, draw)
    assert p_value([source.outcome(g.tokens) for g in found], source.joint) > 1e-3
    total = Drafted.total(found)
    assert total.tokens_per_forward > 1.5 and min(total.acceptance) < 1
    assert total.tokens_per_forward == pytest.approx(total.predicted, rel=0.25)


# Bugs.

DECODING, DRAFTING = "pdref.methods.decoding:Requests.", "pdref.methods.drafting:"
Law = Callable[[dict[Kind, Speaker], pytest.MonkeyPatch], None]
LAWS: dict[str, Law] = {
    "tokens": lambda speakers, _: test_drafts_change_no_token("parallel", 0.6, True, speakers),
    "limit": lambda speakers, _: test_no_limit_is_passed("sequential", 3, speakers),
    "stop": lambda speakers, _: test_a_stop_within_a_draft_is_a_stop("medusa", True, speakers),
    "anew": partial(test_heads_that_read_as_they_go_draft_like_heads_that_read_everything_anew, "sequential"),
}
BUGS: dict[str, tuple[str, str, str, str]] = {
    "the first draft always stays": (
        f"{DRAFTING}agreeing",
        "if draft != exact[j]",
        "if j and draft != exact[j]",
        "tokens",
    ),
    "judged by the token after": (
        f"{DECODING}_advance",
        "agreeing(ids, tokens)",
        "agreeing(ids, tokens[1:] + [0])",
        "tokens",
    ),
    "what a stop cut off is read": (f"{DECODING}_settle", "self.seen[b] + read", "self.seen[b] + true", "stop"),
    "the state before the drafts": (f"{DECODING}_settle", "states[read]", "states[0]", "stop"),
    "a draft too many": (f"{DECODING}_advance", "left[b] - 1", "left[b]", "limit"),
    "drafts stand for text": (f"{DRAFTING}Read.on", "end - again", "end", "anew"),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, speakers: dict[Kind, Speaker], monkeypatch: pytest.MonkeyPatch) -> None:
    *change, law = BUGS[name]
    LAWS[law](speakers, monkeypatch)
    monkeypatch.undo()
    Bug(*change, red=()).plant(monkeypatch)
    with pytest.raises((AssertionError, IndexError)):
        LAWS[law](speakers, monkeypatch)


# At full size.


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_shipped_heads_change_no_token_in_float32(count: int, temperature: float) -> None:
    speaker = load("profiles_heads").speaker
    prompts = [document.prompt for document in Profiles(2, speaker.grammar).sample(count, 5)]
    found: list[Generation] = []
    for start in range(0, count, 50):
        some, seeds = prompts[start : start + 50], range(start, min(start + 50, count))
        ours, theirs = (sample(speaker, Draw(temperature, seeds=seeds, ahead=ahead), some) for ahead in (None, 0))
        assert [wrote(g) for g in ours] == [wrote(g) for g in theirs]
        found += ours
    total = Drafted.total(found)
    assert total.tokens_per_forward > (3.6 if temperature == 0 else 3)
    assert total.predicted == pytest.approx(total.tokens_per_forward, rel=0.03)


def test_the_shipped_heads_draft_plans() -> None:
    """The bar of the critical path: four times shorter than token by token, with every span right."""
    speaker = load("profiles_heads").speaker
    source = Profiles(2, speaker.grammar)
    prompts = [document.prompt for document in source.sample(20, 5)]
    ours, theirs = (
        planned_diffusion.sample(speaker, prompts, Unmasking(0.34), Draw(ahead=ahead)) for ahead in (None, 0)
    )
    assert [wrote(g) for g in ours] == [wrote(g) for g in theirs]
    paths = [sum(g.critical_path for g in some) for some in (ours, theirs, sample(speaker, Draw(ahead=0), prompts))]
    assert paths[0] < 0.65 * paths[1] and 6 * paths[0] < paths[2]
    assert all(g.document and source.judge(g.document).right for g in ours)
