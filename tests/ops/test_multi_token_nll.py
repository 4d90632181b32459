"""Heads that look ahead: whose target is where, what the tail costs, and the paper's order of work."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import pdref.ops.multi_token_nll as op
from laws.planting import Bug
from laws.rows import rows_computed
from pdref.lab.kernels.check import assert_within_budget
from pdref.lab.kernels.memory import Meter
from pdref.lab.kernels.problems import multi_token_nll_problem
from pdref.ops.impl import Impl
from pdref.ops.multi_token_nll import sequential
from pdref.ops.token_nll import chunked

IMPLS: list[Impl] = ["naive", "torch"]
BOTH = pytest.mark.parametrize("impl", IMPLS)
LANES = [("cpu", torch.float32), ("cpu", torch.float16)]
if torch.cuda.is_available():
    LANES = [("cuda", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]


def problem(B: int, T: int, n: int, D: int = 3, V: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, unembedding, tokens, and which are scored: about two in three."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, T, n, D, generator=generator, dtype=torch.float64)
    unembedding = torch.randn(V, D, generator=generator, dtype=torch.float64)
    tokens = torch.randint(V, (B, T), generator=generator)
    return hidden, unembedding, tokens, torch.rand(B, T, generator=generator) < 0.7


def it_is_softmax_head_by_head(impl: Impl) -> None:
    """Every nat against a softmax in Python's floats; what has no source or no score is exactly zero."""
    for first, n in [(1, 1), (1, 4), (3, 2)]:
        hidden, unembedding, tokens, scored = problem(2, 6, n)
        nats = op.multi_token_nll(hidden, unembedding, tokens, scored, impl, first)
        assert nats.shape == (2, 6, n)
        for b in range(2):
            for i in range(6):
                for j in range(n):
                    expected = 0.0
                    if scored[b, i] and i >= first + j:
                        h = hidden[b, i - first - j, j].tolist()
                        weights = [
                            math.exp(sum(x * y for x, y in zip(h, w, strict=True))) for w in unembedding.tolist()
                        ]
                        expected = -math.log(weights[tokens[b, i]] / math.fsum(weights))
                    found = nats[b, i, j].item()
                    assert abs(found - expected) <= 1e-12 * expected, f"token {i}, head {j}: {found}, not {expected}"


def each_head_is_asked_for_its_own_token(impl: Impl) -> None:
    """Hidden states that are sure of the token k places on pay nothing; one place off, they pay dearly."""
    tokens = torch.arange(8)[None]  # every token another one
    certain = 20 * torch.eye(8, dtype=torch.float64)
    ahead = (torch.arange(8)[:, None] + torch.arange(1, 4)) % 8  # the tail is sure of what stands at the front
    nats = op.multi_token_nll(certain[ahead][None], torch.eye(8).double(), tokens, torch.ones(1, 8).bool(), impl)
    assert nats.max() < 1e-6, "each token is predicted k places before it"
    assert torch.equal(nats[0] == 0, torch.arange(8)[:, None] < torch.arange(1, 4)), "the first k tokens by nobody"


def only_sources_of_scored_tokens_learn(impl: Impl) -> None:
    """A hidden state has a gradient exactly if its target lies within the sequence and is scored."""
    hidden, unembedding, tokens, scored = problem(3, 7, 3)
    hidden.requires_grad_()
    (gradient,) = torch.autograd.grad(op.multi_token_nll(hidden, unembedding, tokens, scored, impl).sum(), hidden)
    for b in range(3):
        for t in range(7):
            for k in (1, 2, 3):
                counts = t + k < 7 and bool(scored[b, t + k])
                assert bool(gradient[b, t, k - 1].any()) == counts, f"source {t} of head {k} in row {b}"


def company_changes_nothing(impl: Impl) -> None:
    """A sequence padded on the right has the nats that it has alone: no head reads or predicts padding."""
    hidden, unembedding, tokens, _ = problem(2, 9, 4)
    real = torch.tensor([9, 5])
    together = op.multi_token_nll(hidden, unembedding, tokens, torch.arange(9) < real[:, None], impl)
    for b, length in enumerate(real.tolist()):
        part = hidden[b : b + 1, :length], unembedding, tokens[b : b + 1, :length]
        alone = op.multi_token_nll(*part, torch.ones(1, length, dtype=torch.bool), impl)
        torch.testing.assert_close(together[b, :length], alone[0])
        assert not together[b, length:].any()


LAWS: dict[str, Callable[[Impl], None]] = {
    "softmax": it_is_softmax_head_by_head,
    "own token": each_head_is_asked_for_its_own_token,
    "sources": only_sources_of_scored_tokens_learn,
    "company": company_changes_nothing,
}


