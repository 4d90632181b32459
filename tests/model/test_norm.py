"""RMSNorm: its formula, its written-out gradient, and PyTorch's own, held to each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from pdref.model.norm import EPSILON, RMSNorm


def built(width: int, dtype: torch.dtype = torch.float64) -> RMSNorm:
    norm = RMSNorm(width).to(dtype)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(width))
    return norm


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def test_it_divides_by_the_root_mean_square_and_multiplies_by_a_gain() -> None:
    norm, x = built(5), noise(2, 3, 5)
    with torch.no_grad():
        out = norm(x)
    for y, row in zip(out.flatten(0, 1).tolist(), x.flatten(0, 1).tolist(), strict=True):
        rms = math.sqrt(sum(v * v for v in row) / 5 + EPSILON)
        assert y == pytest.approx([g * v / rms for g, v in zip(norm.weight.tolist(), row, strict=True)])


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 63, 100), (2, 1, 257), (7, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_pytorchs_norm_with_its_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    ours, theirs = built(shape[-1], dtype), nn.RMSNorm(shape[-1], eps=EPSILON, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    x, upstream = noise(*shape, dtype=dtype), noise(*shape, dtype=dtype).flip(0)
    results = []
    for norm in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        results.append([y.detach(), *torch.autograd.grad(y, [leaf, norm.weight], upstream)])
    torch.testing.assert_close(results[0], results[1])
    with torch.no_grad():
        torch.testing.assert_close(ours(x), results[1][0], msg="the fast path without gradients")


def test_its_gradients_are_those_of_finite_differences() -> None:
    norm = built(4)
    x = noise(3, 4).requires_grad_()
    assert gradcheck(lambda x, gain: torch.func.functional_call(norm, {"weight": gain}, x), (x, norm.weight))


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    x = noise(3, 4).requires_grad_()
    (first,) = torch.autograd.grad(built(4)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_neither_zeros_nor_large_inputs_overflow() -> None:
    norm = built(8, torch.float32)
    for x in (torch.zeros(2, 8), 1e18 * noise(2, 8, dtype=torch.float32)):
        leaf = x.requires_grad_()
        y = norm(leaf)
        (gradient,) = torch.autograd.grad(y.sum(), leaf)
        assert y.isfinite().all() and gradient.isfinite().all()


def test_inputs_are_left_as_they_were_and_need_not_be_contiguous() -> None:
    norm, x = built(6), noise(4, 6).T.contiguous().T
    before = x.clone()
    y = norm(x.requires_grad_())
    y.sum().backward()
    assert not x.is_contiguous() and torch.equal(x, before)
    torch.testing.assert_close(y, norm(before))
