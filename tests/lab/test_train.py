"""Training: what a step does, and that a run which was killed goes on as if nothing had happened."""

from __future__ import annotations

import csv
import math
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pdref.lab import train as training
from pdref.lab.checkpoint import load
from pdref.lab.recipe import Corpus, Recipe, build_corpus
from pdref.lab.train import Batches, Losses, read_log, response_length, set_rates, step_losses, train
from pdref.methods import masked_diffusion, multi_token, planned_diffusion
from pdref.methods.autoregressive import per_document_mean
from pdref.model.heads import MultiToken
from pdref.model.transformer import Transformer
from pdref.text.layout import Layout, Role, TooLong, encode

TINY = Recipe.parse(
    {
        "corpus": {"name": "profiles", "documents": 40, "held_out": 4, "difficulty": 1},
        "model": {"depth": 1},
        "train": {"steps": 10, "batch": 4, "warmup": 4, "save_every": 3, "diffusion_share": 0.3},
    }
)
# The steps at which the runs below are killed: before the first save, on a save, between and after saves.
KILLS = sorted({0, 1, 3, 6, 9, *random.Random(0).sample(range(10), 2)})


class Killed(Exception):
    """The power went."""


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(TINY)


@pytest.fixture(scope="module")
def layouts(corpus: Corpus) -> list[Layout]:
    return [encode(document, corpus.tokenizer, TINY.grammar) for document in corpus.train]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(TINY, folder, corpus, progress=False)
    return folder


def log_without_seconds(folder: Path) -> list[list[str]]:
    """The log as it is written, but for how long it took."""
    with open(folder / "log.csv", newline="") as file:
        return [row[:-1] for row in csv.reader(file)]


def assert_same_run(folder: Path, whole: Path) -> None:
    """Same losses to the last digit written, same weights to the last bit."""
    assert log_without_seconds(folder) == log_without_seconds(whole)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not (folder / "resume.pt").exists()


def at_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Do something at the start of every step."""

    def step(model: Transformer, layout: Layout, settings: object, step: int, response: int) -> Losses:
        act(step)
        return step_losses(model, layout, settings, step, response)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "step_losses", step)


def die_at(monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
    """Raise at the start of a step."""

    def act(step: int) -> None:
        if step == fatal:
            raise Killed

    at_step(monkeypatch, act)


# Killed and resumed.


@pytest.mark.parametrize("fatal", KILLS)
def test_a_killed_run_goes_on_to_the_same_log(
    fatal: int, tmp_path: Path, whole: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_at(monkeypatch, fatal)
    with pytest.raises(Killed):
        train(TINY, tmp_path, corpus, progress=False)
    assert len(log_without_seconds(tmp_path)) == 1 + fatal
    monkeypatch.undo()
    train(TINY, tmp_path, corpus, progress=False)
    assert_same_run(tmp_path, whole)


def test_what_is_on_the_disk_suffices_at_every_moment(
    tmp_path: Path, whole: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is killed at step 7 and resumed, and killed again at the first step after that."""
    first, second = tmp_path / "first", tmp_path / "second"
    for before, after, fatal in ((tmp_path / "none", first, 7), (first, second, 6)):
        at_step(monkeypatch, lambda step, f=fatal, a=after, b=before: step == f and shutil.copytree(b, a))  # type: ignore[misc]
        train(TINY, before, corpus, progress=False)
        monkeypatch.undo()
    assert len(log_without_seconds(second)) == 1 + 6, "the log of the first run is there before a step is done"
    train(TINY, second, corpus, progress=False)
    assert_same_run(second, whole)


VICTIM = """
import os, signal, sys
from pdref.lab import train as training
from pdref.lab.recipe import Recipe

done = training.step_losses
def step_losses(model, layout, settings, step, response):
    if step == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return done(model, layout, settings, step, response)
training.step_losses = step_losses
training.torch.set_num_threads(1)
training.train(Recipe.load(sys.argv[1]), sys.argv[2], progress=False)
"""