@BOTH
@pytest.mark.parametrize("law", LAWS)
def test_heads_predict_what_lies_ahead_of_them(law: str, impl: Impl) -> None:
    LAWS[law](impl)


@BOTH
@pytest.mark.parametrize(("T", "n", "first"), [(0, 2, 1), (1, 1, 1), (1, 3, 1), (2, 5, 1), (4, 2, 3), (3, 1, 9)])
def test_sequences_may_be_shorter_than_the_heads_look(T: int, n: int, first: int, impl: Impl) -> None:
    hidden, unembedding, tokens, _ = problem(2, T, n)
    nats = op.multi_token_nll(hidden, unembedding, tokens, torch.ones(2, T, dtype=torch.bool), impl, first)
    assert nats.shape == (2, T, n)
    reached = torch.arange(T)[:, None] >= first + torch.arange(n)
    assert torch.equal(nats != 0, reached.expand(2, T, n))


@BOTH
def test_inputs_need_not_be_contiguous(impl: Impl) -> None:
    hidden, unembedding, tokens, scored = problem(3, 5, 2)
    strided = (
        hidden.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0),
        unembedding.T.contiguous().T,
        tokens.T.contiguous().T,
        scored.T.contiguous().T,
    )
    assert not any(x.is_contiguous() for x in strided)
    expected = op.multi_token_nll(hidden, unembedding, tokens, scored, "naive")
    torch.testing.assert_close(op.multi_token_nll(*strided, impl), expected)


@BOTH
def test_its_gradients_are_those_of_finite_differences(impl: Impl) -> None:
    hidden, unembedding, tokens, scored = problem(2, 4, 2, V=4)
    inputs = hidden.requires_grad_(), unembedding.requires_grad_()

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return op.multi_token_nll(h, w, tokens, scored, impl)

    assert gradcheck(loss, inputs)
    if impl == "naive":
        assert gradgradcheck(loss, inputs)


def test_all_heads_are_one_call_over_the_rows_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_computed(monkeypatch)
    nats = op.multi_token_nll(*problem(3, 9, 4), "torch")
    assert rows == [int((nats != 0).sum())]


