"""The tests can fail: each bug of the list, planted into the code, turns a law red that is green without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from laws import checks, planted_outlines, planted_theory, planted_writers
from laws.planting import Bug
from pdref.lab.recipe import Recipe, build_corpus
from pdref.lab.train import read_log, train


def a_killed_run_resumes() -> None:
    """Training on from a save writes the losses of a run that nothing interrupted."""
    recipe = Recipe.parse(
        {
            "corpus": {"documents": 8, "held_out": 1, "difficulty": 1},
            "model": {"depth": 1},
            "train": {"steps": 6, "batch": 2, "save_every": 3, "warmup": 1},
        }
    )
    corpus = build_corpus(recipe)
    with TemporaryDirectory() as whole, TemporaryDirectory() as killed, pytest.MonkeyPatch.context() as patch:
        train(recipe, whole, corpus, progress=False)
        patch.setattr("pdref.lab.train.save", lambda *_: 1 / 0)  # dies at the very end, with a save of step 3
        with pytest.raises(ZeroDivisionError):
            train(recipe, killed, corpus, progress=False)
        patch.undo()
        train(recipe, killed, corpus, progress=False)
        logs = [read_log(Path(folder) / "log.csv") for folder in (whole, killed)]
    for name in ("step", "loss", "plan", "content", "diffusion"):
        assert logs[0][name] == logs[1][name], name


LAWS: dict[str, Callable[[], object]] = {
    "an oracle is recovered": checks.oracle_recovers,
    "costs are the closed forms": checks.costs_are_the_closed_forms,
    "costs are the closed forms, r < 1": partial(checks.costs_are_the_closed_forms, 0.5),
    "a span ends at its step": checks.spans_end_at_their_steps,
    "deferring ends in time": checks.deferring_ends_in_time,
    "the surest goes first": checks.the_surest_goes_first,
    "no mask is ever drawn": checks.no_mask_is_ever_drawn,
    "a cut shortens the history": checks.a_cut_shortens_the_history,
    "company and cache change nothing": checks.company_and_cache_change_nothing,
    "nor do they when tokens are drawn": partial(checks.company_and_cache_change_nothing, temperature=1.0),
    "nor are dense siblings a case": partial(checks.company_and_cache_change_nothing, "planned, dense"),
    "frequencies match": partial(checks.frequencies_match, count=1000),
    "frequencies match in random order": partial(checks.frequencies_match, "random", count=1000),
    "frequencies match when hot": partial(checks.frequencies_match, temperature=2.0, count=1000),
    "the bound is exact": checks.bound_is_exact,
    "the loss is the formula": checks.loss_is_the_formula,
    "ragged batches lose nothing": checks.ragged_batches_lose_nothing,
    "training is inference": checks.training_is_inference,
    "information stays where it may": checks.information_stays_where_it_may,
    "a killed run resumes": a_killed_run_resumes,
}

MASK, DENOISING = "pdref.text.mask:Sight.of", "pdref.methods.denoising:"
PLANNED, TRAIN = "pdref.methods.planned_diffusion:", "pdref.lab.train:"
LOSS = "pdref.ops.planned_nll:planned_nll"

BUGS: dict[str, Bug] = {
    # Attention.
    "sibling leak": Bug(
        MASK,
        "number + tokens.span",
        "number",
        ("information stays where it may", "training is inference", "company and cache change nothing"),
    ),
    "a noised span sees its clean copy": Bug(
        "pdref.text.mask:sees",
        ".logical_and_(key_block != block)",
        "",
        ("information stays where it may", "the bound is exact", "training is inference"),
    ),
    "a span does not see itself": Bug(
        MASK,
        "region(query).where(noised, NOWHERE)",
        "region(query).where(noised & (query.span < 0), NOWHERE)",
        ("information stays where it may", "training is inference"),
    ),
    "batch padding is attended": Bug(
        MASK, "position.where(real & ", "position.where(", ("ragged batches lose nothing",)
    ),
    "span padding is attended": Bug(
        "pdref.model.cache:Cache.prefix", "own.sum(1)", "(own | True).sum(1)", ("company and cache change nothing",)
    ),
    "a span sees past the end of its request": Bug(
        "pdref.model.cache:Cache.prefix",
        "Reach(rows, lengths, ",
        "Reach(rows, lengths.max().expand_as(lengths), ",
        ("company and cache change nothing",),
    ),
    # Losses.
    "missing 1/t": Bug(
        LOSS, " / times.masked_fill(~masked, 1.0)", "", ("the loss is the formula", "the bound is exact")
    ),
    "label shift by one, plan": Bug(
        "pdref.ops.multi_token_nll.offsets:ahead", "[:, first:]", "[:, first - 1 :]", ("the loss is the formula",)
    ),
    "label shift by one, spans": Bug(
        LOSS,
        "copy.token.masked_fill",
        "copy.token.roll(-1, 1).masked_fill",
        ("the loss is the formula", "the bound is exact"),
    ),
    "the loss is of what is not masked": Bug(
        LOSS, "masked.gather(1, index) &", "~masked.gather(1, index) &", ("the loss is the formula",)
    ),
    "the mean is over the content": Bug(
        "pdref.methods.autoregressive:per_document_mean",
        "layout.response",
        "(layout.role == Role.CONTENT)",
        ("the loss is the formula",),
    ),
    "what ends a plan is not the planner's": Bug(
        "pdref.text.layout:Layout.planned", " | opening", "", ("the loss is the formula",)
    ),
    # Cache.
    "stale keys: the commit is skipped": Bug(
        f"{PLANNED}_fill",
        "for token, role, k in rows]",
        "for token, role, k in rows]; requests.seen[b] = requests.length(b) - 1",
        ("company and cache change nothing",),
    ),
    "stale keys: the commit is read and not kept": Bug(
        "pdref.model.cache:Writer.write",
        "store = self.cache.entries[layer]",
        "store = self.cache.entries[layer].clone() if 1 < entries.shape[2] < self.end else self.cache.entries[layer]",
        ("training is inference", "company and cache change nothing"),
    ),
    "the next token is predicted from the padding": Bug(
        "pdref.methods.decoding:Requests.read", "len(unread[i]) - 1", "-1", ("company and cache change nothing",)
    ),
    # Sampling.
    "quota off by one": Bug(
        f"{DENOISING}quotas", "done.diff(dim=1)", "done.diff(dim=1) + 1", ("a span ends at its step",)
    ),
    "steps off by one": Bug(
        f"{DENOISING}quotas", ".clamp_min(1)[owner]", ".clamp_min(1)[owner] + 1", ("costs are the closed forms, r < 1",)
    ),
    "the last step does not reveal all": Bug(
        f"{DENOISING}reveal", " | (masked & last[:, None])", "", ("deferring ends in time",)
    ),
    "wrong position of the scaffold": Bug(
        f"{DENOISING}Canvas.of",
        "at * layout.real",
        "(at + 1) * layout.real",
        ("an oracle is recovered", "training is inference"),
    ),
    "the least sure goes first": Bug(
        f"{DENOISING}_confidence", "-drawn.entropy", "drawn.entropy", ("the surest goes first",)
    ),
    "a token's noise chooses its turn": Bug(
        f"{DENOISING}_confidence", "step, -1)", "step, 0)", ("frequencies match in random order",)
    ),
    "noise by row of the batch": Bug(
        f"{DENOISING}denoise",
        "requests.seeds[canvas.request[open_rows]]",
        "open_rows",
        ("nor do they when tokens are drawn",),
    ),
    "all positions share their noise": Bug(
        "pdref.ops.unmask.counters:uniform",
        "for word in (positions, step, lane)",
        "for word in (step, lane)",
        ("frequencies match",),
    ),
    "<mask> is not forbidden": Bug(
        "pdref.ops.unmask.naive:unmask_naive", "forbidden is not None", "False", ("no mask is ever drawn",)
    ),
    "the temperature is dropped": Bug(
        "pdref.ops.unmask.naive:unmask_naive",
        "scores / (temperature or 1.0)",
        "scores",
        ("frequencies match when hot",),
    ),
    "the first number of a topic is its length": Bug(
        "pdref.text.document:Item.parse",
        're.fullmatch(r"(.*?)(?:^|\\s)(-?[0-9]{1,99})", text',
        're.match(r"(.*?)([0-9]{1,99})", text',
        ("an oracle is recovered",),
    ),
    "a cut forgets an event that it only shortens": Bug(
        "pdref.methods.decoding:Requests.cut",
        "(kept := event.before(length)).positions",
        "(kept := event).positions[-1] < length",
        ("a cut shortens the history",),
    ),
    # Training.
    "the optimizer forgets": Bug(
        f"{TRAIN}_restore", "optimizer.load_state_dict(inner)", "pass", ("a killed run resumes",)
    ),
    "the log repeats what is run again": Bug(
        f"{TRAIN}_Log.__init__", "int(row[0]) < first", "True", ("a killed run resumes",)
    ),
    "noise by what happened before": Bug(
        f"{TRAIN}step_losses",
        "torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)",
        "None",
        ("a killed run resumes",),
    ),
}


for others in (planted_outlines, planted_theory, planted_writers):
    LAWS |= others.LAWS
    BUGS |= others.BUGS


@pytest.mark.parametrize("law", LAWS)
def test_every_law_is_green_on_the_code_as_it_is(law: str) -> None:
    LAWS[law]()


@pytest.mark.parametrize(("bug", "law"), [(bug, law) for bug, planted in BUGS.items() for law in planted.red])
def test_a_planted_bug_turns_its_laws_red(bug: str, law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug].plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError, IndexError)):
        LAWS[law]()