def test_a_process_killed_by_the_system_is_resumed_by_another(tmp_path: Path, whole: Path, corpus: Corpus) -> None:
    recipe, folder = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text(TINY.dump())
    victim = subprocess.run(
        [sys.executable, "-c", VICTIM, str(recipe), str(folder), "8"],
        cwd=Path(training.__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert victim.returncode == -signal.SIGKILL, victim.stderr
    assert (folder / "resume.pt").is_file() and not (folder / "model.safetensors").exists()
    train(TINY, folder, corpus, progress=False)
    assert_same_run(folder, whole)


@pytest.mark.parametrize("changes", [{"objective": "released"}, {"muon_rate": 0.0}, {"siblings": "dense"}])
def test_every_kind_of_run_can_be_resumed(
    changes: dict[str, object], tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TINY.with_train(steps=5, save_every=2, **changes)
    train(recipe, tmp_path / "whole", corpus, progress=False)
    die_at(monkeypatch, 3)
    with pytest.raises(Killed):
        train(recipe, tmp_path / "killed", corpus, progress=False)
    monkeypatch.undo()
    train(recipe, tmp_path / "killed", corpus, progress=False)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def interrupted(folder: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, fatal: int = 5) -> None:
    """Leave an interrupted run in `folder`."""
    die_at(monkeypatch, fatal)
    with pytest.raises(Killed):
        train(TINY, folder, corpus, progress=False)
    monkeypatch.undo()


def test_half_written_files_are_ignored(
    tmp_path: Path, whole: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, corpus, monkeypatch)
    for name in ("resume.pt", "log.csv", "model.safetensors"):
        (tmp_path / f"{name}.part").write_bytes(b"half")
    with open(tmp_path / "log.csv", "a") as log:
        log.write("5,0.12")  # a row that the interruption cut short
    train(TINY, tmp_path, corpus, progress=False)
    assert_same_run(tmp_path, whole)


def test_a_save_that_fails_half_way_leaves_the_one_before(
    tmp_path: Path, whole: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.save

    def failing(state: dict[str, object], path: Path) -> None:
        if state["step"] == 6:
            Path(path).write_bytes(b"half")
            raise Killed
        real(state, path)

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(Killed):
        train(TINY, tmp_path, corpus, progress=False)
    monkeypatch.undo()
    train(TINY, tmp_path, corpus, progress=False)
    assert_same_run(tmp_path, whole)


def test_another_recipe_cannot_go_on(tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, corpus, monkeypatch)
    with pytest.raises(ValueError, match="interrupted run of another recipe"):
        train(TINY.with_train(learning_rate=1e-3), tmp_path, corpus, progress=False)


def test_a_fresh_start_forgets_the_interrupted_run(
    tmp_path: Path, whole: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, corpus, monkeypatch)
    die_at(monkeypatch, 1)
    with pytest.raises(Killed):
        train(TINY, tmp_path, corpus, resume=False, progress=False)
    assert not (tmp_path / "resume.pt").exists()
    monkeypatch.undo()
    train(TINY, tmp_path, corpus, progress=False)
    assert_same_run(tmp_path, whole)


# What a run does.


def test_the_log_tells_nats_by_role(whole: Path, layouts: list[Layout]) -> None:
    log = read_log(whole / "log.csv")
    assert log["step"] == list(range(TINY.train.steps))
    diffusing = [not math.isnan(nats) for nats in log["whole"]]
    assert diffusing == [False, False, False, True, False, False, True, False, False, True], "three steps in ten"
    for name in ("plan", "content", "diffusion"):
        assert [math.isnan(nats) for nats in log[name]] == diffusing
    vocabulary = math.log(len(build_corpus(TINY).tokenizer))
    assert 0.8 * vocabulary < log["plan"][0] < 1.3 * vocabulary, "a fresh model knows nothing"


def test_the_loss_falls(tmp_path: Path, corpus: Corpus) -> None:
    few = replace(corpus, train=corpus.train[:8])
    train(TINY.with_train(steps=80, batch=8, diffusion_share=0.0), tmp_path, few, progress=False)
    log = read_log(tmp_path / "log.csv")
    for name, share in {"loss": 0.75, "plan": 0.5, "content": 0.6, "diffusion": 0.95}.items():
        first, last = log[name][:20], log[name][-20:]
        assert sum(last) < share * sum(first), name


def test_what_is_trained_is_what_is_saved(whole: Path, corpus: Corpus, layouts: list[Layout]) -> None:
    trained = train(TINY.with_train(steps=2, save_every=1), whole.parent / "short", corpus, progress=False)
    loaded = load(whole.parent / "short").speaker
    assert not trained.model.training and not loaded.model.training
    for ours, theirs in zip(trained.model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.grammar == trained.grammar == TINY.grammar
    assert loaded.tokenizer.encode("1") == trained.tokenizer.encode("1")


@pytest.mark.parametrize(("objective", "shifted"), [("formula", False), ("released", True)])
def test_the_released_objective_makes_a_shifted_speaker(
    objective: str, shifted: bool, tmp_path: Path, corpus: Corpus
) -> None:
    speaker = train(TINY.with_train(steps=1, objective=objective), tmp_path, corpus, progress=False)
    assert speaker.shifted == load(tmp_path).speaker.shifted == shifted


def test_whole_responses_that_no_context_holds_are_refused_at_once(tmp_path: Path, corpus: Corpus) -> None:
    longest = max(encode(d, corpus.tokenizer, TINY.grammar).shape[1] for d in corpus.train)
    recipe = Recipe.parse(
        {
            "corpus": {"difficulty": 1},
            "model": {"depth": 1, "context": longest},
            "train": {"steps": 1, "batch": 2, "diffusion_share": 1.0},
        }
    )
    with pytest.raises(TooLong, match=f"not {longest}"):
        train(recipe, tmp_path, corpus, progress=False)
    train(recipe.with_train(diffusion_share=0.0), tmp_path, corpus, progress=False)


# Heads that look ahead.

WITH_HEADS = replace(TINY, model=replace(TINY.model, heads=3, heads_kind="medusa"))


def on_trunk(folder: Path) -> Recipe:
    """Heads for the trunk in a folder."""
    return WITH_HEADS.with_train(trunk=str(folder), diffusion_share=0.0)


def test_a_trunk_stands_and_its_heads_learn(tmp_path: Path, whole: Path, corpus: Corpus) -> None:
    recipe = on_trunk(whole).with_train(steps=40, learning_rate=0.01)
    trained = train(recipe, tmp_path, corpus, progress=False).model
    loaded, trunk = load(tmp_path).speaker.model, load(whole).speaker.model.state_dict()
    assert isinstance(loaded, MultiToken) and (loaded.n, loaded.kind) == (3, "medusa")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])
        assert torch.equal(value, trunk[name]) if name in trunk else bool(value.any())
    log = read_log(tmp_path / "log.csv")
    for name in ("offset_2", "offset_3"):
        assert sum(log[name][-10:]) < 0.9 * sum(log[name][:10])
    assert all(math.isnan(nats) for nats in log["plan"])


def test_heads_learn_beside_the_formula(layouts: list[Layout]) -> None:
    torch.manual_seed(0)
    model, plain = WITH_HEADS.build(200), Transformer(TINY.config(200))
    plain.load_state_dict(model.state_dict(), strict=False)
    layout, settings = Layout.collate(layouts[:3]), TINY.with_train(heads_weight=0.3).train
    found, without = (step_losses(m, layout, settings, 1, 200) for m in (model, plain))
    further = multi_token.document_nll(model, layout)[..., 1:]
    expected = without.loss + 0.3 * per_document_mean(further.sum(-1), layout).mean()
    torch.testing.assert_close(found.loss, expected)
    assert (found.plan, found.content, found.diffusion) == (without.plan, without.content, without.diffusion)
    assert found.offsets == pytest.approx(multi_token.per_offset(further, layout, first=2).tolist())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_killed_run_with_heads_goes_on(
    frozen: bool, tmp_path: Path, whole: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = on_trunk(whole) if frozen else WITH_HEADS
    train(recipe, tmp_path / "whole", corpus, progress=False)
    die_at(monkeypatch, 5)
    with pytest.raises(Killed):
        train(recipe, tmp_path / "killed", corpus, progress=False)
    monkeypatch.undo()
    train(recipe, tmp_path / "killed", corpus, progress=False)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert not math.isnan(read_log(tmp_path / "whole" / "log.csv")["offset_3"][0])


@pytest.mark.parametrize("other", [{"model": {"depth": 2, "heads": 2}}, {"corpus": {"name": "path_star"}}])
def test_a_trunk_that_does_not_fit_is_refused(other: dict[str, dict[str, object]], tmp_path: Path, whole: Path) -> None:
    tables = {"corpus": {"difficulty": 1, "documents": 8}, "model": {"depth": 1, "heads": 2}} | other
    recipe = Recipe.parse({**tables, "train": {"trunk": str(whole)}})
    if "corpus" in other:
        recipe = replace(recipe, corpus=replace(recipe.corpus, difficulty=2, documents=8, grid=1))
    with pytest.raises(ValueError, match="has other sizes or another vocabulary"):
        train(recipe, tmp_path, progress=False)


# A step.


@pytest.mark.parametrize("objective", ["formula", "released"])
def test_a_step_descends_its_objective(objective: str, layouts: list[Layout]) -> None:
    recipe = TINY.with_train(objective=objective, clean_weight=0.5, seed=3).train
    torch.manual_seed(0)
    model, layout = Transformer(TINY.config(200)), Layout.collate(layouts[:3])
    found = step_losses(model, layout, recipe, 4, 200)
    generator = torch.Generator().manual_seed(3 * 1_000_003 + 4)
    if objective == "released":
        terms = planned_diffusion.released_terms(model, layout, generator)
        expected = terms.loss()
    else:
        terms = planned_diffusion.terms(model, layout, generator)
        expected = terms.loss(0.5)
    assert torch.equal(found.loss, expected)
    content = layout.role == Role.CONTENT
    assert found.plan == pytest.approx(mean(terms.plan, layout.planned))
    assert found.content == pytest.approx(mean(terms.clean, content))
    assert found.diffusion == pytest.approx(mean(terms.diffusion, content))
    assert found.whole is None


def test_a_step_of_whole_response_diffusion(layouts: list[Layout]) -> None:
    recipe = TINY.with_train(diffusion_share=1.0).train
    torch.manual_seed(0)
    model, layout = Transformer(TINY.config(200)), Layout.collate(layouts[:3])
    response = response_length(layouts)
    found = step_losses(model, layout, recipe, 2, response)
    one_span = masked_diffusion.as_one_span(layout, response)
    expected = masked_diffusion.objective(model, one_span, torch.Generator().manual_seed(2))
    assert torch.equal(found.loss, expected) and found.whole == expected.item()
    assert (found.plan, found.content, found.diffusion) == (None, None, None)


def mean(nats: Tensor, where: Tensor) -> float:
    """Nats per token."""
    return (nats[where].sum() / where.sum()).item()


def test_noise_is_a_function_of_seed_and_step(layouts: list[Layout]) -> None:
    torch.manual_seed(0)
    model, layout = Transformer(TINY.config(200)), Layout.collate(layouts[:3])
    losses = {
        (seed, step): step_losses(model, layout, TINY.with_train(seed=seed).train, step, 200).loss.item()
        for seed in (0, 1)
        for step in (0, 1)
    }
    assert len(set(losses.values())) == 4
    assert losses[1, 1] == step_losses(model, layout, TINY.with_train(seed=1).train, 1, 200).loss.item()


def test_an_epoch_shows_every_document_once_in_batches_of_like_length(layouts: list[Layout]) -> None:
    batches = Batches(layouts, size=4, seed=5)
    assert batches.per_epoch == 10
    shown = [[tuple(row) for row in batches.at(step).token.tolist()] for step in range(20)]
    stripped = [tuple(layout.token[0].tolist()) for layout in layouts]
    for epoch in (shown[:10], shown[10:]):
        seen = [next(i for i, s in enumerate(stripped) if row[: len(s)] == s) for batch in epoch for row in batch]
        assert len(set(map(lambda i: stripped[i], seen))) == len(set(stripped))
    assert shown[:10] != shown[10:], "another order in the next epoch"
    assert batches.at(3).token.tolist() == [list(row) for row in shown[3]], "whatever was asked before"
    fill = sum(int((~batches.at(step).real).sum()) for step in range(10))
    unsorted = [Layout.collate(layouts[i : i + 4]) for i in range(0, 40, 4)]
    assert fill < 0.5 * sum(int((~batch.real).sum()) for batch in unsorted)


def test_too_few_documents_do_not_fill_a_batch(layouts: list[Layout]) -> None:
    with pytest.raises(ValueError, match="3 documents do not fill a batch of 4"):
        Batches(layouts[:3], size=4, seed=0)


def test_the_rate_warms_up_stays_and_decays() -> None:
    settings = TINY.with_train(steps=100, warmup=10, decay_from=0.5, learning_rate=1e-2, muon_rate=1e-1).train
    optimizers = training.make_optimizers(Transformer(TINY.config(30)), settings)
    rates = [set_rates(optimizers, settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3) and rates[9:50] == pytest.approx([1e-2] * 41)
    assert rates[75] == pytest.approx(5e-3) and rates[99] == pytest.approx(2e-4)
    assert rates[:11] == sorted(rates[:11]) and rates[50:] == sorted(rates[50:], reverse=True)
    assert [o.param_groups[0]["lr"] for o in optimizers] == pytest.approx([2e-4, 2e-3]), "both optimizers"


@pytest.mark.parametrize(("muon_rate", "count"), [(0.0, 1), (0.01, 2)])
def test_every_parameter_has_one_optimizer(muon_rate: float, count: int) -> None:
    model = Transformer(TINY.config(30))
    optimizers = training.make_optimizers(model, TINY.with_train(muon_rate=muon_rate).train)
    held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(optimizers) == count
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(("grid", "multiple"), [(1, 1), (8, 8), (50, 50)])
def test_the_response_length_holds_every_response(grid: int, multiple: int, layouts: list[Layout]) -> None:
    longest = max(int((layout.role != Role.PROMPT).sum()) for layout in layouts)
    found = response_length(layouts, grid)
    assert found % multiple == 0 and longest <= found < longest + multiple
