"""Drawing: greedy is deterministic, sampling is the softmax, a nucleus is exact, a batch changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pdref.ops.unmask import Drawn, most_confident, nucleus, unmask

P = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)


def draw(p: Tensor = P, count: int = 1, **options: object) -> Drawn:
    """Draw `count` tokens, each at its own position, from a model that gives all the probabilities `p`."""
    hidden = torch.ones(count, 1, dtype=p.dtype)
    seeds = torch.full((count,), 11)
    return unmask(hidden, p.log()[:, None], seeds, torch.arange(count), **options)


def frequencies(tokens: Tensor) -> list[int]:
    return torch.bincount(tokens, minlength=len(P)).tolist()


def test_temperature_0_takes_the_best_token_whatever_the_seed() -> None:
    for step in range(3):
        assert draw(count=50, step=step).token.tolist() == [0] * 50
    assert draw(P.flip(0), count=3).token.tolist() == [4] * 3


def test_temperature_0_is_as_sure_as_temperature_1() -> None:
    greedy = draw()
    assert greedy.probability.item() == pytest.approx(0.5)
    assert greedy.entropy.item() == pytest.approx(-sum(p * math.log(p) for p in P.tolist()))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_tokens_follow_the_softmax(temperature: float) -> None:
    drawn = draw(count=20_000, temperature=temperature)
    expected = P ** (1 / temperature) / (P ** (1 / temperature)).sum()
    assert stats.chisquare(frequencies(drawn.token), (20_000 * expected).numpy()).pvalue > 1e-3
    torch.testing.assert_close(drawn.probability, expected[drawn.token])


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-6, 1), (0.49, 1), (0.51, 2), (0.69, 2), (0.71, 3), (0.84, 3), (0.86, 4), (0.96, 5), (1.0, 5)],
)
def test_a_nucleus_is_the_smallest_set_that_reaches_its_mass(top_p: float, kept: int) -> None:
    # By hand: 0.5, then 0.7, 0.85, 0.95 and 1 are the masses of the best one, two, three, four and five.
    expected = torch.cat([P[:kept] / P[:kept].sum(), torch.zeros(5 - kept, dtype=P.dtype)])
    drawn = draw(count=4_000, temperature=1.0, top_p=top_p)
    counts = frequencies(drawn.token)
    assert counts[kept:] == [0] * (5 - kept)
    if kept > 1:
        assert stats.chisquare(counts[:kept], (4_000 * expected[:kept]).numpy()).pvalue > 1e-3
    torch.testing.assert_close(drawn.probability, expected[drawn.token])
    torch.testing.assert_close(drawn.entropy, torch.special.entr(expected).sum().expand(4_000))


def test_a_nucleus_follows_the_order_of_probabilities_not_of_tokens() -> None:
    shuffled = torch.tensor([[0.1, 0.5, 0.05, 0.2, 0.15]], dtype=torch.float64).log()
    p = nucleus(shuffled, 0.7).exp()
    torch.testing.assert_close(p, torch.tensor([[0, 5 / 7, 0, 2 / 7, 0]], dtype=torch.float64))


def test_the_entropy_of_a_uniform_model_is_log_v() -> None:
    for size in (1, 2, 100):
        uniform = torch.full((size,), 1 / size, dtype=torch.float64)
        assert draw(uniform).entropy.item() == pytest.approx(math.log(size), abs=1e-12)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 5.0, "top_p": 0.9}], ids=str)
def test_forbidden_tokens_are_never_drawn_and_the_rest_share_their_mass(options: dict[str, float]) -> None:
    drawn = draw(count=2_000, forbidden=torch.tensor([0, 3]), **options)
    assert set(drawn.token.tolist()) <= {1, 2, 4}
    allowed = torch.tensor([0, 0.2, 0.15, 0, 0.05], dtype=torch.float64) / 0.4
    if options.get("temperature", 1.0) == 1.0:
        torch.testing.assert_close(drawn.probability, allowed[drawn.token])
        torch.testing.assert_close(drawn.entropy, torch.special.entr(allowed).sum().expand(2_000))


def test_a_request_draws_the_same_alone_and_in_a_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, unembedding = torch.randn(6, 8, generator=generator), torch.randn(20, 8, generator=generator)
    seeds, positions = torch.tensor([3, 3, 3, 8, 8, 8]), torch.tensor([4, 5, 6, 4, 5, 6])
    options = {"step": 2, "temperature": 1.5, "top_p": 0.95}
    together = unmask(hidden, unembedding, seeds, positions, **options)
    for rows in ([0], [5], [3, 1], [5, 4, 3, 2, 1, 0]):
        some = unmask(hidden[rows], unembedding, seeds[rows], positions[rows], **options)
        assert some.token.tolist() == together.token[rows].tolist()
        torch.testing.assert_close(some.probability, together.probability[rows])


@pytest.mark.parametrize("change", [{"step": 1}, {"seed": 12}, {"positions": 1}], ids=str)
def test_another_step_seed_or_position_is_another_draw(change: dict[str, int]) -> None:
    def tokens(step: int = 0, seed: int = 11, positions: int = 0) -> list[int]:
        hidden = torch.ones(200, 1, dtype=P.dtype)
        at = 1000 * positions + torch.arange(200)
        return unmask(hidden, P.log()[:, None], torch.full((200,), seed), at, step, temperature=1.0).token.tolist()

    assert tokens() == tokens()
    agreement = sum(a == b for a, b in zip(tokens(), tokens(**change), strict=True)) / 200
    assert abs(agreement - float((P * P).sum())) < 0.15, "as often alike as two independent draws are"


# Which positions to reveal.

ROWS = st.integers(1, 12).flatmap(
    lambda L: st.lists(
        st.tuples(
            st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5]), min_size=L, max_size=L),  # few values: many ties
            st.lists(st.booleans(), min_size=L, max_size=L),
            st.integers(0, 14),
        ),
        min_size=1,
        max_size=4,
    )
)


@given(rows=ROWS)
def test_each_row_reveals_its_quota_of_the_most_confident(
    rows: list[tuple[list[float], list[bool], int]],
) -> None:
    confidence, masked, quota = (torch.tensor(column) for column in zip(*rows, strict=True))
    chosen = most_confident(confidence, masked, quota)
    for row, (values, open_, count) in zip(chosen.tolist(), rows, strict=True):
        # Sorting by falling confidence, then by place, is the definition of "ties from left to right".
        ranked = sorted((i for i, is_open in enumerate(open_) if is_open), key=lambda i: (-values[i], i))
        assert [i for i, taken in enumerate(row) if taken] == sorted(ranked[:count])


def test_ties_are_taken_from_left_to_right() -> None:
    masked = torch.tensor([[True, False, True, True, True]])
    chosen = most_confident(torch.zeros(1, 5), masked, torch.tensor([3]))
    assert chosen.tolist() == [[True, False, True, True, False]]
