"""The marginal over plans: a probability, Bayes' rule, and a gradient that is weighted by the posterior."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import pdref.ops.plan_marginal as op
from laws.planting import Bug
from laws.rows import rows_computed
from pdref.lab.kernels.check import assert_within_budget
from pdref.lab.kernels.memory import Meter
from pdref.lab.kernels.problems import plan_marginal_problem
from pdref.ops.impl import Impl
from pdref.ops.token_nll import IGNORE, chunked, token_nll

IMPLS: list[Impl] = ["naive", "torch"]
BOTH = pytest.mark.parametrize("impl", IMPLS)
LANES = [("cpu", torch.float32), ("cpu", torch.float16)]
if torch.cuda.is_available():
    LANES = [("cuda", dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
INF = math.inf


def problem(B: int = 2, K: int = 3, T: int = 4, D: int = 3, V: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, unembedding, targets (the last of the second text is padding) and a normalised prior."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(B, K, T, D, generator=generator, dtype=torch.float64)
    unembedding = torch.randn(V, D, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (B, T), generator=generator)
    targets[1:, T - 1 :] = IGNORE
    return hidden, unembedding, targets, torch.randn(B, K, generator=generator, dtype=torch.float64).log_softmax(1)


# Laws, each with the bugs that it catches below.


def plans_are_enumerated(impl: Impl) -> None:
    """Every plan's joint as a product of probabilities in Python's floats, their sum, and Bayes' rule."""
    hidden, unembedding, targets, log_prior = problem()
    log_prior[0, 1] = -INF
    log_p, log_posterior = op.plan_marginal(hidden, unembedding, targets, log_prior, impl)
    for b in range(2):
        joint = []
        for z in range(3):
            p = math.exp(log_prior[b, z])
            for t, y in enumerate(targets[b].tolist()):
                scores = [math.exp(float(hidden[b, z, t] @ w)) for w in unembedding]
                p *= 1.0 if y == IGNORE else scores[y] / math.fsum(scores)
            joint.append(p)
        assert abs(log_p[b].exp().item() / math.fsum(joint) - 1) < 1e-12, f"p(x) of text {b}"
        for z in range(3):
            expected = joint[z] / math.fsum(joint)
            assert abs(log_posterior[b, z].exp().item() - expected) < 1e-12, f"posterior of plan {z} for text {b}"


def all_texts_together_are_certain(impl: Impl) -> None:
    """Over all V^T texts the marginal sums to one."""
    hidden, unembedding, _, log_prior = problem(B=1, K=3, T=3, V=4)
    texts = torch.tensor(list(itertools.product(range(4), repeat=3)))
    one = torch.ones(len(texts), 1, 1, 1)
    log_p, _ = op.plan_marginal(hidden * one, unembedding, texts, log_prior * one[..., 0, 0], impl)
    assert abs(log_p.exp().sum().item() - 1) < 1e-12


def the_gradient_is_weighted_by_the_posterior(impl: Impl) -> None:
    """d log p(x) = sum_z p(z | x) d log p(x, z), for hidden states, unembedding and prior alike."""
    hidden, unembedding, targets, log_prior = problem()
    leaves = [x.requires_grad_() for x in (hidden, unembedding, log_prior)]
    log_p, log_posterior = op.plan_marginal(*leaves[:2], targets, log_prior, impl)
    weights = torch.tensor([0.3, -2.0], dtype=torch.float64)
    found = torch.autograd.grad((weights * log_p).sum(), leaves)
    log_words = (hidden @ unembedding.T).log_softmax(-1)  # [B, K, T, V]
    at = targets.clamp_min(0)[:, None, :, None].expand(-1, 3, -1, -1)
    log_joint = log_prior + (log_words.gather(-1, at)[..., 0] * (targets != IGNORE)[:, None]).sum(-1)
    posterior = log_joint.detach().softmax(1)
    expected = torch.autograd.grad((weights[:, None] * posterior * log_joint).sum(), leaves)
    for name, a, b in zip(("hidden", "unembedding", "prior"), found, expected, strict=True):
        assert torch.allclose(a, b), name
    assert torch.allclose(found[2], weights[:, None] * posterior), "of the prior: the posterior itself"


def impossible_plans_are_left_out(impl: Impl) -> None:
    """A plan of zero prior changes nothing, gets no gradient and spoils none, whatever the gradients asked for."""
    hidden, unembedding, targets, log_prior = problem(K=4)
    log_prior[0, [1, 3]] = -INF
    log_prior[1, 0] = -INF
    leaves = [x.requires_grad_() for x in (hidden, unembedding, log_prior)]
    log_p, log_posterior = op.plan_marginal(*leaves[:2], targets, log_prior, impl)
    dead = log_prior == -INF
    assert torch.equal(log_posterior == -INF, dead)
    assert torch.allclose(log_posterior.exp().sum(1), torch.ones(2).double())
    for b, kept in enumerate([[0, 2], [1, 2, 3]]):
        few = hidden[b : b + 1, kept], unembedding, targets[b : b + 1], log_prior[b : b + 1, kept]
        assert torch.allclose(op.plan_marginal(*few, "naive").log_p[0], log_p[b])
    upstream = torch.ones_like(log_p), torch.randn_like(log_posterior)
    gradients = torch.autograd.grad((log_p, log_posterior), leaves, upstream)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][dead].any() and not gradients[2][dead].any()
    assert gradients[0][~dead].any() and gradients[2][~dead].all()


