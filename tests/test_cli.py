"""The command line as a person meets it: every command, its files, and what wrong input is answered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pdref.cli import app

RECIPE = """
[corpus]
documents = 48
held_out = 8
difficulty = 1
[model]
depth = 1
[train]
steps = 6
batch = 4
diffusion_share = 0.34
save_every = 2
"""


def run(*words: object) -> tuple[int, str]:
    """Exit status and output of `python -m pdref WORDS`."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def checkpoint(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained by the command itself."""
    folder = tmp_path_factory.mktemp("run")
    status, output = run("train", recipe, "--out", folder)
    assert status == 0, output
    return folder


def test_training_leaves_a_checkpoint_a_log_and_the_recipe(checkpoint: Path) -> None:
    """And no resume file, because the run is complete."""
    assert {p.name for p in checkpoint.iterdir()} == {"model.safetensors", "tokenizer.json", "recipe.toml", "log.csv"}
    assert len((checkpoint / "log.csv").read_text().splitlines()) == 7


@pytest.mark.parametrize("method", ["planned", "autoregressive", "diffusion", "hierarchy"])
def test_generate_answers_by_every_method(checkpoint: Path, tmp_path: Path, method: str) -> None:
    """And writes what it found as JSON."""
    target = tmp_path / "deep" / "answer.json"
    status, output = run("generate", "-c", checkpoint, "--method", method, "--json", target)
    assert status == 0, output
    assert "critical path" in output
    found = json.loads(target.read_text())
    assert found["critical_path"] >= 1
    assert found["circumstances"]["torch"]


@pytest.mark.parametrize("filling", ["parallel", "sequential", "drafts"])
def test_essays_are_outlined(filling: str) -> None:
    """Their checkpoint was trained for outlines, so that is how it answers."""
    words = ("--plan", "farming brill nell 40, fishing brill nell 40") if filling == "parallel" else ()
    prompt = "town brill guide nell in 4 sections"
    status, output = run("generate", prompt, "-c", "essays", "--filling", filling, *words)
    assert status == 0, output
    sections = 2 if words else 4
    said = " ".join(output.split())
    assert said.count("brill nell 40") == sections and said.count("reached brill") == 4 * sections
    assert ("draft" in output) == (filling == "drafts")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_essays_are_trained_and_scored_elsewhere(command: str, tmp_path: Path) -> None:
    from pdref.lab.checkpoint import CHECKPOINTS

    recipe = CHECKPOINTS / "essays" / "recipe.toml"
    words = (recipe, "--out", tmp_path / "run") if command == "train" else ("-c", "essays")
    status, output = run(command, *words)
    assert status != 0 and "pdref.lab.essay_forms" in output


def test_generate_fills_a_plan_by_hand(checkpoint: Path) -> None:
    """The plan that comes back is the one that was given, in either spelling."""
    for plan in ("opening she winter 2, pet 1", "<topic>opening she winter 2</topic><topic>pet 1</topic>"):
        status, output = run("generate", "name ada city oslo", "-c", checkpoint, "--plan", plan, "-r", 0.5)
        assert status == 0, output
        assert "critical path" in output


def test_evaluate_prints_nats_and_the_comparison(checkpoint: Path, tmp_path: Path) -> None:
    """Every method, and the floor beside the model."""
    target = tmp_path / "card.json"
    status, output = run(
        "evaluate", "-c", checkpoint, "--documents", 4, "--prompts", 2, "--ratio", 0.5, "--json", target
    )
    assert status == 0, output
    card = json.loads(target.read_text())
    assert [row["method"] for row in card["rows"]] == ["autoregressive", "diffusion", "planned"]
    assert card["nats"]["floor_plan"] > 0


def test_demo_writes_table_figures_and_player(recipe: Path, tmp_path: Path) -> None:
    """And says where they are."""
    status, output = run("demo", "--recipe", recipe, "--out", tmp_path, "--prompts", 2, "--ratio", 0.5)
    assert status == 0, output
    for name in ("results.json", "player.html", "loss.png", "latency_quality.png", "attention_mask.png"):
        assert (tmp_path / name).stat().st_size > 1000, name
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["recipe"]["train"]["seed"] == 0
    assert results["circumstances"]["machine"]["cores"]
    assert len(results["rows"]) == 3


def test_baselines_times_our_side(tmp_path: Path) -> None:
    """Ours alone, where nothing else is installed."""
    target = tmp_path / "baselines.json"
    status, output = run("baselines", "--depth", 1, "--repeats", 1, "--json", target)
    assert status == 0, output
    rows = json.loads(target.read_text())["rows"]
    assert {row["job"] for row in rows} == {"decode, batch 1", "decode, batch 16", "train, batch 32 of 128"}
    assert all(row["tokens_per_second"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "nowhere.toml"], "no recipe 'nowhere.toml'"),
        (["generate", "-c", "nowhere"], "no checkpoint 'nowhere'"),
        (["generate", "name ada", "-r", "0"], "step ratio"),
        (["generate", "name ada", "-r", "1.5"], "step ratio"),
        (["generate", "name ada", "--threshold", "7"], "threshold"),
        (["generate", "name ada", "--top-p", "0", "--temperature", "1"], "top_p"),
        (["generate", "name ada", "--plan", "pet"], "MissingLength"),
        (["generate", "name ada", "--plan", "pet 0"], "LengthOutOfRange"),
        (["generate", "name ada", "--plan", "pet 5", "--method", "autoregressive"], "a plan by hand"),
        (["generate", "name <sync/> ada"], "TagInText"),
        (["generate", "name xylophone"], "UnknownWord"),
        (["generate", "name ada", "--length-factor", "-1"], "length factor"),
        (["baselines", "--nanogpt", "nowhere.py"], "no nanoGPT"),
        (["bench", "--op", "sorting"], "no op 'sorting'"),
        (["bench", "--impl", "fast"], "no implementation 'fast'"),
        (["bench", "--impl", "triton"], "on CUDA only"),
        (["bench", "--device", "tpu"], "no device 'tpu'"),
        (["bench", "--dtype", "int8"], "no dtype 'int8'"),
        (["bench", "--op", "token_nll", "--size", "N=0"], "'N=0' is not one"),
    ],
)
def test_wrong_input_is_answered_with_a_sentence(checkpoint: Path, words: list[str], says: str) -> None:
    """Exit status 2, the thing named, no traceback."""
    chosen = words if "-c" in words or words[0] != "generate" else [*words, "-c", str(checkpoint)]
    status, output = run(*chosen)
    assert status == 2, output
    assert says in output
    assert "Traceback" not in output
