"""The attention kernels, interpreted on a CPU and compiled where there is a GPU; memory they do not write is NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from laws.planting import planted_module
from pdref.lab.kernels.check import assert_within_budget
from pdref.lab.kernels.documents import two_streams
from pdref.lab.kernels.problems import Problem, planned_attention_problem
from pdref.ops.planned_attention import planned_attention
from pdref.text.layout import Layout
from pdref.text.mask import Siblings, Sight

pytest.importorskip("triton")

LANES = [("cpu", torch.float32), ("cpu", torch.float16)]
if torch.cuda.is_available():
    LANES = [("cuda", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
ON_EACH = pytest.mark.parametrize(("device", "dtype"), LANES)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """`torch.empty` and its kin give NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def problem(
    query: Layout, key: Layout, heads: int = 2, key_heads: int = 1, width: int = 16, scale: float = 1.0,
    siblings: Siblings = "sparse",
) -> Problem:  # fmt: skip
    """Random heads under the rule for two layouts, or parts of them."""
    (B, T), S = query.shape, key.shape[1]
    posed = planned_attention_problem(B, 1, 1, heads, key_heads, width)
    generator, sight = torch.Generator().manual_seed(T), Sight.of(query, key, siblings)
    inputs = {
        "q": scale * torch.randn(B, T, heads, width, generator=generator).transpose(1, 2),
        "k": torch.randn(B, S, key_heads, width, generator=generator).transpose(1, 2),
        "v": torch.randn(B, S, key_heads, width, generator=generator).transpose(1, 2),
        "query": sight.query,
        "key": sight.key,
    }
    return replace(posed, inputs=inputs)


def part(layout: Layout, start: int | None = None, end: int | None = None) -> Layout:
    return layout.map(lambda field: field[:, start:end])


@ON_EACH
@pytest.mark.parametrize(
    ("B", "T", "spans", "stages", "heads", "key_heads", "width"),
    [(2, 63, 3, 1, 2, 2, 32), (1, 100, 4, 2, 4, 2, 24), (1, 257, 5, 2, 1, 1, 16)],
)
def test_it_is_within_the_error_budget(
    B: int, T: int, spans: int, stages: int, heads: int, key_heads: int, width: int, device: str, dtype: torch.dtype
) -> None:
    posed = planned_attention_problem(B, T, spans, heads, key_heads, width, stages)
    assert_within_budget(posed, "triton", device, dtype)


@ON_EACH
@pytest.mark.parametrize("width", [40, 64, 128])
def test_every_width_of_a_head_has_its_tiles(width: int, device: str, dtype: torch.dtype) -> None:
    assert_within_budget(planned_attention_problem(1, 40, 3, 2, 1, width), "triton", device, dtype)


@ON_EACH
def test_spans_may_be_empty_or_of_one_token(drawn: Callable[[str], Layout], device: str, dtype: torch.dtype) -> None:
    clean = Layout.collate([drawn("ccz<><x><xxx>|zz<xx><>$"), drawn("c<>"), drawn("cz<x>|z<>|z<xxxx>$")])
    both = Layout.concatenate([clean, clean.span_copy()[0]])
    for siblings in ("sparse", "dense"):
        assert_within_budget(problem(both, both, siblings=siblings), "triton", device, dtype)
    assert_within_budget(problem(clean.in_place(), clean.in_place()), "triton", device, dtype)


@ON_EACH
@pytest.mark.parametrize(("T", "S"), [(1, 100), (33, 70)])
def test_queries_and_keys_may_be_of_different_lengths(T: int, S: int, device: str, dtype: torch.dtype) -> None:
    both = two_streams(200, 3)
    assert_within_budget(problem(part(both, 200 - T), part(both, 200 - S)), "triton", device, dtype)


def tensors(T: int, S: int, D: int = 16, H: int = 2, G: int = 1, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    device, generator = LANES[0][0], torch.Generator().manual_seed(T + S)
    shapes = (1, H, T, D), (1, G, S, D), (1, G, S, D)
    q, k, v = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    return scale * q, k, v


def agree(inputs: tuple[Tensor, ...], mask: Sight | None = None, causal: bool = False, tolerance: float = 1e-4) -> None:
    """Outputs and gradients are those of the definition, up to a relative tolerance."""
    found = {}
    for impl in ("naive", "triton"):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = planned_attention(*leaves, mask, causal, impl)
        upstream = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
        found[impl] = out.detach(), *torch.autograd.grad(out, leaves, upstream)
    for naive, ours in zip(found["naive"], found["triton"], strict=True):
        torch.testing.assert_close(ours, naive, rtol=tolerance, atol=tolerance / 10)


def rows_that_see_nothing_are_zeros() -> None:
    """A query with no key gets zeros and gives no gradient, in tiles of its kind and among others."""
    q, k, v = tensors(70, 40)
    positions = torch.cat([torch.full((35,), 3), torch.arange(35)])[None].to(q.device)  # half of them before any key
    mask = Sight.past(positions, torch.arange(10, 50, device=q.device)[None])
    agree((q, k, v), mask)
    out = planned_attention(q, k, v, mask, impl="triton")
    assert (out[:, :, :35] == 0).all() and out[:, :, 50:].all()


def test_a_query_that_sees_nothing_gets_zeros() -> None:
    rows_that_see_nothing_are_zeros()


@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 65), (64, 64), (65, 33)])
@pytest.mark.parametrize("causal", [True, False])
def test_without_a_sight_it_is_causal_or_sees_everything(T: int, S: int, causal: bool) -> None:
    agree(tensors(T, S), causal=causal)


