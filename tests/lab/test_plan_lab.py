"""Looking into plans: bits, units, agreement up to relabelling; and the arms of thought."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from pdref.data.leanings import Leanings
from pdref.lab import plan_lab, thought_arms
from pdref.methods.latent_plan import CodedPlans
from pdref.methods.plan_posterior import CodePosterior, estimate
from pdref.model.transformer import Config


def test_bits_are_those_of_the_joint() -> None:
    assert plan_lab.bits(torch.eye(4)) == pytest.approx(2)
    assert plan_lab.bits(torch.full((4, 4), 0.25)) == pytest.approx(0, abs=1e-6)
    source = Leanings(options=2, length=2, words=2, noise=0.3)
    text = source.sample(20_000, torch.Generator().manual_seed(0)).text
    assert plan_lab.bits(source.posterior(text)) == pytest.approx(source.bits(), abs=0.02)


def test_active_units_move_with_the_text() -> None:
    means = torch.stack([torch.linspace(-1, 1, 50), torch.full((50,), 3.0), 0.01 * torch.linspace(-1, 1, 50)], 1)
    assert plan_lab.active_units(means) == 1


def test_matching_finds_the_relabelling() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(4, (500,), generator=generator)
    for names in permutations(range(4)):
        found = plan_lab.match(true, torch.tensor(names)[true])
        assert found.accuracy == found.adjusted == 1
        assert (found.label[torch.tensor(names)] == torch.arange(4)).all()
    noisy = torch.where(torch.rand(500, generator=generator) < 0.3, torch.randint(4, (500,), generator=generator), true)
    best = max(float((torch.tensor(names)[noisy] == true).float().mean()) for names in permutations(range(4)))
    assert plan_lab.match(true, noisy).accuracy == pytest.approx(best)
    chance = plan_lab.match(true, torch.randint(4, (500,), generator=generator))
    assert abs(chance.adjusted) < 0.03 and chance.accuracy < 0.4
    merged = plan_lab.match(true, true.clamp(max=2))
    assert 0.3 < merged.adjusted < 0.9 and merged.accuracy < 0.9


def test_adjusted_agreement_is_the_count_of_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    true, found = torch.randint(3, (2, 40), generator=generator)
    a, b = (x[:, None] == x for x in (true, found))
    upper = torch.ones(40, 40).triu(1).bool()
    both, first, second, total = ((a & b) & upper).sum(), (a & upper).sum(), (b & upper).sum(), upper.sum()
    expected = first * second / total
    by_hand = (both - expected) / ((first + second) / 2 - expected)
    assert plan_lab.match(true, found).adjusted == pytest.approx(float(by_hand))


def test_learning_finds_the_known_plans() -> None:
    """A mixture, summed out exactly: nats come to the source's, and codes to its plans."""
    source = Leanings(options=2, length=6, words=4, noise=0.1)
    plans = CodedPlans(plan_lab.trunk(source.vocabulary, 10), 2, window=1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    losses = plan_lab.learn([plans], lambda _: -plans.marginal(source.sample(32, generator).text).log_p.mean(), 120)
    assert len(losses) == 120 and losses[-1] < losses[0]
    text = source.sample(500, torch.Generator().manual_seed(1)).text
    with torch.no_grad():
        log_p, log_posterior = plans.marginal(text)
    assert (source.log_p(text) - log_p).mean() < 0.15
    assert plan_lab.match(source.best(text)[:, 0], log_posterior.argmax(1)).accuracy > 0.9
    assert plan_lab.bits(log_posterior.exp()) == pytest.approx(source.bits(), abs=0.15)


def arms() -> tuple[CodedPlans, Leanings, torch.Tensor, torch.Tensor]:
    source = Leanings(options=2, length=3, words=3)
    torch.manual_seed(0)
    plans = CodedPlans(plan_lab.trunk(source.vocabulary, 10), 2)
    return plans, source, *source.sample(64, torch.Generator().manual_seed(0))


@torch.no_grad()
def test_arms_pay_for_what_they_put_out() -> None:
    plans, source, text, thoughts = arms()
    bills = {
        arm: thought_arms.bill(arm, plans, text, thoughts, source.coherent) for arm in ("shown", "latent", "dropped")
    }
    log_p, log_posterior = plans.marginal(text)
    own = log_posterior.gather(1, thoughts)[:, 0]
    assert bills["shown"].nats == bills["latent"].nats == pytest.approx(-float(log_p.mean()), rel=1e-5)
    assert bills["shown"].transcript == pytest.approx(-float((log_p + own).mean()), rel=1e-5), "H(z | x) more"
    given = plans.log_joint(text, plans.one_hot(torch.zeros_like(thoughts))).text
    assert bills["dropped"].nats == pytest.approx(-float(given.mean()), rel=1e-5)
    assert [bills[arm].output for arm in bills] == [4, 3, 3] and [bills[arm].forwards for arm in bills] == [4, 4, 3]
    kl = (log_posterior.exp() * (log_posterior - plans.log_law())).sum(1).mean() / math.log(2)
    assert bills["latent"].bits == pytest.approx(float(kl), rel=1e-4) and bills["dropped"].bits == 0
    with pytest.raises(ValueError, match="arm"):
        thought_arms.arm_nats("loud", plans, text, thoughts)  # type: ignore[arg-type]


def test_a_sum_over_plans_is_what_samples_come_to() -> None:
    torch.manual_seed(0)
    plans = CodedPlans(plan_lab.trunk(3, 10), 2, 2).double()
    posterior = CodePosterior(Config(3, 10, 1, 16, 2, 1), 2, 2).double()
    text = torch.randint(3, (2, 4), generator=torch.Generator().manual_seed(0))
    exact = plan_lab.summed_elbo(plans, posterior, text)
    with torch.no_grad():
        sampled = estimate(plans, posterior, text, samples=4000, generator=torch.Generator().manual_seed(0)).bound
    torch.testing.assert_close(exact, sampled, atol=0.02, rtol=0)
    fair, relaxed = (
        plan_lab.gradient_noise(plans, posterior, text, 200, gradient=gradient)
        for gradient in ("reinforce", "reparameterised")
    )
    assert fair.bias < 3 * fair.spread / 200**0.5 and relaxed.bias > 3 * relaxed.spread / 200**0.5
