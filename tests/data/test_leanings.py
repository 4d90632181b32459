"""Texts with known plans: everything exact against sums in plain Python."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pdref.data.leanings import Leanings

SMALL = {
    "a mixture": Leanings(options=2, length=3, words=3, noise=0.3),
    "a choice a part": Leanings(options=2, parts=2, length=2, words=2, noise=0.3),
    "a tree": Leanings(options=2, parts=2, tops=2, length=2, words=3, noise=0.4, faith=0.7),
}
EVERY = pytest.mark.parametrize("name", SMALL)


def word(source: Leanings, option: int, x: int) -> float:
    favourite = x in (option, (option + 1) % source.words)
    return (1 - source.noise) / 2 * favourite + source.noise / source.words


def joint(source: Leanings, text: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """p(x, z) of all plans, by the equation in the module's docstring."""
    found = {}
    for a, *options in itertools.product(range(source.tops), *[range(source.options)] * source.parts):
        p = 1 / source.tops
        for i, b in enumerate(options):
            law = 1 / source.options
            if source.tops > 1:
                law = source.faith if a == b else (1 - source.faith) / (source.options - 1)
            p *= law
            for x in text[i * source.length : (i + 1) * source.length]:
                p *= word(source, b, x - i * source.words)
        found[(a, *options) if source.tops > 1 else tuple(options)] = p
    return found


def every_text(source: Leanings) -> list[tuple[int, ...]]:
    rows = [range(i * source.words, (i + 1) * source.words) for i in range(source.parts) for _ in range(source.length)]
    return list(itertools.product(*rows))


@EVERY
def test_probabilities_are_the_equation(name: str) -> None:
    source = SMALL[name]
    texts = every_text(source)
    assert abs(float(source.log_p(torch.tensor(texts)).exp().sum()) - 1) < 1e-12
    posterior = source.posterior(torch.tensor(texts))
    for text, row, log_p, best in zip(
        texts, posterior, source.log_p(torch.tensor(texts)), source.best(torch.tensor(texts)), strict=True
    ):
        expected = joint(source, text)
        assert list(map(tuple, source.plans.tolist())) == list(expected)
        assert math.isclose(math.exp(log_p), math.fsum(expected.values()), rel_tol=1e-12)
        assert [x / math.fsum(expected.values()) for x in expected.values()] == pytest.approx(row.tolist(), abs=1e-12)
        assert expected[tuple(best.tolist())] == pytest.approx(max(expected.values()))


@EVERY
def test_entropy_and_bits_are_sums_over_all_texts(name: str) -> None:
    source = SMALL[name]
    laws = [joint(source, text) for text in every_text(source)]
    of_texts = [math.fsum(law.values()) for law in laws]
    assert source.entropy == pytest.approx(-sum(p * math.log(p) for p in of_texts), abs=1e-9)

    def bits(columns: tuple[int, ...]) -> float:
        of_plans: dict[tuple[int, ...], float] = {}
        rows = []
        for law in laws:
            row: dict[tuple[int, ...], float] = {}
            for plan, p in law.items():
                key = tuple(plan[c] for c in columns)
                row[key] = row.get(key, 0.0) + p
                of_plans[key] = of_plans.get(key, 0.0) + p
            rows.append(row)
        pairs = zip(rows, of_texts, strict=True)
        return sum(p * math.log2(p / (q * of_plans[z])) for row, q in pairs for z, p in row.items())

    m = source.plans.shape[1]
    assert source.bits() == pytest.approx(bits(tuple(range(m))), abs=1e-9)
    for choice in range(m):
        assert source.bits(choice) == pytest.approx(bits((choice,)), abs=1e-9)


@EVERY
def test_samples_have_the_probabilities(name: str) -> None:
    source, count = SMALL[name], 20_000
    text, plan = source.sample(count, torch.Generator().manual_seed(0))
    expected = {(t, z): p for t in every_text(source) for z, p in joint(source, t).items()}
    found: dict[tuple, int] = dict.fromkeys(expected, 0)
    for t, z in zip(map(tuple, text.tolist()), map(tuple, plan.tolist()), strict=True):
        found[t, z] += 1
    statistic = sum((found[key] - count * p) ** 2 / (count * p) for key, p in expected.items())
    degrees = len(expected) - 1
    assert statistic < degrees + 3.1 * math.sqrt(2 * degrees) + 10, f"{statistic:.0f} of {degrees} degrees"


def test_coherent_texts_keep_to_two_words_a_part() -> None:
    source = Leanings(options=3, parts=2, length=3, words=5)
    texts = torch.tensor(
        [
            [0, 1, 0, 8, 7, 7],  # ab of option 0, cd of option 2
            [0, 2, 0, 8, 7, 7],  # no option has a and c
            [4, 4, 4, 8, 7, 7],  # word e belongs to no option
            [0, 0, 0, 2, 2, 2],  # the second part in words of the first
        ]
    )
    assert source.coherent(texts).tolist() == [True, False, False, False]
    assert source.spell(texts[:1]) == ["aba ihh"]
    silent = Leanings(noise=0.0)
    assert silent.coherent(silent.sample(200, torch.Generator().manual_seed(0)).text).all()


def test_a_tree_shares_its_top() -> None:
    free, faithful = (Leanings(options=3, parts=2, tops=3, faith=f) for f in (1 / 3, 0.9))
    assert free.bits(0) == pytest.approx(0, abs=1e-9) and faithful.bits(0) > 0.7


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"options": 6}, "options"),
        ({"options": 1}, "options"),
        ({"tops": 4}, "top"),
        ({"length": 0}, "tokens"),
        ({"noise": 1.5}, "probabilities"),
    ],
)
def test_misfits_are_refused(settings: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Leanings(**settings)


def test_what_cannot_be_enumerated_is_refused() -> None:
    with pytest.raises(ValueError, match="too many"):
        Leanings(parts=5).entropy  # noqa: B018
    with pytest.raises(ValueError, match="texts are"):
        Leanings().log_p(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="part i"):
        Leanings().log_p(torch.full((1, 6), 9))
