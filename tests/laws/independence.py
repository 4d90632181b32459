"""Laws of what independence costs: by entropies, as a divergence, in closed form, and mask by mask."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from pdref.data.postcards import CHOICES, GRAMMAR, LAWS, SHARED, WEATHER, Postcards
from pdref.lab import omitted_choices
from pdref.model.transformer import Config, Transformer
from pdref.text.document import PlannedDocument, Stage
from pdref.text.layout import Layout, Role, encode
from pdref.text.mask import Sight
from pdref.theory import independence as price
from pdref.theory.entropy import entropy


def drawn(seed: int, *shape: int) -> np.ndarray:
    """A joint law with zeros in it, an impossible plan among them."""
    rng = np.random.default_rng(seed)
    joint = rng.dirichlet(np.full(math.prod(shape), 0.3)).reshape(shape) * (rng.random(shape) < 0.8)
    joint[-1] = 0
    return joint / joint.sum()


JOINTS = [
    drawn(seed, *shape) for seed, shape in enumerate([(3, 4, 3), (2, 3, 3, 3), (4, 2, 2, 2, 2), (2, 5), (5, 2, 7)])
]


def by_definition(joint: np.ndarray) -> float:
    """E[ln p(x | z) - sum_k ln p(x(k) | z)], cell by cell in plain Python."""
    total = 0.0
    for cell in np.ndindex(*joint.shape):
        if joint[cell] == 0:
            continue
        z, *x = cell
        plan = joint[z].sum()
        alone = [sum(joint[z][c] for c in np.ndindex(*joint.shape[1:]) if c[k] == v) / plan for k, v in enumerate(x)]
        total += joint[cell] * (math.log(joint[cell] / plan) - sum(map(math.log, alone)))
    return total


def total_correlation_is_a_divergence(joint: np.ndarray) -> None:
    """From the best fill, which keeps plans and single spans; and as an expectation, cell by cell."""
    found, fill = price.total_correlation(joint), price.best_fill(joint)
    assert found == pytest.approx(price.divergence(joint, fill), abs=1e-12)
    assert found == pytest.approx(by_definition(joint), abs=1e-12)
    for k in range(joint.ndim - 1):
        np.testing.assert_allclose(price.span_law(fill, k), price.span_law(joint, k), atol=1e-13)


def all_total_correlations_are_divergences() -> None:
    """Of all `JOINTS`."""
    for joint in JOINTS:
        total_correlation_is_a_divergence(joint)


H = {name: entropy(np.array([*law.values()]), np.log) for name, law in LAWS.items()}
SEASONS = np.array([*LAWS["season"].values()])
SKIES = np.array([[*law.values()] for law in WEATHER.values()])  # [season, weather]
H["weather"] = entropy(SEASONS @ SKIES, np.log)
H_BOTH = entropy(SEASONS[:, None] * SKIES, np.log)
SENTENCE_CHOICES = ({"season", "place", "company"}, {"season", "weather", "place"}, {"company", "place", "weather"})

ALL = [named for count in range(len(CHOICES) + 1) for named in combinations(CHOICES, count)]


def closed(choices: set[str], named: set[str]) -> float:
    """Entropy of shared choices given the named ones: only season and weather know of each other."""

    def joint(names: set[str]) -> float:
        pair = {"season", "weather"} & names
        return sum(H[name] for name in names - pair) + (H_BOTH if len(pair) == 2 else sum(H[name] for name in pair))

    return joint(choices | named) - joint(named)


def the_price_is_the_closed_form(named: tuple[str, ...] = ("season",)) -> None:
    """Of postcards whose plans name these choices: total correlation and entropy."""
    source, said = Postcards(named), set(named) - {"verb"}
    sentences = sum(closed(choices, said) for choices in SENTENCE_CHOICES)
    assert price.total_correlation(source.joint) == pytest.approx(sentences - closed(set(SHARED), said), abs=1e-12)
    own = 0 if "verb" in named else H["verb"]
    assert price.conditional_entropy(source.joint) == pytest.approx(closed(set(SHARED), said) + own, abs=1e-12)
    assert (price.impossible(source.joint) < 1e-12) == (said == set(SHARED))


def contradictions_are_what_the_source_cannot_write(named: tuple[str, ...] = ("season", "place")) -> None:
    """Every trio of sentences that the best independent fill writes; those the judge refuses weigh `impossible`."""
    source = Postcards(named)
    stages = [document.stages[0] for document in source.documents]
    plans = list(dict.fromkeys(stage.plan for stage in stages))
    spans = [list(dict.fromkeys(stage.spans[k] for stage in stages)) for k in range(3)]
    fill, wrong = price.best_fill(source.joint), 0.0
    for z, *x in np.argwhere(fill > 0):
        sentences = tuple(texts[i] for texts, i in zip(spans, x, strict=True))
        found = source.contradictions(PlannedDocument(source.prompt, (Stage(plans[z], sentences),)))
        assert bool(found) == (source.joint[z, *x] == 0)
        wrong += fill[z, *x] * bool(found)
    assert wrong == pytest.approx(price.impossible(source.joint), abs=1e-12)


def masks_are_orders(model: Transformer | None = None, rows: int = 1) -> None:
    """The nats of a span by all masks: its tokens revealed in each of the 24 orders, one forward a token."""
    tokenizer = Postcards.tokenizer()
    documents = Postcards(("place",)).sample(rows, 5)
    layout = Layout.collate([encode(document, tokenizer, GRAMMAR) for document in documents])
    if model is None:
        torch.manual_seed(0)
        model = Transformer(Config(len(tokenizer), layout.shape[1], 2, 16, 2, 2))
        model.unembed.weight.data *= 20  # far from uniform
    found = omitted_choices.span_nats(model, layout)
    assert found.shape == (rows, 3)
    for b, k in np.ndindex(*found.shape):
        row = layout.map(lambda field, b=b: field[b : b + 1])
        places = ((row.role == Role.CONTENT) & (row.span == k))[0].nonzero()[:, 0].tolist()
        nats = [_one_by_one(model, row, order) for order in permutations(places)]
        assert found[b, k].item() == pytest.approx(sum(nats) / len(nats), rel=1e-4)


@torch.no_grad()
def _one_by_one(model: Transformer, row: Layout, order: tuple[int, ...]) -> float:
    nats = 0.0
    for step, place in enumerate(order):
        masked = torch.zeros(row.shape, dtype=torch.bool)
        masked[0, list(order[step:])] = True
        copy, index = row.span_copy()
        both = Layout.concatenate([row, copy.masked(masked.gather(1, index))])
        hidden = model(both.token, both.position, Sight.of(both, both))
        at = row.shape[1] + index[0].tolist().index(place)
        nats -= model.logits(hidden)[0, at].log_softmax(-1)[row.token[0, place]].item()
    return nats
