"""`python -m pdref`: demo, train, generate, evaluate, bench, doctor. Every table can also be written as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console

if TYPE_CHECKING:
    from pdref.lab.checkpoint import Checkpoint

app = typer.Typer(
    help="Plan-then-generate and Planned Diffusion, on a laptop.", no_args_is_help=True, add_completion=False
)
console = Console()


class Method(StrEnum):
    """The samplers."""

    planned = "planned"
    autoregressive = "autoregressive"
    diffusion = "diffusion"


class Order(StrEnum):
    """Which masks are revealed first."""

    entropy = "entropy"
    confidence = "confidence"
    random = "random"


JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the table as JSON.", dir_okay=False)]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
CheckpointName = Annotated[
    str, typer.Option("--checkpoint", "-c", help="A shipped checkpoint (profiles, prose, path_star) or a folder.")
]


@app.command()
def demo(
    recipe: Annotated[str, typer.Option(help="A shipped recipe or a TOML file.")] = "profiles",
    out: Annotated[Path, typer.Option(help="Where table, figures and player go.")] = Path("out/demo"),
    seed: Seed = 0,
    steps: Annotated[Optional[int], typer.Option(min=1, help="Train for fewer or more steps.")] = None,  # noqa: UP045
    prompts: Annotated[int, typer.Option(min=1, help="Prompts to decode by every method.")] = 64,
    ratio: Annotated[list[float] | None, typer.Option(help="Step ratio r of planned diffusion (repeatable).")] = None,
    json: JsonFile = None,
) -> None:
    """Train a small model, decode the same prompts three ways, compare, and show."""
    with _friendly():
        from pdref.lab import demo as job

        chosen = _recipe(recipe, seed, steps)
        found = job.run(chosen, out, console, prompts, ratio or job.RATIOS)
        _write_json(json, found.results(chosen))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (profiles, prose, path_star) or a TOML file.")],
    out: Annotated[Optional[Path], typer.Option(help="Folder of the run (out/RECIPE).")] = None,  # noqa: UP045
    seed: Seed = 0,
    steps: Annotated[Optional[int], typer.Option(min=1, help="Train for fewer or more steps.")] = None,  # noqa: UP045
    fresh: Annotated[bool, typer.Option("--fresh", help="Ignore an interrupted run in the folder.")] = False,
) -> None:
    """Train by a recipe; run the same command again to resume an interrupted run."""
    with _friendly():
        from pdref.lab.train import train as run

        folder = out or Path("out") / Path(recipe).stem
        run(_recipe(recipe, seed, steps), folder, resume=not fresh)
        console.print(f"Checkpoint, log and recipe are in {folder}. Try: python -m pdref generate -c {folder}")


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to answer (a held-out prompt, if left out).")] = None,
    checkpoint: CheckpointName = "profiles",
    method: Annotated[Method, typer.Option(help="How to write.")] = Method.planned,
    plan: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A plan by hand: 'opening she winter 6, pet 5' or <topic> tags (planned only)."),
    ] = None,
    ratio: Annotated[
        float, typer.Option("--ratio", "-r", help="Step ratio r: forwards per token of the longest span.")
    ] = 1.0,
    order: Annotated[Order, typer.Option(help="Which masks are revealed first.")] = Order.entropy,
    threshold: Annotated[Optional[float], typer.Option(help="Confidence threshold in [0, 1].")] = None,  # noqa: UP045
    reveal: Annotated[
        bool,
        typer.Option("--reveal/--defer", help="What the threshold does: reveal all above it, or defer all below."),
    ] = False,
    length_factor: Annotated[float, typer.Option(help="Scale the planned lengths.")] = 1.0,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most probable token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus in (0, 1].")] = 1.0,
    seed: Seed = 0,
    play: Annotated[bool, typer.Option("--play", help="Animate the history in the terminal.")] = False,
    json: JsonFile = None,
) -> None:
    """Answer one prompt with a checkpoint, or fill a plan written by hand."""
    with _friendly():
        from pdref.lab import answer

        loaded = _load(checkpoint)
        request = answer.Request(
            prompt, method.value, plan, ratio, order.value, threshold, "reveal" if reveal else "defer",
            length_factor, temperature, top_p, seed,
        )  # fmt: skip
        found = answer.answer(loaded, request)
        answer.show(found, loaded.speaker, console, play)
        _write_json(json, answer.as_record(found, loaded.speaker))


@app.command()
def evaluate(
    checkpoint: CheckpointName = "profiles",
    documents: Annotated[int, typer.Option(min=2, help="Held-out documents.")] = 256,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts to decode by every method.")] = 64,
    ratio: Annotated[list[float] | None, typer.Option(help="Step ratio r of planned diffusion (repeatable).")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most probable token.")] = 0.0,
    seed: Seed = 0,
    json: JsonFile = None,
) -> None:
    """Held-out nats against the floor (profiles) or against gzip and xz (prose), and decoding quality and speed."""
    with _friendly():
        from pdref.lab import scorecard

        card = scorecard.score(_load(checkpoint), documents, prompts, ratio, temperature, seed, console)
        _write_json(json, card)


@app.command()
def bench(
    nanogpt: Annotated[Path | None, typer.Option(help="Path of nanoGPT's model.py, to train beside it.")] = None,
    depth: Annotated[int, typer.Option(min=1, help="Layers; width is 32 times as much.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Counted rounds.")] = 5,
    json: JsonFile = None,
) -> None:
    """Decoding and training speed, beside Hugging Face generate (if transformers is installed) and nanoGPT."""
    with _friendly():
        from pdref.lab import bench as job

        rows = job.run(depth, repeats=repeats, nanogpt=nanogpt)
        console.print(job.table(rows))
        _write_json(json, {"rows": [asdict(row) for row in rows]})


@app.command()
def doctor(json: JsonFile = None) -> None:
    """Is this machine fit? Prints [OK] or [FAIL] and what to do; exit status 1 if anything fails."""
    from pdref.lab.doctor import examine, report

    checks = examine()
    fit = report(checks, console)
    if json:
        from json import dumps

        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(dumps([asdict(check) for check in checks], indent=2) + "\n")
    raise typer.Exit(0 if fit else 1)


@contextmanager
def _friendly() -> Iterator[None]:
    """Wrong input is answered with a sentence, an interruption with how to go on."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        console.print(f"[bold red]Error:[/] {type(error).__name__}: ", end="")
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        console.print("\nInterrupted. A training run goes on from its last save when you repeat the command.")
        raise typer.Exit(130) from None


def _recipe(name: str, seed: int, steps: int | None):
    from pdref.lab.recipe import Recipe

    changes = {"seed": seed} | ({"steps": steps} if steps else {})
    return Recipe.load(name).with_train(**changes)


def _load(name: str) -> Checkpoint:
    from pdref.lab.checkpoint import load

    return load(name)


def _write_json(path: Path | None, results: dict) -> None:
    if path:
        from pdref.lab.report import write_json

        write_json(path, results)
        console.print(f"Written to {path}")
