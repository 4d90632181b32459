"""Attention while decoding: its definition against a loop, PyTorch's and the kernel against the definition."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from laws.planting import planted_module
from pdref.lab.kernels.check import assert_within_budget
from pdref.lab.kernels.problems import span_attention_problem
from pdref.ops.impl import Impl
from pdref.ops.span_attention import Reach, span_attention

LANES = [("cpu", torch.float32), ("cpu", torch.float16)]
if torch.cuda.is_available():
    LANES = [("cuda", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
ON_EACH = pytest.mark.parametrize(("device", "dtype"), LANES)
DEVICE = LANES[0][0]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """`torch.empty` and its kin give NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


Tensors = tuple[Tensor, Tensor, Tensor, Reach]


def tensors(H: int = 4, G: int = 2, L: int = 5, D: int = 6, C: int = 70, dtype: torch.dtype = torch.float64) -> Tensors:
    """Spans of two of three requests, the middle one of which has nothing before it and nothing of its own."""
    generator = torch.Generator().manual_seed(L)
    q = torch.randn(3, L, H, D, generator=generator, dtype=dtype).transpose(1, 2)
    own = torch.randn(3, L, 2 * G, D, generator=generator, dtype=dtype).transpose(1, 2)
    past = torch.randn(3, 2 * G, C, D, generator=generator, dtype=dtype)
    owner, slots, length = torch.tensor([[2, 0, 2], [C, 0, 3], [1, 0, L]])
    return q.to(DEVICE), own.to(DEVICE), past.to(DEVICE), Reach(*(x.to(DEVICE) for x in (owner, slots, length)), L)


def by_loops(q: Tensor, own: Tensor, past: Tensor, reach: Reach) -> Tensor:
    """The contract, one number at a time."""
    (K, H, L, D), G = q.shape, own.shape[1] // 2
    out = torch.zeros_like(q)
    for span in range(K):
        b, p, n = (int(x[span]) for x in (reach.owner, reach.past, reach.length))
        for h in range(H):
            g = h // (H // G)
            pairs = [(past[b, g, j], past[b, G + g, j]) for j in range(p)]
            pairs += [(own[span, g, j], own[span, G + g, j]) for j in range(n)]
            for i in range(L):
                weights = [math.exp(float(q[span, h, i] @ k) / math.sqrt(D)) for k, _ in pairs]
                for w, (_, v) in zip(weights, pairs, strict=True):
                    out[span, h, i] += w / sum(weights) * v
    return out


@pytest.mark.parametrize("impl", ["naive", "torch"])
@pytest.mark.parametrize(("H", "G"), [(2, 2), (4, 2), (3, 1)])
def test_it_is_the_formula(impl: Impl, H: int, G: int) -> None:
    posed = tensors(H, G)
    torch.testing.assert_close(span_attention(*posed, impl), by_loops(*posed))


def test_gradients_flow_through_the_definition_and_pytorchs() -> None:
    *inputs, reach = tensors(2, 1, L=2, D=2, C=4)
    for impl in ("naive", "torch"):
        leaves = [x.detach().requires_grad_() for x in inputs]
        assert torch.autograd.gradcheck(lambda *x, impl=impl: span_attention(*x, reach, impl), leaves)


def test_a_selection_is_the_same_spans() -> None:
    q, own, past, reach = tensors()
    rows = torch.tensor([2, 0], device=DEVICE)
    expected = span_attention(q, own, past, reach)[rows]
    torch.testing.assert_close(span_attention(q[rows], own[rows], past, reach.select(rows)), expected)


def test_spans_that_see_everything_take_no_mask() -> None:
    ones = torch.ones(2, dtype=torch.int64)
    assert Reach(ones, 3 * ones, 4 * ones, 4).mask is None
    mask = Reach(ones, torch.tensor([3, 2]), torch.tensor([4, 1]), 4).mask
    assert mask is not None and mask[:, 0, 0].long().tolist() == [[1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 0, 0, 0]]


