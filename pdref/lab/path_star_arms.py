"""Path-star by every method of this house at one budget: who solves it, seed by seed.

    python -m pdref.lab.path_star_arms --graph 2 5 30 --seeds 3 --out out/path_star_arms.csv

An arm is a way to train and a way to answer. All arms see the same graphs in the same batches, fresh at every step,
with the same network, optimizer and number of steps; they differ in what they are asked.

    next          each token given the true ones before it; answers token by token
    ahead_n       the same by n heads, each a layer more; answers by the first head
    teacherless   each node given none of the path, `data.path_star.teacherless`; answers in one forward, given the plan
    masked        masked diffusion of the whole response; answers a token a step, the surest first
    plan_P        as next, the plan holding the arm, or the path forwards or backwards; writes the plan, then the path
    planned       Planned Diffusion whose plan holds the path backwards; writes the plan, then denoises the path

A run stops when it has solved the task on a set of graphs for checking, or at the end of its steps; it is marked on
others. Runs solve the task or stay where guessing leaves them, so the table counts the solved ones.
A row is appended to the CSV as soon as its run is done, and runs that have one are not made again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm.auto import tqdm

from pdref.data.path_star import EDGE, Marks, PathStar, Plan, teacherless
from pdref.lab import ledger
from pdref.lab.budget import SweepBudget
from pdref.lab.recipe import HELD_OUT_SEED
from pdref.lab.train import descend, make_optimizers, set_rates
from pdref.methods import autoregressive, masked_diffusion, multi_token, planned_diffusion
from pdref.methods.decoding import Speaker
from pdref.model.heads import MultiToken
from pdref.model.transformer import Config, Transformer
from pdref.text.document import PlannedDocument
from pdref.text.layout import Grammar, Layout, Role, encode
from pdref.text.tags import Tag

GRAMMAR = Grammar(grid=1, echo=False)


@dataclass(frozen=True, slots=True)
class Arm:
    """What is asked of a network, and what the documents' plans hold; `heads` is for "ahead"."""

    name: str
    asked: Literal["next", "ahead", "teacherless", "masked", "planned"] = "next"
    plan: Plan = "length"
    heads: int = 1


ARMS = {
    arm.name: arm
    for arm in (
        Arm("next"),
        Arm("plan_backwards", plan="backwards"),
        Arm("masked", "masked"),
        Arm("teacherless", "teacherless"),
        Arm("ahead_2", "ahead", heads=2),
        Arm("ahead_3", "ahead", heads=3),
        Arm("ahead_4", "ahead", heads=4),
        Arm("plan_arm", plan="arm"),
        Arm("plan_forwards", plan="forwards"),
        Arm("planned", "planned", "backwards"),
    )
}


@dataclass(frozen=True, slots=True)
class Budget(SweepBudget):
    """What all arms share: `steps` of `batch` fresh graphs, and the network.

    A run is checked every `check` steps.
    """

    steps: int = 2000
    batch: int = 64
    layers: int = 3
    width: int = 64
    attention_heads: int = 2
    rate: float = 2e-3
    muon_rate: float = 0.005
    check: int = 100


@dataclass(frozen=True, slots=True)
class Run:
    """A row of the results: an arm on a graph with a seed, the budget, and what came of it.

    `places` and `forced` are shares of nodes right by place, alone and given the true plan and path so far (empty
    for those that are never given them). `steps` are those that were made, `solved_at` the check that ended the run.
    """

    arm: str
    graph: str
    seed: int
    budget: str
    solved: bool
    solved_at: int | None
    steps: int
    exact: float
    plans: float
    walks: float
    places: tuple[float, ...]
    forced: tuple[float, ...]
    chance: float
    nats: float
    parameters: int
    cpu_seconds: float
    made_with: str

    @property
    def key(self) -> tuple[str, str, int, str]:
        """Which run it is."""
        return self.arm, self.graph, self.seed, self.budget


def build(arm: Arm, source: PathStar, budget: Budget, seed: int) -> Speaker:
    """An untrained network and its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = source.tokenizer()
    context = max(encode(replace(source, plan="forwards").sample(1, 0)[0], tokenizer, GRAMMAR).shape[1], 32) + 8
    heads = budget.attention_heads
    config = Config(len(tokenizer), context, budget.layers, budget.width, heads, heads)
    model = MultiToken(config, arm.heads) if arm.heads > 1 else Transformer(config)
    return Speaker(model, tokenizer, GRAMMAR)


def collated(speaker: Speaker, documents: Iterable[PlannedDocument]) -> Layout:
    """The documents of a batch, [B, T]."""
    return Layout.collate([encode(document, speaker.tokenizer, GRAMMAR) for document in documents])


def objective(arm: Arm, model: Transformer, layout: Layout, generator: torch.Generator) -> Tensor:
    """What an arm descends: the mean over documents of nats per response token; a scalar."""
    match arm.asked:
        case "next":
            return autoregressive.objective(model, layout)
        case "ahead":
            assert isinstance(model, MultiToken)
            return multi_token.objective(model, layout)
        case "teacherless":
            hidden = model(teacherless(layout).token, layout.position)
            nats = autoregressive.next_token_nll(model, hidden, layout)
            return autoregressive.per_document_mean(nats, layout).mean()
        case "masked":
            whole = masked_diffusion.as_one_span(layout, int(layout.response.sum(1).max()))
            return masked_diffusion.objective(model, whole, generator)
        case "planned":
            return planned_diffusion.terms(model, layout, generator).loss()


def train(arm: Arm, source: PathStar, budget: Budget, seed: int, progress: bool = True) -> tuple[Speaker, int, bool]:
    """Train until the task is solved or the steps are spent; returns the model, its steps and which of the two."""
    source = replace(source, plan=arm.plan)
    speaker, settings = build(arm, source, budget, seed), budget.settings(seed)
    checks = source.sample(128, HELD_OUT_SEED - 1)
    optimizers = make_optimizers(speaker.model, settings)
    smooth = None
    with tqdm(total=budget.steps, desc=f"{arm.name} {seed}", disable=not progress, unit="step") as bar:
        for step in range(budget.steps):
            set_rates(optimizers, settings, step)
            layout = collated(speaker, source.sample(budget.batch, seed * 1_000_003 + step))
            loss = objective(arm, speaker.model, layout, torch.Generator().manual_seed(seed * 1_000_003 + step))
            descend(loss, speaker.model, optimizers, settings)
            smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
            bar.update()
            if (step + 1) % budget.check == 0:
                found = marks(arm, speaker, source, checks)
                bar.set_postfix_str(f"nats/token {smooth:.3f} exact {found.exact:.0%}")
                if found.solved(0.99):
                    return speaker, step + 1, True
    return speaker, budget.steps, False


@torch.inference_mode()
def marks(arm: Arm, speaker: Speaker, source: PathStar, documents: Sequence[PlannedDocument]) -> Marks:
    """How an arm's own answers to the prompts of `documents` are marked."""
    prompts = [document.prompt for document in documents]
    if arm.asked == "teacherless":
        return source.mark(told(arm, speaker, source, documents))
    if arm.asked == "masked":
        length = int(collated(speaker, documents).response.sum(1).max())
        answers = masked_diffusion.sample(speaker, prompts, length)
    elif arm.asked == "planned":
        answers = planned_diffusion.sample(speaker, prompts)
    else:
        answers = autoregressive.sample(speaker, prompts)
    return source.mark(answer.document for answer in answers)


