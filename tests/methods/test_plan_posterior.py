"""Bounds from a posterior network: ordered, tight, and with gradients that can be checked by summing out everything."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from laws.planting import Bug
from pdref.methods import plan_posterior
from pdref.methods.latent_plan import CodedPlans, VectorPlans
from pdref.methods.plan_posterior import (
    CodePosterior,
    Gradient,
    Guess,
    Kind,
    NormalPosterior,
    Posterior,
    average,
    estimate,
    leave_one_out,
)
from pdref.model.transformer import Config, Transformer

V, K, M, T, B = 4, 2, 2, 3, 2


def config() -> Config:
    return Config(V, 12, 1, 16, 2, 1)


def pair() -> tuple[CodedPlans, CodePosterior]:
    """A writer and a guesser in float64 that do not know of each other."""
    torch.manual_seed(0)
    plans, posterior = CodedPlans(Transformer(config()), K, M).double(), CodePosterior(config(), K, M).double()
    torch.nn.init.normal_(plans.prior.weight, std=0.5)
    torch.nn.init.normal_(posterior.out.weight, std=0.3)
    return plans, posterior


def texts() -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


class Listed(Posterior):
    """Guesses one given tuple of plans: with it, an expectation over samples is a sum over tuples."""

    def __init__(self, posterior: CodePosterior, plan: Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.posterior, self.plan = posterior, plan

    def guess(self, text, samples, gradient, prompt=None, generator=None) -> Guess:  # type: ignore[no-untyped-def]
        log_q = self.posterior(text, prompt).log_softmax(-1)
        return Guess(self.plan, (self.plan * log_q).sum(-1))


def all_weights(plans: CodedPlans, posterior: CodePosterior) -> tuple[Tensor, Tensor]:
    """log w [K^m, B] and q [K^m, B] of every plan."""
    every = plans.one_hot(plans.plans)[:, None].expand(-1, B, -1, -1)
    log_q = (every * posterior(texts()).log_softmax(-1)).sum((-1, -2))
    return plans.log_joint(texts(), every).total - log_q, log_q.exp()


def exact(plans: CodedPlans, posterior: CodePosterior, k: int, kind: Kind) -> Tensor:
    """The expected bound [B], by a sum over all k-tuples of plans, in plain logarithms."""
    log_w, q = all_weights(plans, posterior)
    total = torch.zeros(B, dtype=torch.float64)
    for chosen in itertools.product(range(K**M), repeat=k):
        w = log_w[list(chosen)]
        value = w.mean(0) if kind == "elbo" else w.exp().mean(0).log()
        total = total + q[list(chosen)].prod(0) * value
    return total


# Laws, each with the bugs that it catches below.


@torch.no_grad()
def bounds_are_ordered_and_become_tight() -> None:
    plans, posterior = pair()
    log_p, log_posterior = plans.marginal(texts())
    elbo, *iwae = exact(plans, posterior, 1, "elbo"), *(exact(plans, posterior, k, "iwae") for k in (1, 2, 3, 4))
    _, q = all_weights(plans, posterior)
    gap = (q * (q.log() - log_posterior.T)).sum(0)
    assert torch.allclose(log_p - elbo, gap), "what the elbo leaves is KL(q || p(z | x))"
    assert torch.allclose(elbo, iwae[0])
    assert all((a < b).all() for a, b in itertools.pairwise(iwae)) and (iwae[-1] < log_p).all()
    generator = torch.Generator().manual_seed(0)
    many = [
        estimate(plans, posterior, texts(), samples=5000, kind=k, generator=generator).bound for k in get_args(Kind)
    ]
    assert (many[0] - elbo).abs().max() < 0.1, "the elbo stays where it is"
    assert (many[1] - log_p).abs().max() < 0.05, "iwae becomes log p(x)"


@torch.no_grad()
def a_perfect_guesser_leaves_no_gap() -> None:
    """With q = p(z | x) every weight is p(x), whatever the sample, and KL is that of the posterior from the prior."""
    plans, _ = pair()
    text = texts()
    log_p, log_posterior = plans.marginal(text)

    class Perfect(Posterior):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def guess(self, text, samples, gradient, prompt=None, generator=None) -> Guess:  # type: ignore[no-untyped-def]
            chosen = log_posterior.exp().multinomial(samples, replacement=True, generator=generator).T  # [k, B]
            log_q = log_posterior.T.gather(0, chosen)
            half = torch.stack([log_q, torch.zeros_like(log_q)], -1)  # all of it on the first token
            return Guess(plans.one_hot(plans.plans[chosen]), half)

    for kind in get_args(Kind):
        found = estimate(plans, Perfect(), text, samples=4000, kind=kind, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(found.bound, log_p)
    expected = (log_posterior.exp() * (log_posterior - plans.log_law())).sum(1).mean()
    assert abs(float(found.kl.sum() - expected)) < 0.01
    assert float(expected) > 0.01


def reinforce_is_unbiased(baseline: bool = True) -> None:
    """The mean of the estimator over all pairs of plans is the gradient of the expected bound, for both networks."""
    for kind in get_args(Kind):
        plans, posterior = pair()
        parameters = [*plans.parameters(), *posterior.parameters()]
        expected = torch.autograd.grad(exact(plans, posterior, 2, kind).sum(), parameters, allow_unused=True)
        _, q = all_weights(plans, posterior)
        every = plans.one_hot(plans.plans)
        mean = [torch.zeros_like(p) for p in parameters]
        for pair_of_plans in itertools.product(range(K**M), repeat=2):
            chosen = every[list(pair_of_plans), None].expand(-1, B, -1, -1)
            found = estimate(
                plans, Listed(posterior, chosen), texts(), samples=2, kind=kind, gradient="reinforce", baseline=baseline
            )
            weight = q[list(pair_of_plans)].prod(0).detach()
            gradient = torch.autograd.grad((weight * found.objective).sum(), parameters, allow_unused=True)
            for total, g in zip(mean, gradient, strict=True):
                total += 0 if g is None else g
        for a, b in zip(mean, expected, strict=True):
            assert torch.allclose(a, torch.zeros_like(a) if b is None else b, atol=1e-9), kind


@torch.no_grad()
def a_baseline_knows_nothing_of_its_sample() -> None:
    log_w = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for kind in get_args(Kind):
        before = leave_one_out(log_w, kind)
        for j in range(4):
            moved = log_w.clone()
            moved[j] += 5
            same = torch.isclose(leave_one_out(moved, kind), before)
            assert same[j].all() and not same[[i for i in range(4) if i != j]].any(), f"sample {j}, {kind}"
    by_hand = torch.stack([(log_w.sum(0) - w) / 3 for w in log_w])
    torch.testing.assert_close(leave_one_out(log_w, "elbo"), by_hand)


def equal_samples_earn_no_credit() -> None:
    """Where all samples are worth the same, the signal is zero: a baseline takes all of it away."""
    log_w = torch.full((3, 2), -7.0)
    for kind in get_args(Kind):
        torch.testing.assert_close(average(log_w, kind), torch.full((2,), -7.0))
        torch.testing.assert_close(leave_one_out(log_w, kind), torch.full((3, 2), -7.0))


def remedies_do_what_they_say() -> None:
    """`free` and `warmth` change what plan tokens are charged, token by token, and never the bound that is reported."""
    plans, posterior = pair()
    prior = plans.prior.weight

    def push(**kwargs: float) -> tuple[Tensor, Tensor]:
        found = estimate(plans, posterior, texts(), samples=8, generator=torch.Generator().manual_seed(3), **kwargs)
        return torch.autograd.grad(found.objective.sum(), prior)[0], found.bound

    (full, bound), (half, _), (none, _), (free, same) = push(), push(warmth=0.5), push(warmth=0.0), push(free=1e9)
    assert torch.allclose(half, full / 2) and not none.any() and not free.any() and full.any()
    assert torch.equal(bound, same)
    kl = estimate(plans, posterior, texts(), samples=8, generator=torch.Generator().manual_seed(3)).kl
    first = estimate(
        plans, posterior, texts(), samples=8, generator=torch.Generator().manual_seed(3), free=float(kl.mean())
    )
    more, less = kl.argmax(), kl.argmin()
    assert kl[more] > kl.mean() > kl[less]
    charged = (first.objective - first.bound).mean()  # what is no longer charged: the smaller KL
    assert torch.allclose(charged, kl[less])


LAWS: dict[str, Callable[[], None]] = {
    "ordered and tight": bounds_are_ordered_and_become_tight,
    "perfect": a_perfect_guesser_leaves_no_gap,
    "unbiased": reinforce_is_unbiased,
    "leave one out": a_baseline_knows_nothing_of_its_sample,
    "no credit": equal_samples_earn_no_credit,
    "remedies": remedies_do_what_they_say,
}


@pytest.mark.parametrize("law", LAWS)
def test_bounds_keep_their_laws(law: str) -> None:
    LAWS[law]()


def test_reinforce_is_unbiased_without_a_baseline_too() -> None:
    reinforce_is_unbiased(baseline=False)


def gradients(gradient: Gradient, baseline: bool = True, repeats: int = 300) -> tuple[Tensor, Tensor]:
    """Mean and variance of the elbo's gradient at q's last layer, over draws of 4 samples."""
    plans, posterior = pair()
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(repeats):
        value = estimate(
            plans, posterior, texts(), samples=4, gradient=gradient, baseline=baseline, generator=generator
        )
        found.append(torch.autograd.grad(value.objective.sum(), posterior.out.weight)[0].flatten())
    stacked = torch.stack(found)
    return stacked.mean(0), stacked.var(0).sum()


def test_the_baseline_quietens_and_straight_through_errs() -> None:
    plans, posterior = pair()
    truth = torch.autograd.grad(exact(plans, posterior, 1, "elbo").sum(), posterior.out.weight)[0].flatten()
    (with_, quiet), (_, loud) = gradients("reinforce"), gradients("reinforce", baseline=False)
    (straight, _) = gradients("reparameterised")
    assert quiet < 0.8 * loud
    error = (quiet / 300).sqrt()
    assert (with_ - truth).norm() < 3 * error, "unbiased"
    assert (straight - truth).norm() > 4 * error, "a relaxed gradient is another gradient"


def quadrature(plans: VectorPlans, text: Tensor) -> Tensor:
    """log p(x) [B] of a plan of one number, by the trapezoid rule on a fine grid."""
    nodes = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    joint = plans.log_joint(text, nodes[:, None, None, None].expand(-1, len(text), 1, 1)).total  # [N, B]
    return torch.trapezoid(joint.exp(), nodes, dim=0).log()


def test_vectors_integrate_to_the_marginal() -> None:
    torch.manual_seed(0)
    plans, posterior = VectorPlans(Transformer(config()), 1).double(), NormalPosterior(config(), 1).double()
    text, generator = texts(), torch.Generator().manual_seed(0)
    for parameter in posterior.out.parameters():  # q is the prior: no weight is far above the others
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        log_p = quadrature(plans, text)
        elbo = estimate(plans, posterior, text, samples=4000, generator=generator).bound
        iwae = estimate(plans, posterior, text, samples=4000, kind="iwae", generator=generator).bound
        every = torch.tensor(list(itertools.product(range(V), repeat=2)))
        assert abs(float(quadrature(plans, every).exp().sum()) - 1) < 1e-6, "a law over texts"
    assert (elbo < log_p).all() and (iwae - log_p).abs().max() < 0.02


def test_for_vectors_both_gradients_are_one() -> None:
    torch.manual_seed(0)
    plans, posterior = VectorPlans(Transformer(config()), 1).double(), NormalPosterior(config(), 1).double()
    means = []
    for gradient in get_args(Gradient):
        found = estimate(
            plans, posterior, texts(), samples=3000, gradient=gradient, generator=torch.Generator().manual_seed(0)
        )
        means.append(torch.autograd.grad(found.objective.sum(), posterior.out.bias)[0])
    assert (means[0] - means[1]).abs().max() < 0.15 * means[0].abs().max()


def test_straight_through_chooses_codes_and_passes_a_gradient() -> None:
    _, posterior = pair()
    for gradient in get_args(Gradient):
        plan, log_q = posterior.guess(texts(), 50, gradient, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(plan.detach().sort(-1).values[..., -1], torch.ones(50, B, M).double())
        torch.testing.assert_close(plan.detach().sum(-1), torch.ones(50, B, M).double())
        assert plan.requires_grad == (gradient == "reparameterised")
        law = posterior(texts()).softmax(-1)
        many = posterior.guess(texts(), 5000, gradient, generator=torch.Generator().manual_seed(0)).plan
        assert (many.detach().mean(0) - law).abs().max() < 0.03


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"kind": "tight"}, "kind"),
        ({"gradient": "straight"}, "gradient"),
        ({"kind": "iwae", "free": 0.1}, "elbo"),
        ({"kind": "iwae", "warmth": 0.5}, "elbo"),
        ({"samples": 1, "gradient": "reinforce"}, "leave-one-out"),
        ({"samples": 0}, "samples"),
    ],
)
def test_misfits_are_refused(kwargs: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        estimate(*pair(), texts(), **kwargs)


HERE = f"{plan_posterior.__name__}:"
BUGS = {
    "the KL has the wrong sign": Bug(
        f"{HERE}estimate", "(of_text - ratio.sum(-1))", "(of_text + ratio.sum(-1))", ("ordered and tight", "perfect")
    ),
    "the KL is charged with the wrong sign": Bug(
        f"{HERE}estimate", "log_w = of_text - (charged * ratio)", "log_w = of_text + (charged * ratio)", ("unbiased",)
    ),
    "a mean of exponentials without its 1/k": Bug(
        f"{HERE}average", " - math.log(log_w.shape[dim])", "", ("ordered and tight", "no credit")
    ),
    "a log of the mean where a mean of logs is meant": Bug(
        f"{HERE}average", 'kind == "elbo"', "False", ("ordered and tight", "leave one out")
    ),
    "a baseline of all samples, its own too": Bug(
        f"{HERE}leave_one_out",
        "(log_w.sum(0) - log_w) / (k - 1)",
        "(log_w.sum(0) / k).expand_as(log_w)",
        ("leave one out", "unbiased"),
    ),
    "the baseline forgets that one is left out": Bug(
        f"{HERE}leave_one_out", "/ (k - 1)", "/ k", ("leave one out", "no credit")
    ),
    "the signal has a gradient": Bug(f"{HERE}estimate", ").detach()  # [k, B]", ")", ("unbiased",)),
    "the score is of the first token": Bug(
        f"{HERE}estimate", "log_q.sum(-1)).sum(0)", "log_q[..., 0]).sum(0)", ("unbiased",)
    ),
    "free nats are what is charged": Bug(f"{HERE}estimate", "kl > free", "kl < free", ("remedies",)),
    "warm-up is forgotten": Bug(f"{HERE}estimate", "warmth * (kl", "1.0 * (kl", ("remedies",)),
}


@pytest.mark.parametrize(("bug", "law"), [(bug, law) for bug, planted in BUGS.items() for law in planted.red])
def test_a_planted_bug_turns_its_laws_red(bug: str, law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug].plant(monkeypatch)
    for name in ("average", "leave_one_out"):  # this file holds them by name
        monkeypatch.setitem(globals(), name, getattr(plan_posterior, name))
    monkeypatch.setitem(globals(), "estimate", plan_posterior.estimate)
    with pytest.raises(AssertionError):
        LAWS[law]()
