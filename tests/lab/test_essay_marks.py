"""Marks: failures by place, their correlation, and a writer's own chances, found where they are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from laws import writers
from pdref.data.essays import Essays
from pdref.lab.essay_marks import alike, failures, forced
from pdref.lab.essay_writers import ARMS, Writer
from pdref.lab.recipe import HELD_OUT_SEED

SOURCE = Essays(kinds=3, values=4, sections=1, paragraphs=2, slip=0.2)


def test_failures_are_counted_by_place() -> None:
    thesis = {"town": "aston", "guide": "nell", "colour": "amber"}
    said = "old law reached aston . old law followed otto . old law wore amber ."
    broken = "old law reached brill . law old wore wore . old law wore <eos> ."
    wrong, malformed = failures(SOURCE, [f"{said} {broken}"], [thesis])
    assert wrong[0].tolist() == [[False, True, False], [True, True, True]]
    assert malformed == pytest.approx(2 / 6)


def test_alike_is_the_correlation_of_failures() -> None:
    rng = np.random.default_rng(0)
    apart = rng.random((4000, 5, 2)) < 0.3
    assert abs(alike(apart)) < 0.02
    together = np.repeat(rng.random((4000, 1, 2)) < 0.3, 5, axis=1)
    assert alike(together) == pytest.approx(1.0)
    pairs = [
        np.corrcoef(together[:, s, 0] | apart[:, s, 0], together[:, t, 0] | apart[:, t, 0])[0, 1]
        for s in range(5)
        for t in range(s)
    ]
    assert alike((together | apart)[..., :1]) == pytest.approx(np.mean(pairs), abs=0.01)
    assert alike(np.zeros((10, 5, 2), bool)) is None


@pytest.mark.parametrize("arm", ARMS)
def test_forced_finds_the_chances_of_a_copyist(arm: str) -> None:
    """Who repeats what is in sight but for `eps` says something else with `eps`, first and later alike."""
    writer = Writer.fresh(ARMS[arm], SOURCE)
    found = forced(replace(writer, model=writers.Copyist(writer, 0.07)), count=8)
    assert found.eps == pytest.approx(0.07) and found.eps_first == pytest.approx(0.07)
    exact = [SOURCE.nats(essay) for essay in SOURCE.essays(8, HELD_OUT_SEED)]
    assert found.source_nats == pytest.approx(sum(n.total for n in exact) / 8)