@ON_EACH
@pytest.mark.parametrize(
    ("L", "C", "heads", "key_heads", "width"),
    [(1, 100, 4, 1, 32), (63, 70, 2, 2, 16), (24, 1, 4, 2, 40), (5, 130, 1, 1, 128)],
)
def test_the_kernel_is_within_its_error_budget(
    L: int, C: int, heads: int, key_heads: int, width: int, device: str, dtype: torch.dtype
) -> None:
    pytest.importorskip("triton")
    assert_within_budget(span_attention_problem(2, 2, L, C, heads, key_heads, width), "triton", device, dtype)


@ON_EACH
def test_the_kernel_stands_large_scores(device: str, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    assert_within_budget(span_attention_problem(2, 2, 9, 40, 2, 1, 16, scale=1e3), "triton", device, dtype)


def kernel_agrees() -> None:
    """Ragged spans and pasts, a span that sees nothing, heads cut from a projection."""
    posed = tensors(dtype=torch.float32)
    torch.testing.assert_close(span_attention(*posed, "triton"), span_attention(*posed, "naive"))


def test_the_kernel_agrees_on_ragged_spans() -> None:
    pytest.importorskip("triton")
    kernel_agrees()


def test_what_the_kernel_cannot_do_is_refused() -> None:
    pytest.importorskip("triton")
    q, own, past, reach = tensors(dtype=torch.float32)
    with pytest.raises(ValueError, match="reads a cache without gradients"):
        span_attention(q.requires_grad_(), own, past, reach, "triton")
    with pytest.raises(ValueError, match="heads up to 128 wide, not 136"):
        span_attention(*tensors(D=136, dtype=torch.float32), "triton")


def test_auto_gives_to_pytorch_what_the_kernel_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdref.ops.span_attention.choose", lambda *_: "triton")  # as on a GPU
    q, own, past, reach = tensors()
    assert span_attention(q.requires_grad_(), own, past, reach).requires_grad
    wide = tensors(D=136)
    torch.testing.assert_close(span_attention(*wide), by_loops(*wide))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda q, own, past, reach: (q[0], own, past, reach), "are not [K, H, L, Dh]"),
        (lambda q, own, past, reach: (q, own[:, :, 1:], past, reach), "are not [K, H, L, Dh]"),
        (lambda q, own, past, reach: (q, own, past[..., 1:], reach), "are not [K, H, L, Dh]"),
        (lambda q, own, past, reach: (q[:, :3], own, past, reach), "3 query heads cannot share 2 key heads"),
        (lambda q, own, past, reach: (q, own.float(), past, reach), "q, own, past differ: torch.float64"),
        (lambda q, own, past, reach: (q[1:], own[1:], past, reach), "the reach is of 3 spans of 5 tokens, q of 2 of 5"),
    ],
)
def test_bad_input_is_named(call: Callable[..., Tensors], says: str) -> None:
    with pytest.raises(ValueError) as error:
        span_attention(*call(*tensors()))
    assert says in str(error.value)


KERNEL, SOFTMAX = "pdref.ops.span_attention.triton", "pdref.ops.online_softmax"
BUGS = {
    "slots beyond the past are seen": (KERNEL, "j[None, :] < count", "j[None, :] < count + 1"),
    "a span reads its own row of the cache": (KERNEL, "tl.load(owner + span)", "span"),
    "values are keys": (KERNEL, "rows_at(entries + kv, j", "rows_at(entries, j"),
    "all spans have the first one's past": (KERNEL, "tl.load(slots + span)", "tl.load(slots)"),
    "own keys are left out": (KERNEL, "tl.load(length + span)", "0"),
    "neighbouring heads read other keys": (KERNEL, "g * share + row // L", "g + row // L * G"),
    "the past is not rescaled": (SOFTMAX, "a * rescale[:, None]", "a"),
    "a stride of a span is that of the past": (KERNEL, "G * ng, ns,", "G * ng, ps,"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_the_kernel_turns_the_check_red(bug: str) -> None:
    pytest.importorskip("triton")
    module, right, wrong = BUGS[bug]
    dependents = () if module == KERNEL else (KERNEL,)
    with planted_module(module, right, wrong, dependents), pytest.raises(AssertionError):
        kernel_agrees()
