"""The main job: train a small model, answer the same prompts by every method, compare, and show."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pdref.lab import player, plots
from pdref.lab.evaluate import HeldOut, Row, compare, held_out
from pdref.lab.recipe import Recipe, build_corpus
from pdref.lab.report import as_records, comparison_table, held_out_table, write_json
from pdref.lab.scorecard import RATIOS, make_arms
from pdref.lab.train import read_log, train
from pdref.methods.decoding import Speaker
from pdref.methods.generation import Generation
from pdref.text.document import parse
from pdref.text.layout import Grammar, Layout, encode

GOOD = 0.95  # the share of right spans that a step ratio has to keep


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo found and where it put it."""

    speaker: Speaker
    rows: list[Row]
    nats: HeldOut
    training_seconds: float
    folder: Path

    def results(self, recipe: Recipe) -> dict[str, Any]:
        """Everything measured, as JSON takes it."""
        best = self.fastest_good
        return {
            "recipe": asdict(recipe),
            "training_seconds": self.training_seconds,
            "parameters": self.speaker.model.parameter_count,
            "nats": asdict(self.nats) | {"autoregressive_excess": self.nats.autoregressive_excess},
            "rows": as_records(self.rows),
            "fastest_good": best and asdict(best),
        }

    @property
    def shown(self) -> list[str]:
        """The methods worth watching side by side: one of each kind, and the fastest planned one that is good."""
        first = {row.method: row.label for row in reversed(self.rows)}
        best = self.fastest_good
        wanted = {*first.values(), best.label if best else ""}
        return [row.label for row in self.rows if row.label in wanted]

    @property
    def fastest_good(self) -> Row | None:
        """Planned diffusion at the smallest step ratio that keeps enough spans right, if any does."""
        good = [row for row in self.rows if row.method == "planned" and row.spans_right >= GOOD]
        return min(good, key=lambda row: row.step_ratio, default=None)


def run(
    recipe: Recipe,
    folder: Path | str,
    console: Console,
    prompts: int = 64,
    ratios: Sequence[float] = RATIOS,
    repeats: int = 3,
    resume: bool = False,
) -> Demo:
    """Train by `recipe`, decode `prompts` held-out prompts by all methods, write table, figures and player page.

    Raises ValueError for a corpus that cannot judge its documents.
    """
    folder = Path(folder)
    corpus = build_corpus(recipe)
    if corpus.source is None:
        raise ValueError("the demo needs a corpus that can judge documents: profiles")
    console.print(
        f"[bold]Training[/] {recipe.train.steps} steps on {len(corpus.train)} profiles; seed {recipe.train.seed}"
    )
    start = time.perf_counter()
    speaker = train(recipe, folder / "checkpoint", corpus, resume=resume)
    seconds = time.perf_counter() - start

    nats = held_out(speaker, corpus.held_out, corpus.source, siblings=recipe.train.siblings)
    arms = make_arms(recipe, corpus, ratios)
    questions = [document.prompt for document in corpus.held_out[:prompts]]
    progress = partial(console.print, style="dim")
    rows, found = compare(speaker, arms, questions, corpus.source, repeats=repeats, progress=progress)
    demo = Demo(speaker, rows, nats, seconds, folder)
    _write(demo, recipe, found)
    console.print(held_out_table(nats, f"{nats.documents} held-out documents, {nats.response_tokens:.0f} tokens each"))
    console.print(comparison_table(rows, f"The same {len(questions)} prompts, temperature 0, one checkpoint"))
    _conclude(demo, console)
    return demo


def _write(demo: Demo, recipe: Recipe, found: dict[str, list[Generation]]) -> None:
    folder, speaker = demo.folder, demo.speaker
    write_json(folder / "results.json", demo.results(recipe))
    log = read_log(folder / "checkpoint" / "log.csv")
    figures = {
        "loss": plots.loss_curves(log, demo.nats.floor_per_token),
        "latency_quality": plots.latency_quality(as_records(demo.rows)),
        "attention_mask": plots.attention_mask(small_example(speaker), tokenizer=speaker.tokenizer),
    }
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")
    player.write_page(
        folder / "player.html",
        {label: found[label][0] for label in demo.shown},
        speaker.tokenizer,
        "One prompt, answered by every method",
    )


def small_example(speaker: Speaker) -> Layout:
    """A two-stream layout of a document small enough to draw, in words that the profiles vocabulary has."""
    grammar = Grammar(grid=1, echo=False)
    text = (
        "name ada city oslo<topic>pet 3</topic><topic>home 3</topic>"
        "<async>the cat slept</async><async>the house had</async>"
        "<sync/><topic>recall pet 3</topic><async>still spoke of</async><eos>"
    )
    clean = encode(parse(text), speaker.tokenizer, grammar)
    return Layout.concatenate([clean, clean.span_copy()[0]])


def _conclude(demo: Demo, console: Console) -> None:
    best, nats = demo.fastest_good, demo.nats
    console.print(
        f"Trained in {demo.training_seconds:.0f} s ({demo.speaker.model.parameter_count:,} parameters). Documents cost "
        f"{nats.autoregressive_excess or 0:+.1%} nats over the source's entropy, plans {nats.plan_excess or 0:+.1%}."
    )
    if best is None:
        console.print(f"No step ratio kept {GOOD:.0%} of spans right: train longer (--steps).")
    else:
        speeds = ", ".join(f"{x:.1f}x at batch {b}" for b, x in (best.speedup or {}).items())
        console.print(
            f"Fastest that keeps {GOOD:.0%} of spans right: [bold]{best.label}[/]: critical path "
            f"{best.shorter_path:.1f}x shorter than cached autoregression, wall clock {speeds}."
        )
    console.print(f"Open [bold]{demo.folder / 'player.html'}[/] to watch; table and figures are in {demo.folder}.")
