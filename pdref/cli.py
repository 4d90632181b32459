"""`python -m pdref`: demo, train, generate, evaluate, baselines, bench, kernels, doctor. Tables go to JSON, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape

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
    hierarchy = "hierarchy"


class Filling(StrEnum):
    """What the sections of a hierarchy read of each other."""

    parallel = "parallel"
    sequential = "sequential"
    drafts = "drafts"


class Order(StrEnum):
    """Which masks are revealed first."""

    entropy = "entropy"
    confidence = "confidence"
    random = "random"


JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the table as JSON.", dir_okay=False)]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
CheckpointName = Annotated[
    str,
    typer.Option(
        "--checkpoint", "-c", help="A shipped one (profiles, profiles_heads, prose, path_star, essays) or a folder."
    ),
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
    recipe: Annotated[
        str, typer.Argument(help="A shipped one (profiles, profiles_heads, prose, path_star) or a TOML file.")
    ],
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
    method: Annotated[
        Optional[Method],  # noqa: UP045
        typer.Option(help="How to write (left out: hierarchy with essays, planned with all others)."),
    ] = None,
    filling: Annotated[
        Filling, typer.Option(help="What the sections of a hierarchy read of each other.")
    ] = Filling.parallel,
    plan: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A plan by hand: 'opening she winter 6, pet 5' or <topic> tags (planned, hierarchy)."),
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
            prompt, method and method.value, plan, ratio, order.value, threshold, "reveal" if reveal else "defer",
            length_factor, temperature, top_p, seed, filling.value,
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
def baselines(
    nanogpt: Annotated[Path | None, typer.Option(help="Path of nanoGPT's model.py, to train beside it.")] = None,
    depth: Annotated[int, typer.Option(min=1, help="Layers; width is 32 times as much.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Counted rounds.")] = 5,
    json: JsonFile = None,
) -> None:
    """Decoding and training speed, beside Hugging Face generate (if transformers is installed) and nanoGPT."""
    with _friendly():
        from pdref.lab import baselines as job

        rows = job.run(depth, repeats=repeats, nanogpt=nanogpt)
        console.print(job.table(rows))
        _write_json(json, {"rows": [asdict(row) for row in rows]})


@app.command()
def bench(
    ops: Annotated[list[str] | None, typer.Option("--op", help="Time only this op (repeatable).")] = None,
    impl: Annotated[
        list[str] | None,
        typer.Option(help="naive, torch; on CUDA also triton, flex, liger, cut (repeatable; all that are here)."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 (cpu), bfloat16 (cuda), float16 or float64.")] = "",
    size: Annotated[
        list[str] | None,
        typer.Option(help="sweep, small, headline, or sizes such as N=4096,D=512,V=49152 (repeatable)."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 5,
    out: Annotated[Path, typer.Option(help="Where bench.csv and the plots go.")] = Path("out/bench"),
    json: JsonFile = None,
) -> None:
    """Time the ops: naive against torch against triton, forward and backward, with peak memory.

    An op is checked first, and not timed if an output or a gradient errs by
    more than its budget; the exit status is then 1. Sides take turns.
    """
    with _friendly():
        from pdref.lab.kernels import bench as job
        from pdref.lab.kernels.bench_plots import speed_and_memory
        from pdref.lab.plots import save

        order = job.Order(ops or (), impl or (), device, dtype, size or ("sweep",), repeats)
        found = job.Found()
        try:
            job.run(order, out / "bench.csv", found)
        except KeyboardInterrupt:
            console.print(f"\nInterrupted: {out / 'bench.csv'} keeps the {len(found.rows)} rows so far.")
            raise typer.Exit(130) from None
        for op in (timed := found.timed()):
            console.print(job.table(found.rows, op))
            save(speed_and_memory(found.rows, op), out / f"{op}.png")
        for sentence in (*found.refused, *found.left_out):
            console.print(f"[bold red]Not timed:[/] {escape(sentence)}", highlight=False)
        console.print(f"Rows are in {out / 'bench.csv'}, {len(timed)} figures beside it.")
        _write_json(json, {"rows": job.as_records(found.rows), "refused": found.refused, "left_out": found.left_out})
    raise typer.Exit(1 if found.refused else 0)


@app.command()
def kernels(
    op: Annotated[list[str] | None, typer.Option(help="Examine only this op (repeatable).")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Compile only for this GPU: sm_80, sm_90, sm_100, gfx942 (repeatable).")
    ] = None,
    json: JsonFile = None,
) -> None:
    """What every kernel compiles to and moves; exit status 1 if it spills or anything is amiss.

    No GPU is needed. The ops run forward and backward under Triton's
    interpreter at small sizes; every kernel that they launch is counted
    (bytes, products) and compiled for each GPU. Registers, spills, shared
    memory and tensor-core instructions are read from the machine code.

    Amiss is a kernel that does not compile or does not fit, one that spills
    on sm_90 or sm_100, a half-precision matrix product that misses the
    tensor cores, and more than 1.25 times the bytes that programs use.
    """
    with _friendly():
        from rich.progress import Progress

        from pdref.lab.kernels.report import examine
        from pdref.lab.kernels.report_tables import show

        with Progress(console=console, transient=True) as bar:
            tasks = {}

            def progress(doing: str, done: int, total: int) -> None:
                if doing not in tasks:
                    tasks[doing] = bar.add_task(doing)
                bar.update(tasks[doing], completed=done, total=total)

            report = examine(op or (), target or (), progress=progress)
        show(report, console)
        _write_json(json, report.record())
    raise typer.Exit(1 if report.faults() else 0)


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
