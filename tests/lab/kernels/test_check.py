"""The error budget lets a right implementation pass, however it rounds, and none that is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from pdref.lab.kernels.check import Error, assert_within_budget, check, errors
from pdref.lab.kernels.problems import Problem

HALF = [torch.float32, torch.float16]


class WrongGradient(torch.autograd.Function):
    """The identity, whose gradient is 1% too large."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 1.01 * gradient


def softmax_by_hand(x: Tensor) -> Tensor:
    """The same numbers as `log_softmax`, rounded elsewhere."""
    shifted = x - x.amax(-1, keepdim=True).detach()
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


def moved_infinity(y: Tensor) -> Tensor:
    """The infinities of the first column, in the second."""
    return torch.cat([y[:, 1:2], y[:, :1], y[:, 2:]], 1)


WAYS = {
    "naive": lambda x: x.log_softmax(-1),
    "by hand": softmax_by_hand,
    "off by 1%": lambda x: 1.01 * x.log_softmax(-1),
    "NaN": lambda x: x.log_softmax(-1) * torch.where(torch.arange(x.shape[1]) == 5, math.nan, 1.0).to(x),
    "wrong gradient": lambda x: WrongGradient.apply(x).log_softmax(-1),
    "NaN gradient": lambda x: x.log_softmax(-1) + 0 * (x - x.detach()).sqrt(),
    "no gradient": lambda x: x.detach().log_softmax(-1) + 0 * x,
    "moved infinity": lambda x: moved_infinity(x.log_softmax(-1)),
    "infinity lost": lambda x: x.log_softmax(-1).clamp_min(-1e4),
    "negative": lambda x: -x.log_softmax(-1),
    "other dtype": lambda x: x.half().log_softmax(-1).to(x.dtype),
}


def problem(infinite: bool = False) -> Problem:
    """Log-probabilities of 13 rows of 101 scores, and the most probable column."""
    x = 3 * torch.randn(13, 101, generator=torch.Generator().manual_seed(0))
    if infinite:
        x[:, 0] = -math.inf

    def call(inputs: Mapping[str, Tensor], impl: str) -> Mapping[str, Tensor]:
        log_p = WAYS[impl](inputs["x"])
        return {"log_p": log_p, "best": log_p.nan_to_num(-1e4).argmax(-1)}

    return Problem("log_softmax", {"N": 13}, {"x": x}, call, ("log_p",), 0)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("impl", ["naive", "by hand"])
def test_the_budget_passes_what_is_right(impl: str, dtype: torch.dtype) -> None:
    """Outputs and gradients are all looked at."""
    assert_within_budget(problem(), impl, dtype=dtype)
    assert set(check(problem(), impl, dtype=dtype)) == {"log_p", "best", "d x"}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("impl", "over"),
    [
        ("off by 1%", {"log_p", "d x"}),
        ("NaN", {"log_p", "d x"}),
        ("wrong gradient", {"d x"}),
        ("NaN gradient", {"d x"}),
        ("no gradient", {"d x"}),
    ],
)
def test_the_budget_fails_what_is_wrong(impl: str, over: set[str], dtype: torch.dtype) -> None:
    """And names exactly what errs; a share that is no number does not pass for a small one."""
    found = errors(problem(), impl, dtype=dtype)
    assert {e.name for e in found if not e.holds} == over
    assert {name for name, share in check(problem(), impl, dtype=dtype).items() if not share <= 1} == over
    with pytest.raises(AssertionError, match=f"log_softmax .* {impl} .*{min(over)} errs by"):
        assert_within_budget(problem(), impl, dtype=dtype)


def test_a_float32_result_of_half_precision_work_is_wrong() -> None:
    """The budget is that of the dtype asked for."""
    assert_within_budget(problem(), "other dtype", dtype=torch.float16)
    assert not all(e.holds for e in errors(problem(), "other dtype"))


@pytest.mark.parametrize("impl", ["moved infinity", "infinity lost"])
def test_infinities_have_their_places(impl: str) -> None:
    """Where truth is infinite the implementation is, and nowhere else."""
    assert errors(problem(infinite=True), "naive")[0].holds
    assert not errors(problem(infinite=True), impl)[0].holds
    assert not check(problem(infinite=True), impl)["log_p"] <= 1


def test_whole_numbers_are_right_or_wrong() -> None:
    """An index has no rounding; no error and no budget is a share of nothing."""
    assert Error("best", 0.0, 0.0, 0.0).share == 0
    assert Error("best", 1.0, 0.0, 0.0).share == math.inf == Error("best", math.nan, 0.0, 0.0).share
    assert {e.name: e.error for e in errors(problem(), "negative")}["best"] == 13