def a_text_without_a_plan_is_impossible(impl: Impl) -> None:
    """All priors -inf: log p(x) is -inf, posteriors too, gradients zero, and other texts do not notice."""
    hidden, unembedding, targets, log_prior = problem()
    alone = op.plan_marginal(hidden[1:], unembedding, targets[1:], log_prior[1:], "naive")
    log_prior[0] = -INF
    leaves = [x.requires_grad_() for x in (hidden, unembedding, log_prior)]
    log_p, log_posterior = op.plan_marginal(*leaves[:2], targets, log_prior, impl)
    assert log_p[0] == -INF and (log_posterior[0] == -INF).all()
    assert torch.allclose(log_p[1:], alone.log_p) and torch.allclose(log_posterior[1:], alone.log_posterior)
    gradients = torch.autograd.grad((log_p, log_posterior), leaves, (log_p.new_ones(2), torch.ones_like(log_prior)))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][0].any() and not gradients[2][0].any() and gradients[0][1].any()


def long_texts_neither_vanish_nor_overflow(impl: Impl) -> None:
    """A text of thousands of nats, in float32: exp of any joint is zero, the posterior is not."""
    hidden, unembedding, targets, log_prior = problem(B=2, K=5, T=600, V=50)
    hidden = hidden[:, :1] + 0.005 * hidden  # plans that nearly agree
    exact = op.plan_marginal(3 * hidden, unembedding, targets, log_prior, "naive")
    assert (exact.log_p < -1000).all() and (exact.log_posterior.exp().amax(1) < 0.99).all()
    found = op.plan_marginal(3 * hidden.float(), unembedding.float(), targets, log_prior.float(), impl)
    assert torch.allclose(found.log_p.double(), exact.log_p, rtol=1e-5)
    assert torch.allclose(found.log_posterior.exp().double(), exact.log_posterior.exp(), atol=1e-2)


LAWS: dict[str, Callable[[Impl], None]] = {
    "enumeration": plans_are_enumerated,
    "total probability": all_texts_together_are_certain,
    "posterior-weighted": the_gradient_is_weighted_by_the_posterior,
    "impossible plans": impossible_plans_are_left_out,
    "impossible texts": a_text_without_a_plan_is_impossible,
    "long texts": long_texts_neither_vanish_nor_overflow,
}


@BOTH
@pytest.mark.parametrize("law", LAWS)
def test_it_is_a_sum_over_plans(law: str, impl: Impl) -> None:
    LAWS[law](impl)


@BOTH
def test_one_plan_is_no_choice(impl: Impl) -> None:
    hidden, unembedding, targets, log_prior = problem(K=1)
    log_p, log_posterior = op.plan_marginal(hidden, unembedding, targets, log_prior, impl)
    assert not log_posterior.any()
    nats = token_nll(hidden[:, 0].reshape(-1, 3), unembedding, targets.flatten(), "naive").view_as(targets)
    torch.testing.assert_close(log_p, -nats.sum(1))


@BOTH
@pytest.mark.parametrize("T", [0, 3])
def test_a_text_of_nothing_leaves_the_prior(impl: Impl, T: int) -> None:
    hidden, unembedding, _, log_prior = problem(T=T)
    prior = log_prior + 1.5  # need not be normalised
    found = op.plan_marginal(hidden, unembedding, torch.full((2, T), IGNORE), prior, impl)
    torch.testing.assert_close(found.log_p, torch.full((2,), 1.5, dtype=torch.float64))
    torch.testing.assert_close(found.log_posterior, log_prior)


@BOTH
def test_padding_changes_nothing(impl: Impl) -> None:
    hidden, unembedding, targets, log_prior = problem()
    padded = op.plan_marginal(hidden, unembedding, targets, log_prior, impl)
    short = op.plan_marginal(hidden[1:, :, :-1], unembedding, targets[1:, :-1], log_prior[1:], impl)
    torch.testing.assert_close(padded.log_p[1:], short.log_p)
    torch.testing.assert_close(padded.log_posterior[1:], short.log_posterior)


def test_plans_and_tokens_that_do_not_count_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, unembedding, targets, log_prior = problem()
    log_prior[0, 2] = log_prior[1, 0] = -INF
    rows = rows_computed(monkeypatch)
    op.plan_marginal(hidden, unembedding, targets, log_prior, "torch")
    assert rows == [2 * 4 + 2 * 3]


