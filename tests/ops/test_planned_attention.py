"""Attention under a mask: its definition against a loop, gradients, and PyTorch's own, held to each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pdref.lab.kernels.documents import two_streams
from pdref.ops.impl import Impl
from pdref.ops.planned_attention import planned_attention, tiled
from pdref.text.layout import Layout
from pdref.text.mask import Sight

BOTH = pytest.mark.parametrize("impl", ["naive", "torch"])


def problem(
    T: int, S: int, B: int = 2, H: int = 4, G: int = 2, D: int = 6, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values, and a mask whose first row of each batch sees nothing."""
    generator = torch.Generator().manual_seed(T * 1000 + S)
    q = scale * torch.randn(B, H, T, D, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, B, G, S, D, generator=generator, dtype=torch.float64)
    mask = torch.rand(B, 1, T, S, generator=generator) < 0.5
    mask[:, :, 0] = False
    return q, k, v, mask


def by_loops(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The contract's formula, one number at a time."""
    (B, H, T, D), G = q.shape, k.shape[1]
    out = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            for i in range(T):
                seen = [j for j in range(k.shape[2]) if mask[b, 0, i, j]]
                scores = [float(q[b, h, i] @ k[b, g, j]) / math.sqrt(D) for j in seen]
                total = sum(math.exp(s - max(scores)) for s in scores)
                for j, s in zip(seen, scores, strict=True):
                    out[b, h, i] += math.exp(s - max(scores)) / total * v[b, g, j]
    return out


@BOTH
@pytest.mark.parametrize(("H", "G"), [(1, 1), (4, 4), (4, 2), (6, 2), (4, 1)])
def test_it_is_the_formula_for_any_grouping_of_heads(impl: Impl, H: int, G: int) -> None:
    q, k, v, mask = problem(3, 5, H=H, G=G)
    torch.testing.assert_close(planned_attention(q, k, v, mask, impl=impl), by_loops(q, k, v, mask))


@pytest.mark.parametrize("T", [1, 63, 100, 257])
@pytest.mark.parametrize("S", [1, 63, 257])
def test_naive_and_torch_agree_on_ragged_shapes(T: int, S: int) -> None:
    q, k, v, mask = problem(T, S)
    naive, stock = (planned_attention(q, k, v, mask, impl=impl) for impl in ("naive", "torch"))
    torch.testing.assert_close(naive, stock)


@BOTH
def test_a_query_that_may_see_nothing_gets_zeros_and_gives_no_gradient(impl: Impl) -> None:
    q, k, v, mask = problem(4, 5)
    q.requires_grad_()
    out = planned_attention(q, k, v, mask, impl=impl)
    assert (out[:, :, 0] == 0).all() and out[:, :, 1:].any()
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert (gradient[:, :, 0] == 0).all() and gradient.isfinite().all()


@BOTH
@pytest.mark.parametrize("T", [1, 5])
def test_causal_is_the_triangular_mask(impl: Impl, T: int) -> None:
    q, k, v, _ = problem(T, T)
    triangle = torch.ones(T, T, dtype=torch.bool).tril()
    torch.testing.assert_close(
        planned_attention(q, k, v, causal=True, impl=impl), by_loops(q, k, v, triangle.expand(2, 1, T, T))
    )


@BOTH
def test_without_a_mask_every_query_sees_every_key(impl: Impl) -> None:
    q, k, v, mask = problem(3, 5)
    expected = by_loops(q, k, v, torch.ones_like(mask))
    torch.testing.assert_close(planned_attention(q, k, v, impl=impl), expected)


@BOTH
@pytest.mark.parametrize("shape", [(2, 1, 2, 3), (1, 1, 2, 3), (2, 1, 1, 3), (1, 2, 3), (2, 3), (1, 3)])
def test_a_mask_broadcasts_from_the_right(impl: Impl, shape: tuple[int, ...]) -> None:
    # Two queries and two heads to a group: sizes that a wrong axis would accept.
    q, k, v, _ = problem(2, 3, H=2, G=1)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.6
    expected = by_loops(q, k, v, mask.expand(2, 1, 2, 3))
    torch.testing.assert_close(planned_attention(q, k, v, mask, impl=impl), expected)


@BOTH
def test_large_scores_pick_one_key_without_overflow(impl: Impl) -> None:
    q, k, v, mask = (x.float() if x.is_floating_point() else x for x in problem(9, 9, scale=1e5))
    out = planned_attention(q, k, v, mask, impl=impl)
    assert out.isfinite().all()
    torch.testing.assert_close(out.double(), by_loops(q.double(), k.double(), v.double(), mask), rtol=1e-5, atol=1e-5)


@BOTH
def test_inputs_need_not_be_contiguous(impl: Impl) -> None:
    q, k, v, mask = problem(6, 6)
    # As a transformer gives them: heads cut from one projection, and a mask cut from a larger one.
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    wide = torch.cat([mask, ~mask], -1)[..., :6]
    assert not any(x.is_contiguous() for x in [*strided, wide])
    torch.testing.assert_close(planned_attention(*strided, wide, impl=impl), by_loops(q, k, v, mask))


@BOTH
@pytest.mark.parametrize("G", [1, 2])
def test_its_gradients_are_those_of_finite_differences(impl: Impl, G: int) -> None:
    q, k, v, mask = problem(3, 4, B=1, H=2, G=G, D=2)
    mask[:, :, 0, 1] = True
    inputs = tuple(x.requires_grad_() for x in (q, k, v))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return planned_attention(q, k, v, mask, impl=impl)

    assert gradcheck(attend, inputs)
    if impl == "naive":  # PyTorch's fused attention has no second derivative
        assert gradgradcheck(attend, inputs)


@BOTH
def test_what_is_masked_has_no_influence(impl: Impl) -> None:
    q, k, v, mask = problem(4, 5)
    mask[..., 2] = False
    before = planned_attention(q, k, v, mask, impl=impl)
    k[:, :, 2], v[:, :, 2] = 1e3, -1e3
    assert torch.equal(planned_attention(q, k, v, mask, impl=impl), before)


# A rule instead of booleans, and PyTorch's attention tile by tile, which long texts get on a CPU.


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 8 tokens at any size, as long texts have them of 64."""
    monkeypatch.setattr(tiled, "TILE", 8)
    monkeypatch.setattr(tiled, "PAYS_FROM", 0)


def ruled(T: int, B: int = 2, H: int = 4, G: int = 2, D: int = 6) -> tuple[Tensor, Tensor, Tensor, Sight]:
    """Heads side by side, under the rules of different texts, one of them padded."""
    texts = [two_streams(T - 3 * b if 3 * b < T else T, spans=2 + b, stages=1 + b, seed=b) for b in range(B)]
    layout = Layout.collate(texts)
    generator = torch.Generator().manual_seed(T)
    q, k, v = (torch.randn(B, T, h, D, generator=generator, dtype=torch.float64).transpose(1, 2) for h in (H, G, G))
    return q, k, v, Sight.of(layout, layout)


@BOTH
@pytest.mark.parametrize("T", [1, 9, 40])
def test_a_sight_is_its_dense_mask(impl: Impl, T: int) -> None:
    q, k, v, sight = ruled(T)
    expected = planned_attention(q, k, v, sight.dense, impl="naive")
    torch.testing.assert_close(planned_attention(q, k, v, sight, impl=impl), expected)


@pytest.mark.parametrize("T", [1, 8, 63, 100])
@pytest.mark.parametrize("B", [1, 2])
def test_tile_by_tile_is_the_same_attention(small_tiles: None, T: int, B: int) -> None:
    q, k, v, sight = ruled(T, B)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    found = {}
    for impl in ("naive", "torch"):
        out = planned_attention(*leaves, sight, impl=impl)
        found[impl] = out, *torch.autograd.grad(out, leaves, torch.linspace(-1, 1, out.numel()).view_as(out))
    for naive, ours in zip(found["naive"], found["torch"], strict=True):
        torch.testing.assert_close(ours, naive)


def test_texts_may_share_a_rule_and_queries_may_see_nothing(small_tiles: None) -> None:
    q, k, v, _ = ruled(40)
    positions = torch.arange(40)[None] - 20
    sight = Sight.past(positions.clamp_min(0) * 2, torch.arange(40)[None] + 1)
    out = planned_attention(q, k, v, sight, impl="torch")
    torch.testing.assert_close(out, planned_attention(q, k, v, sight, impl="naive"))
    assert (out[:, :, :20] == 0).all() and out[:, :, 21:].all()


def test_tile_by_tile_has_the_gradients_of_finite_differences(small_tiles: None) -> None:
    q, k, v, sight = ruled(18, B=1, H=2, G=1, D=2)
    leaves = tuple(x.requires_grad_() for x in (q, k, v))
    assert gradcheck(lambda q, k, v: planned_attention(q, k, v, sight, impl="torch"), leaves)


def test_tiles_that_the_rule_leaves_empty_are_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, sight = ruled(400, B=1)
    seen, attend = [], tiled.scaled_dot_product_attention

    def counting(x: Tensor, y: Tensor, *rest: object, **options: object) -> Tensor:
        seen.append(x.shape[2] * y.shape[2])
        return attend(x, y, *rest, **options)

    monkeypatch.setattr(tiled, "scaled_dot_product_attention", counting)
    planned_attention(q, k, v, sight)
    assert len(seen) == 7 and float(sight.dense.float().mean()) * 400**2 < sum(seen) < 0.6 * 400**2


def test_auto_gives_to_pytorch_what_the_kernels_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdref.ops.planned_attention.choose", lambda *_: "triton")  # as on a GPU
    q, k, v, mask = problem(3, 5)
    torch.testing.assert_close(planned_attention(q, k, v, mask), by_loops(q, k, v, mask))
    q, k, v, sight = ruled(9, D=130)
    torch.testing.assert_close(planned_attention(q, k, v, sight), by_loops(q, k, v, sight.dense))


def test_small_texts_take_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, sight = ruled(100)
    monkeypatch.setattr(tiled, "scaled_dot_product_attention", None)
    planned_attention(q, k, v, sight)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: Sight(s.query[:, :, 1:], s.key), "mask [2, 8, 9] does not broadcast to [B, 1, T, S] = [2, 1, 9, 9]"),
        (lambda s: Sight(s.query[:, :1], s.key[:, :1, 1:]), "mask [1, 9, 8] does not broadcast"),
        (lambda s: Sight(s.query.long(), s.key), "got torch.int64 cpu"),
    ],
)
def test_a_sight_that_does_not_fit_is_refused(change: Callable[[Sight], Sight], says: str) -> None:
    q, k, v, sight = ruled(9)
    with pytest.raises(ValueError) as error:
        planned_attention(q, k, v, change(sight))
    assert says in str(error.value)
