"""The score of a checkpoint on its own corpus's held-out documents, printed and as a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from pdref.lab.checkpoint import Checkpoint
from pdref.lab.evaluate import Arm, compare, compressors, held_out, per_byte
from pdref.lab.recipe import Corpus, Recipe, build_corpus
from pdref.lab.report import as_records, comparison_table, drafting_table, held_out_table
from pdref.lab.train import trained_response_length
from pdref.methods.decoding import Draw

RATIOS = (1.0, 0.5, 0.34, 0.2, 0.1, 0.05)


def score(
    checkpoint: Checkpoint,
    documents: int,
    prompts: int,
    ratios: Sequence[float] | None,
    temperature: float,
    seed: int,
    console: Console,
) -> dict[str, Any]:
    """Nats against the floor or the compressors, then the comparison of samplers where a source can judge."""
    if checkpoint.recipe.train.objective == "outline":
        raise ValueError("outlines and hierarchies are scored by python -m pdref.lab.essay_forms")
    corpus = build_corpus(checkpoint.recipe)
    some = corpus.held_out[:documents]
    nats = held_out(checkpoint.speaker, some, corpus.source, siblings=checkpoint.recipe.train.siblings)
    console.print(held_out_table(nats, f"{nats.documents} held-out documents, {nats.response_tokens:.0f} tokens each"))
    card: dict[str, Any] = {"nats": asdict(nats)}
    if corpus.source is None:
        texts = [document.text for document in some]
        card["nats_per_byte"] = per_byte(nats, some) | compressors(texts)
        console.print(_bytes_table(card["nats_per_byte"], sum(len(text.encode()) for text in texts)))
        return card
    arms = make_arms(checkpoint.recipe, corpus, ratios or RATIOS)
    draw = Draw(temperature, seeds=[seed + i for i in range(prompts)])
    questions = [document.prompt for document in corpus.held_out[:prompts]]
    progress = partial(console.print, style="dim")
    rows, _ = compare(checkpoint.speaker, arms, questions, corpus.source, draw, progress=progress)
    console.print(comparison_table(rows, f"The same {len(questions)} prompts, temperature {temperature:g}"))
    if any(row.acceptance for row in rows):
        console.print(drafting_table(rows))
    return card | {"rows": as_records(rows)}


def make_arms(recipe: Recipe, corpus: Corpus, ratios: Sequence[float]) -> list[Arm]:
    """Autoregression, diffusion of the whole response if it was trained, planned diffusion at every ratio.

    With heads that look ahead, all that write token by token once more with drafts.
    """
    arms = [Arm("autoregressive"), *(Arm("planned", r, recipe.train.siblings) for r in ratios)]
    if recipe.train.diffusion_share:
        arms.insert(1, Arm("diffusion", response=trained_response_length(recipe, corpus)))
    if recipe.model.heads > 1:
        arms += [replace(arm, ahead=None) for arm in arms if arm.method != "diffusion"]
    return arms


def _bytes_table(nats: dict[str, float], size: int) -> Table:
    table = Table(title=f"Nats per byte on {size:,} bytes of held-out text (models pay for the plan too)")
    table.add_column("")
    table.add_column("nats per byte", justify="right")
    for name, value in nats.items():
        table.add_row(name, f"{value:.3f}")
    return table
