"""Sections side by side: the same text as one by one, alone, in a batch and without a cache; and what they cost."""

from __future__ import annotations

import pytest
import torch

from laws import outlines
from laws.outlines import FILLINGS
from pdref.methods import hierarchy
from pdref.methods.decoding import Draw
from pdref.methods.planning import Bounds
from pdref.text.filling import Filling

BOUNDS = Bounds(6, 60, 3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("filling", FILLINGS)
def test_side_by_side_is_one_by_one(filling: Filling, temperature: float) -> None:
    outlines.side_by_side_is_one_by_one(filling, temperature)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("filling", FILLINGS)
def test_company_and_cache_change_nothing(filling: Filling, temperature: float) -> None:
    batch = outlines.company_and_cache_change_nothing(filling, temperature)
    assert sum(generation.problem is None for generation in batch) > 1


@pytest.mark.parametrize("at_once", [None, 1, 2])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("filling", FILLINGS)
def test_costs_are_the_closed_forms(filling: Filling, cached: bool, at_once: int | None) -> None:
    outlines.costs_are_the_closed_forms(filling, at_once, cached)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("filling", FILLINGS)
def test_no_tensor_is_made_without_saying_where(filling: Filling, cached: bool) -> None:
    """Meta as the default device takes every tensor that is made without a word, and what meets it fails."""
    speaker = outlines.branching()
    with torch.device("meta"):
        found = hierarchy.sample(speaker, ["ada"], filling, Draw(1.0, seeds=[1]), bounds=BOUNDS, cached=cached)
    assert [g.tokens for g in found] == [
        g.tokens for g in hierarchy.sample(speaker, ["ada"], filling, Draw(1.0, seeds=[1]), bounds=BOUNDS)
    ]
