"""The token loss: its definition, a closed form, gradients, and PyTorch's own, held to each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pdref.ops.token_nll import Impl, token_nll

BOTH = pytest.mark.parametrize("impl", ["naive", "torch"])


def problem(N: int, D: int = 5, V: int = 11, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(N)
    hidden = scale * torch.randn(N, D, generator=generator, dtype=torch.float64)
    unembedding = torch.randn(V, D, generator=generator, dtype=torch.float64)
    return hidden, unembedding, torch.randint(V, (N,), generator=generator)


@BOTH
def test_it_is_the_negative_log_of_a_softmax_one_token_at_a_time(impl: Impl) -> None:
    hidden, unembedding, targets = problem(7)
    for nats, h, y in zip(token_nll(hidden, unembedding, targets, impl).tolist(), hidden, targets, strict=True):
        scores = [math.exp(sum(a * b for a, b in zip(h.tolist(), w, strict=True))) for w in unembedding.tolist()]
        assert nats == pytest.approx(-math.log(scores[y] / sum(scores)), rel=1e-12)


@BOTH
@pytest.mark.parametrize("vocabulary", [1, 2, 1000])
def test_a_hidden_state_that_knows_nothing_pays_log_v(impl: Impl, vocabulary: int) -> None:
    nats = token_nll(torch.zeros(3, 4), torch.randn(vocabulary, 4), torch.zeros(3, dtype=torch.int64), impl)
    torch.testing.assert_close(nats, torch.full((3,), math.log(vocabulary)))


@pytest.mark.parametrize("N", [0, 1, 63, 100, 257])
@pytest.mark.parametrize("V", [1, 7, 300])
def test_naive_and_torch_agree_on_ragged_shapes(N: int, V: int) -> None:
    hidden, unembedding, targets = problem(N, V=V)
    torch.testing.assert_close(
        token_nll(hidden, unembedding, targets, "naive"), token_nll(hidden, unembedding, targets, "torch")
    )


@BOTH
def test_large_logits_neither_overflow_nor_vanish(impl: Impl) -> None:
    hidden, unembedding, targets = (x.float() if x.is_floating_point() else x for x in problem(20, scale=1e4))
    nats = token_nll(hidden, unembedding, targets, impl)
    exact = token_nll(hidden.double(), unembedding.double(), targets, "naive")
    assert nats.isfinite().all() and exact.max() > 1e4
    torch.testing.assert_close(nats.double(), exact, rtol=1e-5, atol=1e-2)  # scores of 1e4 have steps of 1e-3


@BOTH
def test_inputs_need_not_be_contiguous(impl: Impl) -> None:
    hidden, unembedding, targets = problem(12)
    strided = hidden.T.contiguous().T, unembedding.repeat(2, 1)[::2], targets.repeat_interleave(2)[::2]
    assert not any(x.is_contiguous() for x in strided)
    torch.testing.assert_close(
        token_nll(*strided, impl), token_nll(*(x.contiguous() for x in strided), "naive"), rtol=1e-12, atol=0
    )


@BOTH
def test_its_gradients_are_those_of_finite_differences(impl: Impl) -> None:
    hidden, unembedding, targets = problem(4, D=3, V=5)
    inputs = hidden.requires_grad_(), unembedding.requires_grad_()

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return token_nll(h, w, targets, impl)

    assert gradcheck(loss, inputs) and gradgradcheck(loss, inputs)


@BOTH
def test_its_gradient_is_probabilities_less_the_target(impl: Impl) -> None:
    hidden, unembedding, targets = problem(6)
    hidden.requires_grad_()
    upstream = torch.randn(6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(token_nll(hidden, unembedding, targets, impl), hidden, upstream)
    p = (hidden @ unembedding.T).softmax(-1)
    expected = upstream[:, None] * (p @ unembedding - unembedding[targets])
    torch.testing.assert_close(gradient, expected)
