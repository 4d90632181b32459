"""The price that a network pays, computed mask by mask, against sampling, its own text and its exact parts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from laws import independence
from pdref.data.postcards import GRAMMAR, Postcards
from pdref.lab import ledger, omitted_choices
from pdref.lab.omitted_choices import (
    ALL,
    CHAIN,
    TRAINING,
    Price,
    contradictions,
    corpus,
    log_likelihoods,
    prices,
    span_nats,
    train,
)
from pdref.methods import planned_diffusion
from pdref.methods.decoding import Speaker
from pdref.text.layout import Layout, encode
from pdref.theory.independence import estimated, total_correlation

SHORT = replace(TRAINING, steps=40, batch=16)


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    """Trained for a second: not good, and not uniform either."""
    return train(CHAIN, 0, SHORT, progress=False)


def some(speaker: Speaker, count: int = 3) -> Layout:
    source = Postcards(("place",))
    return Layout.collate([encode(document, speaker.tokenizer, GRAMMAR) for document in source.sample(count, 5)])


def test_chains_and_all() -> None:
    assert len(ALL) == len({source.named for source in ALL}) == 16
    for before, after in pairwise(CHAIN):
        assert set(after.named) < set(before.named) and len(after.named) == len(before.named) - 1
    layouts, chances = corpus(CHAIN)
    assert layouts.shape[0] == len(chances) == 5 * 108 and chances.sum() == pytest.approx(1)


def test_the_mean_over_masks_is_the_mean_over_orders(speaker: Speaker) -> None:
    independence.masks_are_orders(speaker.model, rows=2)


def test_it_is_what_the_sampled_bound_tends_to(speaker: Speaker) -> None:
    layout = some(speaker)
    bound = planned_diffusion.log_likelihood(speaker.model, layout, 800, torch.Generator().manual_seed(0)).spans
    exact = -span_nats(speaker.model, layout).sum(1)
    assert ((bound.mean - exact).abs() < 4 * bound.error).all() and (bound.error < 1).all()


def test_prices_of_a_network_that_knows_little(speaker: Speaker) -> None:
    rows = prices(speaker, CHAIN, 0, SHORT.steps, written=40)
    assert [row.named for row in rows] == [" ".join(source.named) for source in CHAIN]
    for row in rows:
        assert row.extra == pytest.approx(row.total_correlation + row.alone)
        assert row.alone > 0, "no fill is better than the best"
        assert 0 <= row.contradicting <= 1
    assert [row.total_correlation for row in rows] == sorted(row.total_correlation for row in rows)


def test_the_estimate_from_samples_is_that_of_the_sum(speaker: Speaker) -> None:
    source = CHAIN[2]
    layout = Layout.collate([encode(one, speaker.tokenizer, GRAMMAR) for one in source.sample(300, 1)])
    together, alone = log_likelihoods(speaker, layout)
    assert together.shape == (300,) and alone.shape == (300, 3)
    found = estimated(together, alone)
    assert abs(found.mean - prices(speaker, CHAIN, 0, 0, written=1)[2].estimated) < 4 * found.error


def test_contradictions_of_the_network_s_own_postcards(speaker: Speaker) -> None:
    found = contradictions(speaker, CHAIN[0], 12, seed=3)
    assert len(found) == 12 and found == contradictions(speaker, CHAIN[0], 12, seed=3)


def test_the_shipped_sweep_bears_the_claim_out() -> None:
    """Three seeds by sixteen plans: the extra nats are the total correlation within 5%, and so is the estimate."""
    rows = ledger.read(ledger.RESULTS / "omitted_choices.csv", Price)
    assert {(row.seed, row.named) for row in rows} == {(s, " ".join(p.named)) for s in range(3) for p in ALL}
    exact = {" ".join(source.named): total_correlation(source.joint) for source in ALL}
    for row in rows:
        assert row.total_correlation == pytest.approx(exact[row.named], abs=1e-4)
        if row.named == "season place company weather":
            assert row.extra < 0.05
        else:
            assert row.extra == pytest.approx(row.total_correlation, rel=0.05)
            assert row.estimated == pytest.approx(row.total_correlation, rel=0.05)


def test_the_command_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omitted_choices, "ALL", CHAIN[:1])
    command = ["--seeds", "1", "--steps", "2", "--out", str(tmp_path / "rows.csv")]
    omitted_choices.main(command)
    first = (tmp_path / "rows.csv").read_text()
    omitted_choices.main(command)
    assert (tmp_path / "rows.csv").read_text() == first and len(first.splitlines()) == 2
    assert first.splitlines()[1].startswith("0,season place company weather,")
