"""Drawing: greedy is deterministic, sampling is the softmax, a nucleus is exact, a batch changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from laws.planting import planted_module
from pdref.lab.kernels.check import assert_within_budget
from pdref.lab.kernels.problems import unmask_problem
from pdref.ops.impl import Impl
from pdref.ops.unmask import Drawn, most_confident, unmask
from pdref.ops.unmask.naive import nucleus

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
            st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5]), min_size=L, max_size=L),  # few values: many ties
            st.lists(st.booleans(), min_size=L, max_size=L),
            st.integers(0, 14),
        ),
        min_size=1,
        max_size=4,
    )
)


Rows = list[tuple[list[float], list[bool], int]]


def each_row_reveals_its_quota(rows: Rows, impl: Impl) -> None:
    confidence, masked, quota = (torch.tensor(column) for column in zip(*rows, strict=True))
    chosen = most_confident(confidence, masked, quota, impl)
    for row, (values, open_, count) in zip(chosen.tolist(), rows, strict=True):
        # Sorting by falling confidence, then by place, is the definition of "ties from left to right".
        ranked = sorted((i for i, is_open in enumerate(open_) if is_open), key=lambda i: (-values[i], i))
        assert [i for i, taken in enumerate(row) if taken] == sorted(ranked[:count])


@given(rows=ROWS)
def test_each_row_reveals_its_quota_of_the_most_confident(rows: Rows) -> None:
    each_row_reveals_its_quota(rows, "auto")


@settings(max_examples=25)
@given(rows=ROWS)
def test_so_it_does_in_the_kernel(rows: Rows) -> None:
    pytest.importorskip("triton")
    each_row_reveals_its_quota(rows, "triton")


def test_ties_are_taken_from_left_to_right() -> None:
    masked = torch.tensor([[True, False, True, True, True]])
    chosen = most_confident(torch.zeros(1, 5), masked, torch.tensor([3]))
    assert chosen.tolist() == [[True, False, True, True, False]]


# The kernel, interpreted on a CPU and compiled where there is a GPU.

LANES = [("cpu", torch.float32), ("cpu", torch.float16)]
if torch.cuda.is_available():
    LANES = [("cuda", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]


def kernel_holds(
    N: int, D: int, V: int, temperature: float = 1.0, scale: float = 1.0, device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """The kernel draws what the definition draws, and is as sure of it."""
    pytest.importorskip("triton")
    problem = unmask_problem(N, D, V, L=min(N, 150), temperature=temperature, scale=scale)
    assert_within_budget(problem, "triton", device, dtype)


@pytest.mark.parametrize(("device", "dtype"), LANES)
@pytest.mark.parametrize(("N", "D", "V"), [(1, 7, 2), (63, 64, 257), (100, 16, 1000), (257, 100, 300)])
def test_the_kernel_is_within_its_error_budget(N: int, D: int, V: int, device: str, dtype: torch.dtype) -> None:
    for temperature in (0.0, 1.0, 2.5):
        kernel_holds(N, D, V, temperature, 1.0, device, dtype)


@pytest.mark.parametrize(("device", "dtype"), LANES)
def test_the_kernel_stands_large_logits(device: str, dtype: torch.dtype) -> None:
    kernel_holds(257, 64, 300, 1.0, 300.0, device, dtype)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_ten_thousand_draws_are_those_of_the_definition(impl: Impl) -> None:
    if impl == "triton":
        pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(0)
    hidden, unembedding = torch.randn(10_000, 8, generator=generator), torch.randn(100, 8, generator=generator)
    seeds, positions = torch.randint(2**62, (10_000,), generator=generator), torch.arange(10_000)
    arguments = hidden, unembedding, seeds, positions, 5, 1.0
    expected, found = unmask(*arguments, impl="naive"), unmask(*arguments, impl=impl)
    assert torch.equal(found.token, expected.token)
    torch.testing.assert_close(found.probability, expected.probability, rtol=1e-4, atol=1e-6)


def test_the_torch_path_draws_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = unmask_problem(100, 8, 50)
    whole = problem.call(problem.inputs, "torch")
    monkeypatch.setattr("pdref.ops.unmask.KEPT", 150)
    for name, value in problem.call(problem.inputs, "torch").items():
        torch.testing.assert_close(value, whole[name])


def test_a_nucleus_is_refused_by_the_kernel_and_auto_does_without_it() -> None:
    with pytest.raises(ValueError, match="nucleus"):
        draw(top_p=0.5, temperature=1.0, impl="triton")
    assert draw(top_p=0.5, temperature=1.0, impl="auto").token.item() == 0


KERNEL, SHARED = "pdref.ops.unmask.triton", "pdref.ops.vocabulary"
BUGS = {
    "words beyond the vocabulary count": (KERNEL, "tl.load(allowed + v, mask=v < V, other=0)", "(v == v)"),
    "a stride of another matrix": (SHARED, "v[None, :].to(tl.int64) * stride_v", "v[None, :] * (stride_v + 1)"),
    "missing rescale": (KERNEL, "s = s * rescale(m, larger)", "s = s"),
    "the entropy's sum does not move with the maximum": (KERNEL, "(u + s * lower)", "u"),
    "noise by the place in a tile": (KERNEL, "position, step, v)\n    best", "position, step, v % BV)\n    best"),
    "noise without the step": (KERNEL, "((step.to(tl.uint32) + 1) * stride)", "stride"),
    "a hash of 31 bits": (KERNEL, "h = (h ^ (h >> 13)) * 0xC2B2AE35", "h = (h ^ (h >> 13)) * 0x42B2AE35"),
    "the token of the first tile": (KERNEL, "tile * BV + which", "which"),
    "equals from the right": (KERNEL, "cumsum(equal.to(tl.int32), 0)", "cumsum(equal.to(tl.int32), 0, reverse=True)"),
    "one too many": (KERNEL, "0) <= left", "0) <= left + 1"),
    "what is visible is counted too": (KERNEL, "(rival & (key >= tried))", "(key >= tried)"),
    "negative confidences in the wrong order": (KERNEL, "bits ^ 0xFFFFFFFF", "bits"),
    "every row is the first": (KERNEL, "at = tl.program_id(0).to(tl.int64) * L", "at = tl.program_id(0) * 0"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_the_kernel_turns_a_law_red(bug: str) -> None:
    pytest.importorskip("triton")
    module, right, wrong = BUGS[bug]
    with planted_module(module, right, wrong, (KERNEL,) if module == SHARED else ()), pytest.raises(AssertionError):
        kernel_holds(200, 16, 300)
        kernel_holds(90, 8, 300, 0.0, 30.0)
