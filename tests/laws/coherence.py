"""Laws of the coherence theorem: closed forms against every pattern of errors, bounds against every coder."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from pdref.theory import coherence_bounds as bounds
from pdref.theory.coherence import Level, Scheme, channel, estimate, plan, relay, sectioned, tree

GRID = [  # 40 settings: early, at and beyond the coherence length, two to seven symbols
    *(relay(T, eps, m) for T in (8, 128, 512) for eps in (1e-3, 0.01, 0.1) for m in (2, 5)),
    relay(2048, 1e-3),
    relay(64, 0.02, 4, first=0.2),
    relay(33, 0.75, 3),
    *(plan(T, eps, wrong, m) for T in (16, 256) for eps, wrong in ((1e-3, 0.0), (0.01, 0.05)) for m in (2, 7)),
    *(sectioned(256, k, 1e-3, wrong) for k in (2, 16, 256) for wrong in (0.0, 0.02)),
    *(tree(branching, 2e-3, 3) for branching in ((16, 16), (4, 4, 4, 4), (2,) * 8, (32, 8))),
    Scheme((Level(3, 0.05), Level(5, 0.02, 0.1), Level(7, 0.03)), 3),
]
SMALL = [
    relay(4, 0.1, 3),
    relay(6, 0.3, first=0.05),
    plan(4, 0.1, 0.2, 3),
    sectioned(4, 2, 0.1, 0.05, 3),
    tree((2, 3), 0.2),
    tree((2, 2, 2), 0.15),
    Scheme((Level(2, 0.1), Level(2, 0.2, 0.3), Level(1, 0.25)), 2),
]


def every_pattern(scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """The law of V and P(agreement) as a sum over the symbols of all nodes: an oracle that shares nothing."""
    law, agreement = np.zeros(scheme.decisions + 1), np.zeros(scheme.decisions)
    sizes = np.cumprod([level.siblings for level in scheme.levels])
    for symbols in product(range(scheme.values), repeat=int(sizes.sum())):
        chance, parents, rest = 1.0, (0,), symbols
        for level, size in zip(scheme.levels, sizes, strict=True):
            nodes, rest = rest[:size], rest[size:]
            for i, symbol in enumerate(nodes):
                eldest = i % level.siblings == 0 or level.along is None
                source = parents[i // level.siblings] if eldest else nodes[i - 1]
                error = level.down if eldest else level.along
                chance *= 1 - error if symbol == source else error / (scheme.values - 1)
            parents = nodes
        right = np.array(nodes) == 0
        law[(~right).sum()] += chance
        agreement += chance * right
    return law, agreement


def closed_forms_are_every_pattern(scheme: Scheme) -> None:
    """The law of V, agreement decision by decision, E[V] and P(V = 0)."""
    law, agreement = every_pattern(scheme)
    np.testing.assert_allclose(scheme.law, law, atol=1e-13)
    np.testing.assert_allclose(scheme.agreement, agreement, atol=1e-13)
    assert scheme.violations == pytest.approx(law @ np.arange(len(law)), abs=1e-12)
    assert scheme.flawless == pytest.approx(law[0], abs=1e-14)


def all_closed_forms_are_every_pattern() -> None:
    """Of all `SMALL` schemes."""
    for scheme in SMALL:
        closed_forms_are_every_pattern(scheme)


def simulations_are_within_three_standard_errors() -> None:
    """All 40, by the exact standard error. The seeds are 0, 1, 2, ... Of 15 other choices, 3 failed by chance.

    Their squares together are a chi-square of 40 degrees of freedom, outside (20.7, 66.8) for one choice in 100.
    """
    runs = 2000
    assert len(GRID) == 40
    deviations = []
    for seed, scheme in enumerate(GRID):
        found = estimate(scheme.simulate(runs, seed).sum(1))
        deviations.append((found.mean - scheme.violations) / (scheme.spread / runs**0.5))
    assert np.abs(deviations).max() < 3
    assert 20.7 < np.square(deviations).sum() < 66.8


def no_coder_beats_the_relay(error: float = 0.1, values: int = 3) -> None:
    """Every map from Theta to M_1's input, from M_1 to M_2's input and from M_2 to a guess, tried out."""
    maps = [np.eye(values)[list(f)] for f in product(range(values), repeat=values)]
    noise = channel(error, values)
    best = max(np.trace(a @ noise @ b @ noise @ c) / values for a, b, c in product(maps, repeat=3))
    assert best == pytest.approx(relay(2, error, values).agreement[-1])


def fano_is_an_equality(values: int = 3) -> None:
    """On this channel, where I(Theta; M_t) is that of the joint law of Theta and M_t."""
    agreement = relay(60, 0.05, values).agreement
    known = bounds.information(agreement, values)
    for t in (1, 5, 60):
        joint = np.linalg.matrix_power(channel(0.05, values), t) / values
        assert known[t - 1] == pytest.approx((joint * np.log(joint * values**2)).sum(), abs=1e-12)
    np.testing.assert_allclose(bounds.fano(known, values), 1 - agreement, atol=1e-9)
