"""The Planned Diffusion loss: which token is predicted from where, what it weighs, and what is not even computed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import pdref.ops.planned_nll as op
from laws.planting import Bug
from laws.rows import rows_computed
from pdref.lab.kernels.check import assert_within_budget
from pdref.lab.kernels.problems import planned_nll_problem
from pdref.ops.impl import Impl
from pdref.text.layout import NO_SPAN, Layout, Role

BOTH = pytest.mark.parametrize("impl", ["naive", "torch"])
LANES = [("cpu", torch.float32), ("cpu", torch.float16)]
if torch.cuda.is_available():
    LANES = [("cuda", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]

V, D = 13, 3
DRAWINGS = ["cczz<xxx><x>$", "cz<xx>|z<x><xx>$", "cccz<>$"]  # the last one has an empty span
Drawn = Callable[[str], Layout]
Problem = tuple[Tensor, Tensor, Layout, Tensor, Tensor]


@pytest.fixture
def problem(drawn: Drawn) -> Problem:
    """Hidden states, unembedding, layout, masked, times of documents that differ in length, spans and stages."""
    return make(drawn, DRAWINGS)


def make(drawn: Drawn, drawings: list[str], D: int = D) -> Problem:
    layout = Layout.collate([drawn(drawing) for drawing in drawings])
    generator = torch.Generator().manual_seed(5)
    layout = Layout(**{**dict(layout.items()), "token": torch.randint(V, layout.shape, generator=generator)})
    places = layout.shape[1] + layout.span_copy()[0].shape[1]
    hidden = torch.randn(len(drawings), places, D, generator=generator, dtype=torch.float64)
    unembedding = torch.randn(V, D, generator=generator, dtype=torch.float64)
    masked = (layout.role == Role.CONTENT) & (torch.rand(layout.shape, generator=generator) < 0.7)
    assert masked.any() and not masked[layout.role == Role.CONTENT].all()
    times = torch.rand(layout.shape, generator=generator, dtype=torch.float64).masked_fill(~masked, 0.0)
    return hidden, unembedding, layout, masked, times


def nats(h: Tensor, unembedding: Tensor, y: int) -> float:
    """-log softmax in Python's floats."""
    weights = [math.exp(sum(a * b for a, b in zip(h.tolist(), w, strict=True))) for w in unembedding.tolist()]
    return -math.log(weights[y] / math.fsum(weights))


def it_is_the_formula(impl: Impl, problem: Problem) -> None:
    """Both terms of every token, one token at a time."""
    hidden, unembedding, layout, masked, times = problem
    clean, diffusion = op.planned_nll(hidden, unembedding, layout, masked, times, impl)
    B, T = layout.shape
    for b in range(B):
        slot = T  # where the noised copy of the next span token stands
        for i in range(T):
            y = int(layout.token[b, i])
            scored = layout.role[b, i] not in (Role.PROMPT, Role.PAD)
            expected = nats(hidden[b, i - 1], unembedding, y) if scored else 0.0
            assert clean[b, i].item() == pytest.approx(expected, rel=1e-12), f"clean token {i} of document {b}"
            expected = nats(hidden[b, slot], unembedding, y) / times[b, i].item() if masked[b, i] else 0.0
            assert diffusion[b, i].item() == pytest.approx(expected, rel=1e-12), f"masked token {i} of document {b}"
            slot += int(layout.span[b, i] != NO_SPAN)


def only_what_carries_loss_is_computed(impl: Impl, problem: Problem) -> None:
    """One call of token_nll, with a row for each response token and one for each masked token."""
    with pytest.MonkeyPatch.context() as patch:
        rows = rows_computed(patch)
        op.planned_nll(*problem, impl)
    _, _, layout, masked, _ = problem
    response = (layout.role != Role.PROMPT) & (layout.role != Role.PAD)
    assert rows == [int(response.sum() + masked.sum())]


def company_changes_nothing(impl: Impl, drawn: Drawn) -> None:
    """Documents of unequal length have the nats that each has alone."""
    hidden, unembedding, layout, masked, times = make(drawn, DRAWINGS)
    together = op.planned_nll(hidden, unembedding, layout, masked, times, impl)
    for b, drawing in enumerate(DRAWINGS):
        T, U = len(drawing), int((layout.span[b] != NO_SPAN).sum())
        own = torch.cat([hidden[b : b + 1, :T], hidden[b : b + 1, layout.shape[1] :][:, :U]], 1)
        row = layout.map(lambda field, b=b, T=T: field[b : b + 1, :T])  # type: ignore[misc]
        alone = op.planned_nll(own, unembedding, row, masked[b : b + 1, :T], times[b : b + 1, :T], impl)
        for name, a, c in zip(("clean", "diffusion"), alone, together, strict=True):
            torch.testing.assert_close(c[b, :T], a[0], msg=f"{name} of document {b}")
            assert not c[b, T:].any(), f"{name} after document {b}"


@BOTH
def test_it_is_the_formula(impl: Impl, problem: Problem) -> None:
    it_is_the_formula(impl, problem)


def test_only_what_carries_loss_is_computed(problem: Problem) -> None:
    only_what_carries_loss_is_computed("torch", problem)


@BOTH
def test_company_changes_nothing(impl: Impl, drawn: Drawn) -> None:
    company_changes_nothing(impl, drawn)