def large_scores_are_stable() -> None:
    """Scores of tens of thousands pick one key, without overflow.

    A backward that computes a score s again, in another order, finds a weight that differs by as much as eps s.
    """
    q, k, v = tensors(40, 40)
    mask = Sight.past(*2 * [torch.arange(40, device=q.device)[None]])
    for scale, tolerance in ((30, 1e-3), (1e4, 5e-2)):
        agree((scale * q, k, v), mask, tolerance=tolerance)


def test_it_stands_large_scores() -> None:
    large_scores_are_stable()


def strides_are_followed() -> None:
    """Heads may be cut from one projection, keys from a cache, features from anywhere; batches may share a rule."""
    both = two_streams(38, 3).map(lambda field: field.to(LANES[0][0]))
    sight = Sight.of(both, both)
    projection = torch.randn(2, 38, 4, 16, generator=torch.Generator().manual_seed(0)).to(LANES[0][0])
    q, k, v = projection.transpose(1, 2).split([2, 1, 1], 1)
    agree((q, k, v), sight)
    agree((q, k, v.contiguous()), sight)
    agree((q.transpose(2, 3).contiguous().transpose(2, 3), k, v), sight)


def test_it_follows_strides() -> None:
    strides_are_followed()


def test_nothing_to_do_is_done() -> None:
    for T, S in ((0, 3), (3, 0)):
        q, k, v = tensors(T, S)
        sight = Sight.past(torch.arange(T)[None], torch.arange(S)[None])
        assert (planned_attention(q, k, v, sight, impl="triton") == 0).all()


def test_what_the_kernels_cannot_do_is_refused() -> None:
    q, k, v = tensors(4, 4)
    with pytest.raises(ValueError, match="pass a Sight, not a mask of booleans"):
        planned_attention(q, k, v, torch.ones(4, 4, dtype=torch.bool, device=q.device), impl="triton")
    with pytest.raises(ValueError, match="heads up to 128 wide, not 136"):
        planned_attention(*tensors(4, 4, D=136), causal=True, impl="triton")


# What breaks when the kernels are wrong.


def ragged() -> None:
    """Tiles end beyond the last token and spans within tiles; texts and heads differ."""
    both = Layout.collate([two_streams(24, 2), two_streams(70, 3, stages=2)])
    assert_within_budget(problem(both, both, heads=2, key_heads=1, width=24), "triton", *LANES[0])


def everything_is_seen() -> None:
    """A tile that is full but for the keys it lacks."""
    q, k, v = tensors(3, 35)
    at = torch.arange(35, device=q.device)[None]
    agree((q, k, v), Sight.past(at[:, :3], torch.zeros_like(at)))


SOFTMAX = "pdref.ops.online_softmax"
TILES, KERNELS = "pdref.ops.planned_attention.tiles", "pdref.ops.planned_attention.triton"
NO_MAXIMUM = ('tl.where(larger == -float("inf"), 0.0, larger)', "0.0 * larger")
A_STRIDE = ("g * kg, j, ks), j < S, D, BD)\n    v", "g * kg, j, qt), j < S, D, BD)\n    v")
BUGS: dict[str, tuple[str, str, str, Callable[[], None]]] = {
    "keys beyond the last are seen": (TILES, "beyond, value=NEVER", "beyond, value=0", everything_is_seen),
    "features beyond the last are read": (SOFTMAX, "& (d[None, :] < width), other", ", other", ragged),
    "earlier tiles are not rescaled": (SOFTMAX, "s = s * rescale + tl", "s = s + tl", ragged),
    "earlier values are not rescaled": (SOFTMAX, "a * rescale[:, None]", "a", ragged),
    "no maximum is subtracted": (SOFTMAX, *NO_MAXIMUM, large_scores_are_stable),
    "an empty row divides by zero": (SOFTMAX, "tl.where(s > 0, s, 1.0)", "s", rows_that_see_nothing_are_zeros),
    "a stride of keys is that of queries": (KERNELS, *A_STRIDE, strides_are_followed),
    "two heads are one": (KERNELS, "head % heads", "head % heads // 2 * 2", ragged),
    "all texts follow the first one's rule": (KERNELS, "key + b * key_b, j[:, None]", "key, j[:, None]", ragged),
    "all texts have the first one's tiles": (KERNELS, "int(len(order) > 1)", "0", ragged),
    "a block is not asked": (KERNELS, " & (key_block != block)", "", ragged),
    "partial tiles take no mask backward": (KERNELS, "if i >= full:", "if i > some:", ragged),
    "partial tiles are left out": (KERNELS, "tl.load(counts + 2 * row + 1)", "tl.load(counts + 2 * row)", ragged),
    "delta is forgotten": (KERNELS, "(p * (dp - d[None, :]))", "(p * dp)", ragged),
    "dk is not scaled": (KERNELS, "dk_tile * scale", "dk_tile", ragged),
    "a group's other heads give no gradient": (KERNELS, "g * share + share)", "g * share + 1)", ragged),
}


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_bug_in_the_kernels_turns_a_check_red(bug: str) -> None:
    module, right, wrong, law = BUGS[bug]
    dependents = () if module == KERNELS else (KERNELS,)
    with planted_module(module, right, wrong, dependents), pytest.raises(AssertionError):
        law()
