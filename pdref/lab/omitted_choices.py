"""What a plan leaves out, the spans disagree on: Planned Diffusion on postcards, measured against the exact price.

    python -m pdref.lab.omitted_choices --seeds 3 --steps 1200 --out out/omitted_choices.csv

One network learns postcards with several kinds of plans, each naming other choices. Its fill of the spans is
independent given the plan, so it lacks the truth by what `theory.independence` says,

    E[-log prod_k p_D(x(k) | z, c)] - H(x | z, c) = TC + sum_k KL(p_k || q_k)

whose left side is a sum over all postcards here. The network's own clean stream, in which later spans do see earlier
ones, prices the whole postcard too, and the difference of the two estimates TC with no knowledge of the source.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product
from math import comb
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm.auto import trange

from pdref.data.postcards import GRAMMAR, SHARED, UNREADABLE, Postcards
from pdref.lab import ledger
from pdref.lab.recipe import TrainRecipe
from pdref.lab.train import descend, make_optimizers, set_rates
from pdref.methods import planned_diffusion
from pdref.methods.decoding import Draw, Speaker
from pdref.model.transformer import Config, Transformer
from pdref.text.layout import NO_SPAN, Layout, Role, encode
from pdref.text.mask import Sight
from pdref.theory import independence

Plans = tuple[Postcards, ...]
CHAIN: Plans = tuple(map(Postcards, (SHARED, ("season", "place", "weather"), ("season", "place"), ("place",), ())))
"""One shared choice after another is left out."""
ALL: Plans = tuple(Postcards(named) for count in range(len(SHARED) + 1) for named in combinations(SHARED, count))
TRAINING = TrainRecipe(
    steps=400, batch=32, learning_rate=0.012, muon_rate=0.01, decay_from=0.0, weight_decay=0.1, clip=0.1
)
LEAST_NOISE = 0.4


@cache
def corpus(plans: Plans) -> tuple[Layout, Tensor]:
    """All postcards with plans of every kind, [N, T], and the probability of each, [N]."""
    tokenizer = Postcards.tokenizer()
    layouts = [encode(document, tokenizer, GRAMMAR) for source in plans for document in source.documents]
    return Layout.collate(layouts), torch.cat([torch.from_numpy(source.chances) for source in plans]) / len(plans)


def train(plans: Plans, seed: int, training: TrainRecipe = TRAINING, progress: bool = True) -> Speaker:
    """A network of two layers that writes postcards by plans of these kinds.

    Noise levels below `LEAST_NOISE` are raised to it: their weights 1/t are nearly all the variance of the loss, and
    any positive weights of the masks have the same optimum, where every conditional is the source's.
    """
    torch.manual_seed(seed)
    layouts, chances = corpus(plans)
    tokenizer = Postcards.tokenizer()
    model = Transformer(Config(len(tokenizer), layouts.shape[1], layers=2, width=48, heads=2, key_heads=2))
    optimizers = make_optimizers(model, training)
    generator = torch.Generator().manual_seed(seed)
    for step in trange(training.steps, desc=f"seed {seed}", disable=not progress):
        set_rates(optimizers, training, step)
        drawn = torch.multinomial(chances, training.batch, replacement=True, generator=generator)
        layout = layouts.map(lambda field, rows=drawn: field[rows])
        times = planned_diffusion.draw_times(layout, generator).clamp_min(LEAST_NOISE)
        loss = planned_diffusion.terms(model, layout, generator, times).loss(clean_weight=1.0)
        descend(loss, model, optimizers, training)
    return Speaker(model.eval(), tokenizer, GRAMMAR)


@torch.no_grad()
def span_nats(model: Transformer, layout: Layout) -> Tensor:
    """-ELBO of log p_D(x(k) | z, c) of each span, [B, K], by all 2^l masks of l tokens instead of a sample of them.

    If tokens are revealed one at a time in random order, m of them being left are one of C(l, m) sets, and the next
    is any of these. A span and its other masks are siblings, so one forward evaluates all of them. One stage whose
    spans have equal lengths, alike in all rows.
    """
    content = layout.role == Role.CONTENT  # [B, T]
    spans = int(layout.span.max()) + 1
    length = int(content[0].sum()) // spans
    copy, index = layout.span_copy()  # [B, U]
    own = content.gather(1, index)
    masks = torch.tensor(list(product((False, True), repeat=length))[1:])  # [M, l], all but the empty one
    masked = [torch.zeros_like(own).masked_scatter(own, mask.repeat(len(own) * spans)) for mask in masks]
    copies = [replace(copy.masked(where), span=copy.span + spans * m) for m, where in enumerate(masked)]
    before = layout.map(lambda field: field[:, layout.span[0] == NO_SPAN])  # what spans may see: [B, P]
    both = Layout.concatenate([before, *copies])  # [B, P + M U]
    hidden = model(both.token, both.position, Sight.of(both, both))[:, before.shape[1] :]
    chosen = torch.stack(masked, 1) & own[:, None]  # [B, M, U]
    targets = copy.token[:, None].expand(chosen.shape)[chosen]
    nats = torch.zeros(chosen.shape).masked_scatter(
        chosen, F.cross_entropy(model.logits(hidden[chosen.flatten(1)]), targets, reduction="none")
    )
    left = masks.sum(1)  # [M]
    ways = torch.tensor([comb(length, int(m)) for m in left]) * left
    mean = (nats / ways[:, None]).sum(1)  # [B, U], over the orders in which tokens may be revealed
    return mean[own].view(len(own), spans, length).sum(-1)


@dataclass(frozen=True, slots=True)
class Price:
    """Of one kind of plan: the exact price of independence and what a trained network paid, in nats a postcard.

    `extra` is what its fill of the spans lacks of the truth, `alone` what the single spans lack of their own laws
    (so that `extra` is TC and `alone`), `estimated` the difference between its fill and its own clean stream.
    `contradicting` is the share of `written` postcards that contradict themselves, and `impossible` what it would be
    if the fill were the best one.
    """

    seed: int
    named: str
    total_correlation: float
    extra: float
    alone: float
    estimated: float
    impossible: float
    contradicting: float
    written: int
    steps: int
    made_with: str


@torch.no_grad()
def log_likelihoods(speaker: Speaker, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """What a network gives postcards: log p(x | z, c) by its clean stream, [B], and each span alone, [B, K]."""
    clean = planned_diffusion.terms(speaker.model, layout).clean * (layout.role == Role.CONTENT)  # [B, T]
    return -clean.sum(1).double().numpy(), -span_nats(speaker.model, layout).double().numpy()


def prices(speaker: Speaker, plans: Plans, seed: int, steps: int, written: int = 400) -> list[Price]:
    """Of every kind of plan: nats by sums over all postcards, contradictions by sampling."""
    layouts = corpus(plans)[0].map(lambda field: field.unflatten(0, (len(plans), -1)))  # [plans, N, T]
    return [
        _price(speaker, source, layouts.map(lambda field, k=k: field[k]), seed, steps, written)
        for k, source in enumerate(plans)
    ]


def _price(speaker: Speaker, source: Postcards, layout: Layout, seed: int, steps: int, written: int) -> Price:
    together, alone = (source.chances @ nats for nats in log_likelihoods(speaker, layout))
    joint = source.joint
    exact = independence.total_correlation(joint)
    extra = -alone.sum() - independence.conditional_entropy(joint)
    return Price(
        seed=seed,
        named=" ".join(source.named),
        total_correlation=exact,
        extra=float(extra),
        alone=float(extra - exact),
        estimated=float(together - alone.sum()),
        impossible=independence.impossible(joint),
        contradicting=sum(map(bool, contradictions(speaker, source, written, seed))) / written,
        written=written,
        steps=steps,
        made_with=ledger.made_with(),
    )


@torch.inference_mode()
def contradictions(speaker: Speaker, source: Postcards, count: int, seed: int = 0) -> list[tuple[str, ...]]:
    """What each of `count` postcards contradicts itself on; plans are the source's, sentences the network's."""
    prompts = source.sample(count, seed)
    draw = Draw(temperature=1.0, generator=torch.Generator().manual_seed(seed))
    plans = [document.stages[0].plan for document in prompts]
    found = planned_diffusion.sample(speaker, [source.prompt] * count, draw=draw, plans=plans)
    return [source.contradictions(one.document) if one.document else (UNREADABLE,) for one in found]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=Path("out/omitted_choices.csv"))
    given = parser.parse_args(arguments)
    done = {row.seed for row in ledger.read(given.out, Price)}
    for seed in sorted(set(range(given.seeds)) - done):
        speaker = train(ALL, seed, replace(TRAINING, steps=given.steps))
        for row in prices(speaker, ALL, seed, given.steps):
            ledger.append(given.out, row)
    table = Table("the plan names", "seed", "TC", "extra nats", "estimated", "contradicting", "exactly")
    for row in sorted(ledger.read(given.out, Price), key=lambda row: (row.total_correlation, row.seed)):
        nats = (f"{value:.3f}" for value in (row.total_correlation, row.extra, row.estimated))
        table.add_row(row.named, str(row.seed), *nats, f"{row.contradicting:.1%}", f"{row.impossible:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