@torch.inference_mode()
def told(arm: Arm, speaker: Speaker, source: PathStar, documents: Sequence[PlannedDocument]) -> list[PlannedDocument]:
    """The best node at each place given the true plan and, unless the arm is teacherless, the true path so far."""
    layout = collated(speaker, documents)
    given = teacherless(layout) if arm.asked == "teacherless" else layout
    best = speaker.model.logits(speaker.model(given.token, given.position)).argmax(-1).roll(1, dims=1)
    nodes = best[layout.role == Role.CONTENT].view(len(documents), -1).tolist()
    word = [EDGE] * (max(Tag) + 1)  # a tag is no node, and neither is this
    word += [speaker.tokenizer.decode([token]) for token in range(len(word), len(speaker.tokenizer))]
    words = [[word[node] for node in path] for path in nodes]
    return [source.answered(document.prompt, path) for document, path in zip(documents, words, strict=True)]


def run(arm: Arm, source: PathStar, budget: Budget, seed: int, graphs: int = 500, progress: bool = True) -> Run:
    """Train an arm and mark it on `graphs` that it never saw."""
    started = time.process_time()
    speaker, steps, stopped = train(arm, source, budget, seed, progress)
    seconds = time.process_time() - started
    source = replace(source, plan=arm.plan)
    documents = source.sample(graphs, HELD_OUT_SEED)
    speaker.model.eval()
    alone = marks(arm, speaker, source, documents)
    given = arm.asked in ("next", "ahead")
    forced = source.mark(told(arm, speaker, source, documents)).places if given else ()
    layout = collated(speaker, documents)
    with torch.no_grad():
        nats = objective(arm, speaker.model, layout, torch.Generator().manual_seed(0)).item()
    return Run(
        arm=arm.name,
        graph=named(source),
        seed=seed,
        budget=str(budget),
        solved=alone.solved(),
        solved_at=steps if stopped else None,
        steps=steps,
        exact=alone.exact,
        plans=alone.plans,
        walks=alone.walks,
        places=alone.places,
        forced=forced,
        chance=source.chance,
        nats=nats,
        parameters=sum(p.numel() for p in speaker.model.parameters()),
        cpu_seconds=seconds,
        made_with=ledger.made_with(),
    )


def named(source: PathStar) -> str:
    """G(degree, length) and the stock of names."""
    return f"G({source.degree},{source.length}) of {source.names}"


def table(runs: Iterable[Run]) -> Table:
    """How many runs of each arm, at each budget, solved the task, and each seed's share of exact paths."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for one in runs:
        budget = Budget.parse(one.budget)
        size = f"{budget.layers} x {budget.width}, {budget.steps} x {budget.batch}"
        found.setdefault((one.graph, size, one.arm), []).append(one)
    heads = (
        "graph",
        "layers x width, steps x batch",
        "arm",
        "solved",
        "exact paths, seed by seed",
        "steps",
        "CPU seconds",
    )
    shown = Table(*heads)
    for key, seeds in found.items():
        exact = "  ".join(f"{one.exact:.1%}" for one in seeds)
        steps = "  ".join(str(one.steps) for one in seeds)
        solved = f"{sum(one.solved for one in seeds)} of {len(seeds)}"
        shown.add_row(*key, solved, exact, steps, f"{max(one.cpu_seconds for one in seeds):.0f}")
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=int, nargs=3, default=(2, 5, 30), metavar=("DEGREE", "LENGTH", "NAMES"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--out", type=Path, default=Path("out/path_star_arms.csv"))
    Budget.add_to(parser)
    given = parser.parse_args(arguments)
    source = PathStar(*given.graph)
    budget = Budget.of(given)
    done = {one.key for one in ledger.read(given.out, Run)}
    for seed in range(given.seeds):
        for name in given.arms:
            if (name, named(source), seed, str(budget)) not in done:
                ledger.append(given.out, run(ARMS[name], source, budget, seed))
    Console().print(table(ledger.read(given.out, Run)))


if __name__ == "__main__":
    main()
