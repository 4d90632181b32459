"""No method makes a tensor without saying where.

There is no second device on a CPU to show it on, but there is "meta", which holds no numbers: as the default device it
takes every tensor that is made without a word, and a computation that meets one of those fails.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pdref.data.profiles import Profiles
from pdref.lab.checkpoint import Checkpoint, load
from pdref.methods import autoregressive, masked_diffusion, multi_token, planned_diffusion
from pdref.methods.decoding import Draw
from pdref.text.document import PlannedDocument
from pdref.text.layout import Layout, encode

Job = Callable[[], object]


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load("profiles_heads")


@pytest.fixture(scope="module")
def documents(shipped: Checkpoint) -> list[PlannedDocument]:
    return Profiles(shipped.recipe.corpus.difficulty, shipped.recipe.grammar).sample(3, 5)


@pytest.fixture(scope="module")
def layout(shipped: Checkpoint, documents: list[PlannedDocument]) -> Layout:
    speaker = shipped.speaker
    return Layout.collate([encode(d, speaker.tokenizer, speaker.grammar) for d in documents])


def generator() -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(0)


LOSSES = {
    "planned diffusion": lambda model, layout: planned_diffusion.terms(model, layout, generator()).loss(),
    "the released trainer": lambda model, layout: planned_diffusion.released_terms(model, layout, generator()).loss(),
    "autoregression": autoregressive.objective,
    "several tokens": multi_token.objective,
    "masked diffusion": lambda model, layout: masked_diffusion.objective(
        model, masked_diffusion.as_one_span(layout, 200), generator()
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, shipped: Checkpoint, layout: Layout) -> None:
    with torch.device("meta"):
        loss = LOSSES[name](shipped.speaker.model, layout)
        loss.backward()
    assert loss.device.type == "cpu" and loss.isfinite()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("options", [{}, {"siblings": "dense"}, {"cached": False}, {"length_factor": 1.5}], ids=str)
def test_planned_diffusion(
    options: dict, temperature: float, shipped: Checkpoint, documents: list[PlannedDocument]
) -> None:
    prompts = [document.prompt for document in documents]
    with torch.device("meta"):
        found = planned_diffusion.sample(shipped.speaker, prompts, draw=Draw(temperature), **options)
    assert all(generation.tokens for generation in found)


@pytest.mark.parametrize("ahead", [0, None])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_autoregression(ahead: int | None, temperature: float, shipped: Checkpoint) -> None:
    with torch.device("meta"):
        found = autoregressive.sample(shipped.speaker, ["she ."], Draw(temperature, ahead=ahead), limit=30)
    assert found[0].tokens


def test_masked_diffusion(shipped: Checkpoint) -> None:
    with torch.device("meta"):
        (found,) = masked_diffusion.sample(shipped.speaker, ["she ."], 16)
    assert found.tokens
