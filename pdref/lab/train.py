"""Training: from a recipe to a checkpoint, with a progress bar, a CSV log, and resumption to identical losses.

Everything random is a function of the seed and the step (which documents, which noise), so a run that was killed
needs only its weights, its optimizer and its step number to go on as if nothing had happened.
"""

from __future__ import annotations

import csv
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pdref.lab.checkpoint import load, save, write_whole
from pdref.lab.recipe import Corpus, Recipe, TrainRecipe, build_corpus
from pdref.methods import masked_diffusion, multi_token, planned_diffusion
from pdref.methods.autoregressive import per_document_mean
from pdref.methods.decoding import Speaker
from pdref.model.heads import MultiToken
from pdref.model.transformer import Transformer
from pdref.text.layout import Layout, Role, TooLong, encode

POOL = 8  # batches that are sorted by length together, so that a batch holds little padding
LOG_COLUMNS = ("step", "loss", "plan", "content", "diffusion", "whole", "learning_rate", "seconds")


@dataclass(frozen=True)
class Batches:
    """Batches as a function of the step."""

    layouts: list[Layout]
    size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.layouts) < self.size:
            raise ValueError(f"{len(self.layouts)} documents do not fill a batch of {self.size}")

    @cached_property
    def per_epoch(self) -> int:
        """Batches in one pass over the documents."""
        return len(self.layouts) // self.size

    def at(self, step: int) -> Layout:
        """The batch [B, T] of a step."""
        epoch, index = divmod(step, self.per_epoch)
        return Layout.collate([self.layouts[i] for i in self._epoch(epoch)[index]])

    def _epoch(self, epoch: int) -> list[list[int]]:
        if getattr(self, "_latest", (None,))[0] != epoch:
            object.__setattr__(self, "_latest", (epoch, self._order(epoch)))
        return self._latest[1]  # type: ignore[attr-defined]

    def _order(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed}:{epoch}")
        order = list(range(len(self.layouts)))
        rng.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, self.per_epoch * self.size, POOL * self.size):
            pool = sorted(order[start : start + POOL * self.size], key=lambda i: self.layouts[i].shape[1])
            batches += [pool[i : i + self.size] for i in range(0, len(pool) - self.size + 1, self.size)]
        rng.shuffle(batches)
        return batches


@dataclass(slots=True)
class Losses:
    """One step: the loss that was descended, and nats per token by role (None: not part of this step).

    `offsets` are those of the heads 2..n.
    """

    loss: Tensor
    plan: float | None = None
    content: float | None = None
    diffusion: float | None = None
    whole: float | None = None
    offsets: tuple[float, ...] = ()

    @property
    def nats(self) -> dict[str, float | None]:
        """By column of the log."""
        by_role = {"plan": self.plan, "content": self.content, "diffusion": self.diffusion, "whole": self.whole}
        return by_role | {f"offset_{k}": nats for k, nats in enumerate(self.offsets, 2)}


