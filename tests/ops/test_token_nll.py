"""The token loss: its definition, a closed form, gradients, and PyTorch's own, held to each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from laws.planting import planted_module
from laws.rows import rows_computed
from pdref.lab.kernels.check import assert_within_budget
from pdref.lab.kernels.problems import token_nll_problem
from pdref.ops.impl import Impl
from pdref.ops.token_nll import IGNORE, chunked, token_nll, token_nll_backward

BOTH = pytest.mark.parametrize("impl", ["naive", "torch"])
IN_CHUNKS = pytest.mark.usefixtures("size_of_chunks")


@pytest.fixture(params=["whole", "chunked"])
def size_of_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every law holds for problems that keep their scores, and for those that are cut into chunks of few rows."""
    if request.param == "chunked":
        monkeypatch.setattr(chunked, "KEPT", 30)


def problem(N: int, D: int = 5, V: int = 11, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(N)
    hidden = scale * torch.randn(N, D, generator=generator, dtype=torch.float64)
    unembedding = torch.randn(V, D, generator=generator, dtype=torch.float64)
    return hidden, unembedding, torch.randint(V, (N,), generator=generator)


@IN_CHUNKS
@BOTH
def test_it_is_the_negative_log_of_a_softmax_one_token_at_a_time(impl: Impl) -> None:
    hidden, unembedding, targets = problem(7)
    for nats, h, y in zip(token_nll(hidden, unembedding, targets, impl).tolist(), hidden, targets, strict=True):
        scores = [math.exp(sum(a * b for a, b in zip(h.tolist(), w, strict=True))) for w in unembedding.tolist()]
        assert nats == pytest.approx(-math.log(scores[y] / sum(scores)), rel=1e-12)


@IN_CHUNKS
@BOTH
@pytest.mark.parametrize("vocabulary", [1, 2, 1000])
def test_a_hidden_state_that_knows_nothing_pays_log_v(impl: Impl, vocabulary: int) -> None:
    nats = token_nll(torch.zeros(3, 4), torch.randn(vocabulary, 4), torch.zeros(3, dtype=torch.int64), impl)
    torch.testing.assert_close(nats, torch.full((3,), math.log(vocabulary)))


@IN_CHUNKS
@pytest.mark.parametrize("N", [0, 1, 63, 100, 257])
@pytest.mark.parametrize("V", [1, 7, 300])
def test_naive_and_torch_agree_on_ragged_shapes(N: int, V: int) -> None:
    hidden, unembedding, targets = problem(N, V=V)
    torch.testing.assert_close(
        token_nll(hidden, unembedding, targets, "naive"), token_nll(hidden, unembedding, targets, "torch")
    )


@IN_CHUNKS
@BOTH
def test_large_logits_neither_overflow_nor_vanish(impl: Impl) -> None:
    hidden, unembedding, targets = (x.float() if x.is_floating_point() else x for x in problem(20, scale=1e4))
    nats = token_nll(hidden, unembedding, targets, impl)
    exact = token_nll(hidden.double(), unembedding.double(), targets, "naive")
    assert nats.isfinite().all() and exact.max() > 1e4
    torch.testing.assert_close(nats.double(), exact, rtol=1e-5, atol=1e-2)  # scores of 1e4 have steps of 1e-3


@IN_CHUNKS
@BOTH
def test_inputs_need_not_be_contiguous(impl: Impl) -> None:
    hidden, unembedding, targets = problem(12)
    strided = hidden.T.contiguous().T, unembedding.repeat(2, 1)[::2], targets.repeat_interleave(2)[::2]
    assert not any(x.is_contiguous() for x in strided)
    torch.testing.assert_close(
        token_nll(*strided, impl), token_nll(*(x.contiguous() for x in strided), "naive"), rtol=1e-12, atol=0
    )


@IN_CHUNKS
@BOTH
def test_its_gradients_are_those_of_finite_differences(impl: Impl) -> None:
    hidden, unembedding, targets = problem(4, D=3, V=5)
    inputs = hidden.requires_grad_(), unembedding.requires_grad_()

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return token_nll(h, w, targets, impl)

    assert gradcheck(loss, inputs)
    if impl == "naive":
        assert gradgradcheck(loss, inputs)


@IN_CHUNKS
@BOTH
def test_its_gradient_is_probabilities_less_the_target(impl: Impl) -> None:
    hidden, unembedding, targets = problem(6)
    hidden.requires_grad_()
    upstream = torch.randn(6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(token_nll(hidden, unembedding, targets, impl), hidden, upstream)
    p = (hidden @ unembedding.T).softmax(-1)
    expected = upstream[:, None] * (p @ unembedding - unembedding[targets])
    torch.testing.assert_close(gradient, expected)


@IN_CHUNKS
@BOTH
def test_the_log_partition_is_given_and_has_a_gradient_of_its_own(impl: Impl) -> None:
    hidden, unembedding, targets = problem(5, D=3, V=4)
    inputs = hidden.requires_grad_(), unembedding.requires_grad_()
    nats, log_z = token_nll(*inputs, targets, impl, log_partition=True)
    torch.testing.assert_close(log_z, (hidden @ unembedding.T).exp().sum(-1).log())
    assert gradcheck(lambda h, w: token_nll(h, w, targets, impl, log_partition=True), inputs)


@IN_CHUNKS
@BOTH
def test_an_ignored_target_costs_nothing_and_teaches_nothing(impl: Impl) -> None:
    hidden, unembedding, targets = problem(6)
    targets[[1, 4]] = IGNORE
    hidden.requires_grad_()
    nats, log_z = token_nll(hidden, unembedding, targets, impl, log_partition=True)
    assert nats[[1, 4]].tolist() == [0, 0] and (nats[[0, 2, 3, 5]] > 0).all() and log_z.isfinite().all()
    (gradient,) = torch.autograd.grad(nats.sum(), hidden)
    assert not gradient[[1, 4]].any() and gradient[[0, 2, 3, 5]].any(1).all()


@pytest.mark.parametrize("impl", ["naive", "torch"])
@pytest.mark.parametrize("shape", [(9,), (3, 4), (2, 3, 4), (2, 0), (0, 3)])
def test_any_shape_is_row_by_row(impl: Impl, shape: tuple[int, ...]) -> None:
    hidden, unembedding, targets = problem(math.prod(shape))
    targets[::3] = IGNORE
    nats = token_nll(hidden.view(*shape, 5), unembedding, targets.view(shape), impl)
    assert nats.shape == shape
    torch.testing.assert_close(nats.flatten(), token_nll(hidden, unembedding, targets, "naive"))


@IN_CHUNKS
def test_rows_without_a_target_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, unembedding, targets = problem(40)
    targets[torch.arange(40) % 3 > 0] = IGNORE
    rows = rows_computed(monkeypatch)
    token_nll(hidden, unembedding, targets, "torch")
    assert sum(rows) == 14
    token_nll(hidden, unembedding, targets, "torch", log_partition=True)
    assert sum(rows) == 14 + 40


@BOTH
@pytest.mark.parametrize("kept", [30, 10**6])
def test_forward_and_backward_at_once_are_the_two_in_turn(
    impl: Impl, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "KEPT", kept)
    hidden, unembedding, targets = problem(12)
    targets[[2, 5]] = IGNORE
    weights = torch.linspace(-1, 2, 12, dtype=torch.float64)
    inputs = hidden.clone().requires_grad_(), unembedding.clone().requires_grad_()
    nats = token_nll(*inputs, targets, "naive")
    expected = torch.autograd.grad(nats, inputs, weights)
    d_unembedding = torch.ones_like(unembedding)
    found, d_hidden = token_nll_backward(hidden, unembedding, targets, weights, d_unembedding, impl)
    torch.testing.assert_close(found, nats)
    torch.testing.assert_close(d_hidden, expected[0])
    torch.testing.assert_close(d_unembedding, 1 + expected[1])  # it is added to


def test_rows_without_a_gradient_are_not_computed_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, unembedding, targets = problem(40)
    hidden.requires_grad_()
    weights = torch.zeros(40, dtype=torch.float64).index_fill(0, torch.tensor([3, 17, 30]), 2.0)
    seen = []
    original = chunked._gradient

    def spy(h: Tensor, *rest: Tensor) -> Tensor:
        seen.append(len(h))
        return original(h, *rest)

    monkeypatch.setattr(chunked, "_gradient", spy)
    monkeypatch.setattr(chunked, "KEPT", 22)  # two rows of eleven words
    (gradient,) = torch.autograd.grad((weights * token_nll(hidden, unembedding, targets, "torch")).sum(), hidden)
    assert seen == [2, 1]
    assert gradient.any(1).nonzero()[:, 0].tolist() == [3, 17, 30]


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_a_small_upstream_gradient_does_not_vanish_in_half_precision(
    impl: Impl, monkeypatch: pytest.MonkeyPatch
) -> None:
    if impl == "triton":
        pytest.importorskip("triton")
    monkeypatch.setattr(chunked, "KEPT", 100)
    hidden, unembedding, targets = problem(50, V=20)
    exact = hidden.half().double().requires_grad_(), unembedding.half().double().requires_grad_()
    half = [x.detach().half().requires_grad_() for x in exact]
    upstream = torch.full((50,), 1e-4)
    truth = torch.autograd.grad(token_nll(*exact, targets, "naive"), exact, upstream.double())
    found = torch.autograd.grad(token_nll(*half, targets, impl), half, upstream)
    for expected, gradient in zip(truth, found, strict=True):
        assert (gradient.double() - expected).abs().max() < 2e-3 * expected.abs().max()


# The kernel, interpreted on a CPU and compiled where there is a GPU.

SIZES = [(1, 7, 1), (1, 16, 257), (63, 64, 100), (100, 40, 257), (257, 100, 300)]
LANES = [("cpu", torch.float32), ("cpu", torch.float16)]
if torch.cuda.is_available():
    LANES = [("cuda", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]


def kernel_holds(
    N: int, D: int, V: int, scale: float = 1.0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """The kernel is within its error budget, gradients included."""
    pytest.importorskip("triton")
    assert_within_budget(token_nll_problem(N, D, V, scale=scale), "triton", device, dtype)


@pytest.mark.parametrize(("device", "dtype"), LANES)
@pytest.mark.parametrize(("N", "D", "V"), SIZES)
def test_the_kernel_is_within_its_error_budget(N: int, D: int, V: int, device: str, dtype: torch.dtype) -> None:
    kernel_holds(N, D, V, 1.0, device, dtype)


@pytest.mark.parametrize(("device", "dtype"), LANES)
def test_the_kernel_stands_large_logits(device: str, dtype: torch.dtype) -> None:
    kernel_holds(70, 64, 300, 300.0, device, dtype)


def strides_are_followed() -> None:
    """Inputs may be cut from larger ones, in any layout."""
    pytest.importorskip("triton")
    hidden, unembedding, targets = (x.float() if x.is_floating_point() else x for x in problem(12))
    expected = token_nll(hidden, unembedding, targets, "naive")
    wide = torch.cat([hidden, hidden], 1)[:, :5]  # rows that are further apart than they are long
    columns = hidden.T.contiguous().T
    for h, y in ((wide, targets), (columns, targets.repeat_interleave(2)[::2])):
        torch.testing.assert_close(token_nll(h, unembedding.repeat_interleave(3, 0)[::3], y, "triton"), expected)


def test_the_kernel_follows_strides() -> None:
    strides_are_followed()


def test_the_kernel_takes_no_rows() -> None:
    pytest.importorskip("triton")
    hidden, unembedding, targets = (x.float() if x.is_floating_point() else x for x in problem(0))
    assert token_nll(hidden, unembedding, targets, "triton").shape == (0,)


def test_the_kernel_backward_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from pdref.ops.token_nll import triton as kernels

    monkeypatch.setattr(kernels, "GRADIENT_SCORES", 1000)
    kernel_holds(50, 16, 100)


KERNEL, SHARED = "pdref.ops.token_nll.triton", "pdref.ops.vocabulary"
BUGS = {
    "words beyond the vocabulary count": (SHARED, 'tl.where(v[None, :] < V, scores, -float("inf"))', "scores"),
    "the ragged end of the features is dropped": (SHARED, "range(0, D, BD)", "range(0, D - BD + 1, BD)"),
    "a stride of another matrix": (SHARED, "n[:, None].to(tl.int64) * stride_n", "n[:, None] * stride_v"),
    "softmax without its maximum": (SHARED, "    m = tl.max(scores, 1)\n", "    m = tl.max(scores, 1) * 0\n"),
    "missing rescale": (KERNEL, "s = s * rescale(m, larger)", "s = s"),
    "the target is the word before": (
        KERNEL,
        "v[None, :] == y[:, None], scores",
        "v[None, :] + 1 == y[:, None], scores",
    ),
    "the maximum is left out of log Z": (KERNEL, "tl.store(log_z + n, m + tl.log(s)", "tl.store(log_z + n, tl.log(s)"),
    "the gradient forgets the target": (
        KERNEL,
        "tl.where(v[None, :] == y[:, None], of_target[:, None], 0.0)",
        "0.0",
    ),
    "the gradient forgets the weight": (KERNEL, "of_p[:, None] * p", "p"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_the_kernel_turns_a_law_red(bug: str) -> None:
    pytest.importorskip("triton")
    module, right, wrong = BUGS[bug]
    with planted_module(module, right, wrong, (KERNEL,) if module == SHARED else ()), pytest.raises(AssertionError):
        kernel_holds(70, 40, 257)
        kernel_holds(70, 40, 257, 300.0)
        strides_are_followed()
