"""Is an implementation right? An error budget instead of a magic tolerance.

Truth is the definition in float64. The definition's own error in the dtype at hand says what that dtype can do;
an implementation may err by twice that, plus twice a rounding of the largest true value:

    |found - truth| <= 2 (max |naive - truth| + eps max |truth|)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pdref.lab.kernels.problems import Problem
from pdref.ops.impl import Impl


@dataclass(frozen=True, slots=True)
class Error:
    """The largest error of one output or gradient, and what it was allowed."""

    name: str
    error: float
    naive_error: float
    budget: float

    @property
    def share(self) -> float:
        """Error in units of the budget; above 1, or not a number, is wrong."""
        if self.budget:
            return self.error / self.budget
        return 0.0 if self.holds else float("inf")

    @property
    def holds(self) -> bool:
        """Within the budget (NaN is not)."""
        return self.error <= self.budget


def errors(problem: Problem, impl: Impl, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Error]:
    """The errors of all outputs and gradients of `impl` on a problem, each with its budget.

    The problem is rounded to `dtype` first, so that truth, definition and implementation get the same numbers.
    """
    rounded = problem.to(device, dtype)
    truth = results(rounded.to(device, torch.float64), "naive")
    naive, found = results(rounded, "naive"), results(rounded, impl)
    return [_error(name, truth[name], naive[name], found[name], dtype) for name in truth]


def results(problem: Problem, impl: Impl) -> dict[str, Tensor]:
    """All outputs and, for a random upstream gradient of each smooth one, the gradients of all inputs."""
    inputs = {
        k: x.clone().requires_grad_() if x.is_floating_point() and problem.smooth else x
        for k, x in problem.inputs.items()
    }
    with uninitialised_memory_is_nan():
        return _results(problem, inputs, impl)


@contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    """`torch.empty` gives NaN (or the largest integer), so that an output that is never written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # only then does PyTorch fill what it allocates
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _results(problem: Problem, inputs: Mapping[str, Tensor], impl: Impl) -> dict[str, Tensor]:
    outputs = problem.call(inputs, impl)
    found = {name: out.detach() for name, out in outputs.items()}
    leaves = {k: x for k, x in inputs.items() if x.requires_grad}
    if leaves:
        ends = [outputs[name] for name in problem.smooth]
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(out.shape, generator=generator).half().to(out) for out in ends]  # exact in any dtype
        gradients = torch.autograd.grad(ends, list(leaves.values()), upstream, allow_unused=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            found[f"d {name}"] = torch.zeros_like(leaves[name]) if gradient is None else gradient
    return found


def _error(name: str, truth: Tensor, naive: Tensor, found: Tensor, dtype: torch.dtype) -> Error:
    if not truth.is_floating_point():
        wrong = float((found != truth).sum())
        return Error(name, wrong, float((naive != truth).sum()), 0.0)
    finite = truth.isfinite()
    if not torch.equal(truth[~finite], found.double()[~finite]):  # infinities have to be the same ones
        return Error(name, float("nan"), 0.0, 0.0)
    truth, naive, found = (x.double()[finite] for x in (truth, naive, found))
    if not truth.numel():
        return Error(name, 0.0, 0.0, 0.0)
    naive_error = float((naive - truth).abs().max())
    budget = 2 * (naive_error + torch.finfo(dtype).eps * float(truth.abs().max()))
    return Error(name, float((found - truth).abs().max()), naive_error, budget)


def assert_within_budget(problem: Problem, impl: Impl, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    """Raises AssertionError that names each output and gradient over its budget."""
    over = [e for e in errors(problem, impl, device, dtype) if not e.holds]
    assert not over, "; ".join(
        f"{problem.op} {dict(problem.size)} {impl} {dtype}: {e.name} errs by {e.error:.3g}, allowed {e.budget:.3g}"
        for e in over
    )


def check(problem: Problem, impl: Impl, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Mapping[str, float]:
    """Each output's and gradient's error in units of its budget."""
    return {e.name: e.share for e in errors(problem, impl, device, dtype)}