def step_losses(model: Transformer, layout: Layout, recipe: TrainRecipe, step: int, response: int) -> Losses:
    """The objective of one step; `response` is the length of whole-response diffusion."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    if _whole_response(recipe, step):
        loss = masked_diffusion.objective(model, masked_diffusion.as_one_span(layout, response), generator)
        return Losses(loss, whole=loss.item())
    if recipe.trunk:
        return _further(model, layout)
    if recipe.objective == "released":
        found = planned_diffusion.released_terms(model, layout, generator, siblings=recipe.siblings)
        loss = found.loss()
    else:
        found = planned_diffusion.terms(model, layout, generator, siblings=recipe.siblings)
        loss = found.loss(recipe.clean_weight)
    further = _further(model, layout) if isinstance(model, MultiToken) else None
    content = layout.role == Role.CONTENT
    return Losses(
        loss + recipe.heads_weight * further.loss if further else loss,
        plan=_mean(found.plan, layout.planned),
        content=_mean(found.clean, content),
        diffusion=_mean(found.diffusion, content),
        offsets=further.offsets if further else (),
    )


def _further(model: MultiToken, layout: Layout) -> Losses:
    """Of the heads that look further than the next token, on the clean documents."""
    nats = multi_token.further_nll(model, layout)  # [B, T, n - 1]
    return Losses(
        per_document_mean(nats.sum(-1), layout).mean(),
        offsets=tuple(multi_token.per_offset(nats, layout, first=2).tolist()),
    )


def train(
    recipe: Recipe,
    folder: Path | str,
    corpus: Corpus | None = None,
    resume: bool = True,
    progress: bool = True,
) -> Speaker:
    """Train by `recipe` into `folder` (checkpoint, `log.csv`, and `resume.pt` until the run is complete).

    A folder that holds an interrupted run of the same recipe is continued from its last save, unless `resume` is
    False. Raises ValueError if it holds a run of another recipe, the trunk that the recipe names does not fit it or
    the recipe is of outlines, and TooLong if documents do not fit the context.
    """
    if recipe.train.objective == "outline":
        raise ValueError("outlines and hierarchies are trained by python -m pdref.lab.essay_forms")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = corpus or build_corpus(recipe)
    settings = recipe.train
    torch.manual_seed(settings.seed)
    model = recipe.build(len(corpus.tokenizer))
    if settings.trunk:
        _take_trunk(model, recipe, corpus)
    optimizers = make_optimizers(model, settings)
    if not resume:
        (folder / "resume.pt").unlink(missing_ok=True)
    first = _restore(folder, recipe, model, optimizers)
    layouts = [encode(document, corpus.tokenizer, recipe.grammar, recipe.model.context) for document in corpus.train]
    batches = Batches(layouts, settings.batch, settings.seed)
    response = response_length(layouts)
    if settings.diffusion_share:
        _require_room(layouts, response, recipe.model.context)

    model.train()
    steps = tqdm(range(first, settings.steps), initial=first, total=settings.steps, disable=not progress, unit="step")
    started = time.perf_counter()
    with _Log(folder / "log.csv", first, log_columns(recipe.model.heads)) as log:
        for step in steps:
            rate = set_rates(optimizers, settings, step)
            losses = step_losses(model, batches.at(step), settings, step, response)
            descend(losses.loss, model, optimizers, settings)
            row = log.add(step, losses, rate, time.perf_counter() - started)
            steps.set_postfix_str(row)
            if (step + 1) % settings.save_every == 0 and step + 1 < settings.steps:
                _save_progress(folder, recipe, model, optimizers, step + 1)
    save(folder, model, corpus.tokenizer, recipe)
    (folder / "resume.pt").unlink(missing_ok=True)
    return Speaker(model.eval(), corpus.tokenizer, recipe.grammar, settings.objective == "released")


def make_optimizers(model: Transformer, settings: TrainRecipe) -> list[torch.optim.Optimizer]:
    """AdamW for all that is trained, or Muon for the matrices of layers and AdamW for embeddings and gains."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    in_layers = {name for name, p in trained.items() if name.startswith(("blocks.", "heads.")) and p.dim() == 2}
    inner = [trained[name] for name in trained if name in in_layers] if settings.muon_rate else []
    outer = [p for name, p in trained.items() if not settings.muon_rate or name not in in_layers]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            outer,
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
            fused=True,
        )
    ]
    if inner:
        found.append(
            torch.optim.Muon(
                inner,
                lr=settings.muon_rate,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return found


def set_rates(optimizers: list[torch.optim.Optimizer], settings: TrainRecipe, step: int) -> float:
    """Linear warm-up, a plateau, then from `decay_from` of the run on linear decay to 2%; returns AdamW's rate."""
    warm = min(1.0, (step + 1) / settings.warmup)
    left = (1 - step / settings.steps) / (1 - settings.decay_from)
    share = warm * min(1.0, max(0.02, left))
    for optimizer, rate in zip(optimizers, (settings.learning_rate, settings.muon_rate), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * share
    return settings.learning_rate * share


def descend(loss: Tensor, model: Transformer, optimizers: list[torch.optim.Optimizer], settings: TrainRecipe) -> None:
    """One step down the gradient of `loss`, cut to the length that `settings` allow."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def log_columns(heads: int = 1) -> tuple[str, ...]:
    """What a run logs of every step; with further heads, nats per token of each, too."""
    *nats, rate, seconds = LOG_COLUMNS
    return (*nats, *(f"offset_{k}" for k in range(2, heads + 1)), rate, seconds)


def response_length(layouts: list[Layout], grid: int = 8) -> int:
    """Tokens that hold every response, rounded up: the length that whole-response diffusion starts from."""
    longest = max(int((layout.role != Role.PROMPT).sum()) for layout in layouts)
    return -(-longest // grid) * grid


def trained_response_length(recipe: Recipe, corpus: Corpus) -> int:
    """The length with which a run of `recipe` trained whole-response diffusion."""
    return response_length([encode(document, corpus.tokenizer, recipe.grammar) for document in corpus.train])


def read_log(path: Path | str) -> dict[str, list[float]]:
    """The columns of a training log; empty fields become NaN."""
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        return {key: [float(row[key] or "nan") for row in rows] for key in reader.fieldnames or ()}


def _require_room(layouts: list[Layout], response: int, context: int) -> None:
    prompt = max(int((layout.role == Role.PROMPT).sum()) for layout in layouts)
    if prompt + response > context:
        raise TooLong(
            f"diffusion of whole responses needs a context of {prompt + response} tokens, not {context}:"
            f" {prompt} for the longest prompt and {response} for the longest response"
        )


def _take_trunk(model: Transformer, recipe: Recipe, corpus: Corpus) -> None:
    """Put the recipe's trunk into `model` and leave only its further heads to be trained."""
    name, words = recipe.train.trunk, range(len(corpus.tokenizer))
    trunk = load(name).speaker
    if trunk.model.config != model.config or trunk.tokenizer.decode(words) != corpus.tokenizer.decode(words):
        raise ValueError(f"the trunk {name!r} has other sizes or another vocabulary than the recipe")
    model.load_state_dict(trunk.model.state_dict(), strict=False)
    for parameter in (p for name, p in model.named_parameters() if not name.startswith("heads.")):
        parameter.requires_grad_(False)


def _whole_response(recipe: TrainRecipe, step: int) -> bool:
    """Spread the share evenly over the steps."""
    return int((step + 1) * recipe.diffusion_share) > int(step * recipe.diffusion_share)


def _mean(nats: Tensor, where: Tensor) -> float:
    return (nats.detach() * where).sum().item() / max(1, int(where.sum()))


class _Log:
    """The CSV log; on resumption, rows of steps that will be run again are dropped."""

    def __init__(self, path: Path, first: int, columns: Sequence[str]) -> None:
        kept: list[list[str]] = []
        if first and path.is_file():
            with open(path, newline="") as file:
                kept = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) < first]
        write_whole(path, lambda part: _write_rows(part, [columns, *kept]))
        self.file = open(path, "a", newline="")  # noqa: SIM115 (closed by __exit__)
        self.writer = csv.DictWriter(self.file, columns, restval="")
        self.latest: dict[str, float] = {}

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, step: int, losses: Losses, rate: float, seconds: float) -> str:
        """Write a row; returns nats per token by role, smoothed, for the progress bar."""
        nats = losses.nats
        cells = {"loss": losses.loss.item(), **nats, "learning_rate": rate, "seconds": seconds}
        told = {name: f"{cell:.6g}" for name, cell in cells.items() if cell is not None}
        self.writer.writerow({"step": step, **told})
        self.file.flush()
        for name, value in nats.items():
            if value is not None:
                self.latest[name] = 0.95 * self.latest.get(name, value) + 0.05 * value
        return "nats/token " + " ".join(f"{name} {value:.3f}" for name, value in self.latest.items())


def _write_rows(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def _save_progress(
    folder: Path, recipe: Recipe, model: Transformer, optimizers: list[torch.optim.Optimizer], step: int
) -> None:
    inner = [optimizer.state_dict() for optimizer in optimizers]
    state = {"recipe": recipe.dump(), "step": step, "model": model.state_dict(), "optimizers": inner}
    write_whole(folder / "resume.pt", lambda path: torch.save(state, path))


def _restore(folder: Path, recipe: Recipe, model: Transformer, optimizers: list[torch.optim.Optimizer]) -> int:
    """Load an interrupted run into model and optimizer; returns the step to go on from."""
    path = folder / "resume.pt"
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    if state["recipe"] != recipe.dump():
        raise ValueError(f"{folder} holds an interrupted run of another recipe; choose another folder or start afresh")
    model.load_state_dict(state["model"])
    for optimizer, inner in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(inner)
    return int(state["step"])