@pytest.mark.parametrize(("device", "dtype"), LANES)
@pytest.mark.parametrize(("T", "n", "D", "V"), [(1, 1, 16, 1), (9, 3, 40, 100), (33, 4, 64, 257)])
def test_the_kernel_is_within_its_error_budget(T: int, n: int, D: int, V: int, device: str, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    assert_within_budget(multi_token_nll_problem(2, T, n, D, V), "triton", device, dtype)


# The paper's order of work.


class Heads(nn.Module):
    """A trunk of one layer and heads of one layer each, over embedded tokens."""

    def __init__(self, n: int, D: int, V: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.unembed = nn.Embedding(V, D, dtype=dtype), nn.Linear(D, V, bias=False, dtype=dtype)
        self.trunk = nn.Linear(D, D, dtype=dtype)
        self.heads = nn.ModuleList(nn.Linear(D, D, dtype=dtype) for _ in range(n))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.trunk(self.embed(tokens)).tanh()

    def joint(self, tokens: Tensor, scored: Tensor, weights: Tensor, impl: Impl) -> Tensor:
        """Forward of all heads, then one backward."""
        output = self(tokens)
        hidden = torch.stack([head(output) for head in self.heads], 2)
        nats = op.multi_token_nll(hidden, self.unembed.weight, tokens, scored, impl)
        (weights * nats).sum().backward()
        return nats.detach()

    def sequential(self, tokens: Tensor, scored: Tensor, weights: Tensor, impl: Impl) -> Tensor:
        """Head by head."""
        arguments = self(tokens), self.heads, self.unembed.weight, tokens, scored, weights
        return sequential.sequential_backward(*arguments, impl)


def head_by_head_is_the_joint_loss(impl: Impl) -> None:
    """The nats and all gradients of the joint loss, whatever the weights."""
    _, _, tokens, scored = problem(2, 7, 3)
    for weights in (torch.tensor(1.0), torch.tensor([1.0, 0.3, 0.1]), torch.rand(2, 1, 3), torch.rand(2, 7, 3)):
        joint, sequential = Heads(3, 5, 7), Heads(3, 5, 7)
        torch.testing.assert_close(
            sequential.sequential(tokens, scored, weights, impl), joint.joint(tokens, scored, weights, "naive")
        )
        for (name, a), b in zip(sequential.named_parameters(), joint.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None and b.grad.any()
            assert torch.allclose(a.grad, b.grad), name


@BOTH
def test_head_by_head_leaves_the_gradients_of_the_joint_loss(impl: Impl) -> None:
    head_by_head_is_the_joint_loss(impl)


def test_a_frozen_trunk_is_left_alone() -> None:
    _, _, tokens, scored = problem(2, 7, 3)
    model = Heads(3, 5, 7)
    model.trunk.requires_grad_(False), model.embed.requires_grad_(False)
    model.sequential(tokens, scored, torch.tensor(1.0), "torch")
    assert model.trunk.weight.grad is None and all(head.weight.grad is not None for head in model.heads)


def test_weights_broadcast_to_the_nats() -> None:
    _, _, tokens, scored = problem(2, 7, 3)
    with pytest.raises(ValueError, match=r"weights \[2\] do not broadcast to \[B, T, n\] = \[2, 7, 3\]"):
        Heads(3, 5, 7).sequential(tokens, scored, torch.ones(2), "torch")


def peak(n: int, order: str, impl: Impl) -> int:
    """Most bytes that forward and backward hold, beyond parameters and their gradients."""
    V, T, D = 8192, 256, 16
    model = Heads(n, D, V, torch.float32)
    model.heads = nn.ModuleList(  # of many activations, as a transformer's layer has them
        nn.Sequential(nn.Linear(D, 64 * D), nn.GELU(), nn.Linear(64 * D, D)) for _ in range(n)
    )
    tokens = torch.randint(V, (1, T), generator=torch.Generator().manual_seed(0))
    scored, weight = torch.ones(1, T, dtype=torch.bool), torch.tensor(1.0)
    if order != "sequential":  # a gradient that is there already hides what a sum of two costs
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    hidden = torch.randn(1, T, n, D, requires_grad=True)
    hidden.grad = torch.zeros_like(hidden)
    meter = Meter("cpu")
    if order == "loss alone":
        meter(lambda: op.multi_token_nll(hidden, model.unembed.weight, tokens, scored, impl).sum().backward())
    else:
        meter(lambda: getattr(model, order)(tokens, scored, weight, impl))
    return meter.peak


def test_four_heads_take_the_memory_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "KEPT", 2**19)  # a small problem, cut as a large one would be

    def growth(order: str, impl: Impl) -> float:
        return peak(4, order, impl) / peak(1, order, impl)

    assert growth("loss alone", "naive") > 3, "the logits of all heads at once"
    assert growth("loss alone", "torch") <= 1.1
    assert growth("joint", "torch") > 1.5, "the activations of all heads at once"
    assert growth("sequential", "torch") <= 1.1


# Bugs.

OP, OFFSETS = "pdref.ops.multi_token_nll:", "pdref.ops.multi_token_nll.offsets:"
AHEAD = f"{OFFSETS}ahead"
BUGS = {
    "a head looks one place too far": Bug(AHEAD, "[:, first:]", "[:, first + 1 :]", ("own token", "softmax")),
    "all heads look equally far": Bug(
        AHEAD, ".unfold(1, n, 1)[:, ", "[..., None].expand(-1, -1, n)[:, ", ("own token", "softmax")
    ),
    "the tail counts": Bug(
        AHEAD, "F.pad(targets, (0, first + n), value=IGNORE)", "torch.cat([targets] * (1 + first + n), 1)", ("sources",)
    ),
    "padding counts": Bug(f"{OP}multi_token_nll", "tokens.masked_fill(~scored, IGNORE)", "tokens", ("company",)),
    "nats stay with their source": Bug(f"{OFFSETS}at_target", "head.roll(k, dims=1)", "head", ("softmax", "own token")),
    "nats return by one shift for all heads": Bug(f"{OFFSETS}at_target", "roll(k, ", "roll(first, ", ("softmax",)),
}


@pytest.mark.parametrize(("bug", "law"), [(bug, law) for bug, planted in BUGS.items() for law in planted.red])
def test_a_planted_bug_turns_its_laws_red(bug: str, law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug].plant(monkeypatch)
    with pytest.raises(AssertionError):
        LAWS[law]("torch")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("first=k)[", "first=1)["),
        ("weights[..., k - 1]", "weights[..., 0]"),
        ("at_source(weights[..., k - 1], k)", "weights[..., k - 1]"),
        ("trunk.backward(output.grad)", "trunk.backward(output.grad / len(heads))"),
    ],
)
def test_a_bug_in_the_sequence_changes_a_gradient(right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Bug("pdref.ops.multi_token_nll.sequential:sequential_backward", right, wrong, ()).plant(monkeypatch)
    with pytest.raises(AssertionError):
        head_by_head_is_the_joint_loss("torch")