@BOTH
def test_a_hidden_state_learns_if_its_prediction_carries_loss(impl: Impl, problem: Problem) -> None:
    hidden, unembedding, layout, masked, times = problem
    hidden.requires_grad_()
    clean, diffusion = op.planned_nll(hidden, unembedding, layout, masked, times, impl)
    T = layout.shape[1]
    (of_clean,) = torch.autograd.grad(clean.sum(), hidden, retain_graph=True)
    assert not of_clean[:, T:].any()
    assert torch.equal(of_clean[:, : T - 1].any(-1), layout.response[:, 1:]), "the token before it"
    (of_diffusion,) = torch.autograd.grad(diffusion.sum(), hidden)
    assert not of_diffusion[:, :T].any(), "never the clean stream"
    assert torch.equal(of_diffusion.any(-1).sum(1), masked.sum(1))


@BOTH
@pytest.mark.parametrize("everything", [False, True])
def test_nothing_and_everything_may_be_masked(impl: Impl, everything: bool, problem: Problem) -> None:
    hidden, unembedding, layout, *_ = problem
    masked = (layout.role == Role.CONTENT) & everything
    _, diffusion = op.planned_nll(hidden, unembedding, layout, masked, torch.ones(layout.shape), impl)
    assert torch.equal(diffusion > 0, masked) and diffusion.isfinite().all()


@BOTH
@pytest.mark.parametrize("drawing", ["c", "ccz$", "<>", "_"])
def test_documents_may_have_no_content(impl: Impl, drawing: str, drawn: Drawn) -> None:
    layout = drawn(drawing)
    places = layout.shape[1] + int((layout.span != NO_SPAN).sum())
    nothing = torch.zeros(layout.shape, dtype=torch.bool)
    inputs = torch.zeros(1, places, 2), torch.zeros(V, 2), layout, nothing, torch.ones(layout.shape)
    clean, diffusion = op.planned_nll(*inputs, impl)
    before = torch.arange(layout.shape[1]) > 0  # a first token has nothing before it
    torch.testing.assert_close(clean, math.log(V) * (layout.response & before))
    assert not diffusion.any()


@BOTH
def test_inputs_need_not_be_contiguous(impl: Impl, problem: Problem) -> None:
    hidden, unembedding, layout, masked, times = problem
    strided = (
        hidden.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        unembedding.T.contiguous().T,
        layout.map(lambda field: field.T.contiguous().T),
        masked.T.contiguous().T,
        times.T.contiguous().T,
    )
    expected = op.planned_nll(hidden, unembedding, layout, masked, times, "naive")
    torch.testing.assert_close(op.planned_nll(*strided, impl), expected)


@BOTH
def test_its_gradients_are_those_of_finite_differences(impl: Impl, drawn: Drawn) -> None:
    hidden, unembedding, layout, masked, times = make(drawn, ["cz<xx><x>$", "cz<xx>$"], D=2)
    inputs = hidden.requires_grad_(), unembedding.requires_grad_()

    def loss(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return op.planned_nll(h, w, layout, masked, times, impl)

    assert gradcheck(loss, inputs)
    if impl == "naive":
        assert gradgradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize(("device", "dtype"), LANES)
@pytest.mark.parametrize(("B", "spans", "L", "D", "V"), [(1, 1, 1, 16, 20), (2, 3, 5, 40, 100), (3, 2, 9, 64, 257)])
def test_the_kernel_is_within_its_error_budget(
    B: int, spans: int, L: int, D: int, V: int, device: str, dtype: torch.dtype
) -> None:
    pytest.importorskip("triton")
    assert_within_budget(planned_nll_problem(B, spans, L, D, V), "triton", device, dtype)


OP, OFFSETS = "pdref.ops.planned_nll:planned_nll", "pdref.ops.multi_token_nll.offsets:"
ROWS = "(masked.gather(1, index) & copy.real)"
BUGS = {
    "missing 1/t": Bug(OP, " / times.masked_fill(~masked, 1.0)", "", ("formula",)),
    "1/t of the other tokens": Bug(OP, "masked_fill(~masked, 1.0)", "masked_fill(masked, 1.0)", ("formula",)),
    "the shift is dropped": Bug(f"{OFFSETS}ahead", "[:, first:]", "[:, :-first]", ("formula", "company")),
    "a masked token predicts its neighbour": Bug(OP, "copy.token.mask", "copy.token.roll(-1, 1).mask", ("formula",)),
    "all content is scored": Bug(OP, ROWS, "copy.real", ("formula", "rows")),
    "fillers of the copy are scored": Bug(OP, ROWS, "(masked.gather(1, index) | ~copy.real)", ("formula", "rows")),
    "prompts are scored": Bug(OP, "~layout.response", "~layout.real", ("formula", "rows")),
    "padding is scored": Bug(OP, "~layout.response", "layout.role == 0", ("formula", "rows", "company")),
    "the terms of spans stay where the copy has them": Bug(
        OP, "scatter_add(1, index,", "scatter_add(1, torch.arange(index.shape[1]).expand_as(index),", ("formula",)
    ),
}


@pytest.mark.parametrize(("bug", "law"), [(bug, law) for bug, planted in BUGS.items() for law in planted.red])
def test_a_planted_bug_turns_its_laws_red(
    bug: str, law: str, problem: Problem, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    BUGS[bug].plant(monkeypatch)
    with pytest.raises(AssertionError):
        {
            "formula": lambda: it_is_the_formula("torch", problem),
            "rows": lambda: only_what_carries_loss_is_computed("torch", problem),
            "company": lambda: company_changes_nothing("torch", drawn),
        }[law]()