@BOTH
def test_inputs_need_not_be_contiguous(impl: Impl) -> None:
    hidden, unembedding, targets, log_prior = problem()
    strided = (
        hidden.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        unembedding.T.contiguous().T,
        targets.T.contiguous().T,
        log_prior.T.contiguous().T,
    )
    expected = op.plan_marginal(hidden, unembedding, targets, log_prior, "naive")
    torch.testing.assert_close(op.plan_marginal(*strided, impl), expected)


@BOTH
def test_its_gradients_are_those_of_finite_differences(impl: Impl) -> None:
    hidden, unembedding, targets, log_prior = problem(T=2)
    inputs = hidden.requires_grad_(), unembedding.requires_grad_(), log_prior.requires_grad_()

    def both(h: Tensor, w: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(op.plan_marginal(h, w, targets, prior, impl))  # type: ignore[return-value]

    assert gradcheck(both, inputs)
    if impl == "naive":
        assert gradgradcheck(both, inputs, fast_mode=True)


@BOTH
def test_its_gradients_are_right_beside_impossible_plans(impl: Impl) -> None:
    hidden, unembedding, targets, log_prior = problem(T=2)
    log_prior[0, 1] = log_prior[1, 0] = -INF
    inputs = hidden.requires_grad_(), unembedding.requires_grad_()
    assert gradcheck(lambda h, w: op.plan_marginal(h, w, targets, log_prior, impl).log_p, inputs)


def test_the_logits_of_all_plans_are_never_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "KEPT", 2**16)
    B, K, T, V = 2, 6, 32, 4096
    inputs = {k: x.float() for k, x in plan_marginal_problem(B, K, T, 8, V).inputs.items() if x.is_floating_point()}
    targets = torch.randint(V, (B, T))
    leaves = [x.requires_grad_() for x in inputs.values()]

    def peak(impl: Impl) -> int:
        meter = Meter("cpu")
        meter(
            lambda: (
                op.plan_marginal(inputs["hidden"], inputs["unembedding"], targets, inputs["log_prior"], impl)
                .log_p.sum()
                .backward()
            )
        )
        for leaf in leaves:
            leaf.grad = None
        return meter.peak

    logits = 4 * B * K * T * V
    assert peak("naive") > 2 * logits and peak("torch") < logits / 3


@pytest.mark.parametrize(("device", "dtype"), LANES)
@pytest.mark.parametrize(("B", "K", "T", "D", "V"), [(1, 1, 1, 16, 20), (2, 3, 5, 40, 100), (2, 5, 9, 64, 257)])
def test_the_kernel_is_within_its_error_budget(
    B: int, K: int, T: int, D: int, V: int, device: str, dtype: torch.dtype
) -> None:
    pytest.importorskip("triton")
    assert_within_budget(plan_marginal_problem(B, K, T, D, V), "triton", device, dtype)


OP = "pdref.ops.plan_marginal:plan_marginal"
BUGS = {
    "the prior is dropped": Bug(OP, "log_prior - nats", "-nats", ("enumeration", "total probability")),
    "the prior favours the unlikely": Bug(OP, "log_prior - nats", "-log_prior - nats", ("enumeration",)),
    "a mean over the text, not its sum": Bug(OP, "nats.sum(-1)", "nats.mean(-1)", ("enumeration", "total probability")),
    "no maximum is subtracted": Bug(OP, "joint.logsumexp(1)", "joint.exp().sum(1).log()", ("long texts",)),
    "a lower bound, not the marginal": Bug(
        OP,
        "joint.logsumexp(1)",
        "joint.amax(1)",
        ("enumeration", "total probability", "posterior-weighted"),
    ),
    "all plans weigh the same backward": Bug(
        OP,
        "joint.logsumexp(1)",
        "joint.logsumexp(1).detach() + joint.mean(1) - joint.mean(1).detach()",
        ("posterior-weighted",),
    ),
    "the posterior keeps the constant": Bug(OP, "joint - log_p[:, None]", "joint", ("enumeration", "impossible plans")),
    "impossible plans count": Bug(OP, "log_prior > -torch.inf", "log_prior == log_prior", ("impossible plans",)),
    "impossible texts have a posterior": Bug(
        OP, "torch.where(possible, joint - log_p[:, None], -torch.inf)", "joint - log_p[:, None]", ("impossible texts",)
    ),
    "padding counts": Bug(
        OP, "targets[:, None], IGNORE", "targets[:, None].clamp_min(0), IGNORE", ("enumeration", "posterior-weighted")
    ),
}


@pytest.mark.parametrize(("bug", "law"), [(bug, law) for bug, planted in BUGS.items() for law in planted.red])
def test_a_planted_bug_turns_its_laws_red(bug: str, law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug].plant(monkeypatch)
    with pytest.raises(AssertionError):
        LAWS[law]("torch")
