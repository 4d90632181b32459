"""Latent plans: the marginal and the posterior are those of enumeration, and samples come from the joint."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from laws.planting import Bug
from pdref.methods.decoding import Draw
from pdref.methods.latent_plan import CodedPlans, LatentPlan, VectorPlans, read
from pdref.methods.plan_posterior import CodePosterior, NormalPosterior, estimate
from pdref.methods.plan_tree import TreePlans
from pdref.model.transformer import Config, Transformer
from pdref.ops.impl import Impl

V, K, M, T = 4, 3, 2, 3
IMPLS: list[Impl] = ["naive", "torch", "triton"]


def trunk(layers: int = 2) -> Transformer:
    torch.manual_seed(0)
    return Transformer(Config(V, 12, layers, 16, 2, 1))


def coded(window: int | None = None, length: int = M) -> CodedPlans:
    """A float64 model whose codes say different things, in its prior too."""
    plans = CodedPlans(trunk(), K, length, window).double()
    torch.nn.init.normal_(plans.prior.weight)
    return plans


def texts(B: int = 3) -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


def prompts(B: int = 3) -> Tensor:
    return torch.randint(V, (B, 2), generator=torch.Generator().manual_seed(2))


def by_hand(plans: CodedPlans, text: list[int], plan: list[int], prompt: list[int]) -> float:
    """log p(z, x | c) from one prefix after another: each token is asked for by a forward that has not seen it."""
    model, total = plans.model, 0.0
    vectors = [plans.start, *(model.embed.weight[c] for c in prompt)]
    for i, code in enumerate(plan):
        state = read(model, torch.stack(vectors)[None], impl="naive")[0, -1]
        scores = [math.exp(float(state @ row)) for row in plans.prior.weight]
        total += math.log(scores[code] / math.fsum(scores))
        vectors.append(plans.codebook[i, code])
    for token in text:
        state = read(model, torch.stack(vectors)[None], impl="naive")[0, -1]
        scores = [math.exp(float(state @ row)) for row in model.unembed.weight]
        total += math.log(scores[token] / math.fsum(scores))
        vectors.append(model.embed.weight[token])
    return total


# Laws, each with the bugs that it catches below.


@torch.no_grad()
def plans_are_enumerated(impl: Impl = "torch") -> None:
    """Marginal and posterior of texts with prompts, against plan after plan and token after token."""
    plans, text, prompt = coded(), texts(), prompts()
    expected = torch.tensor(
        [
            [by_hand(plans, x.tolist(), list(z), c.tolist()) for z in itertools.product(range(K), repeat=M)]
            for x, c in zip(text, prompt, strict=True)
        ],
        dtype=torch.float64,
    )
    used = plans.float() if impl == "triton" else plans  # the interpreter takes float32
    log_p, log_posterior = used.marginal(text, prompt, impl)
    assert (log_p.double().exp() / expected.logsumexp(1).exp() - 1).abs().max() < 1e-5, "p(x)"
    assert (log_posterior.double().exp() - expected.softmax(1)).abs().max() < 1e-5, "p(z | x)"


@torch.no_grad()
def all_texts_together_are_certain() -> None:
    every = torch.tensor(list(itertools.product(range(V), repeat=T)))
    log_p, log_posterior = coded().marginal(every)
    assert abs(float(log_p.exp().sum()) - 1) < 1e-9
    assert torch.allclose(log_posterior.exp().sum(1), torch.ones(len(every)).double())


def the_gradient_is_weighted_by_the_posterior(impl: Impl = "torch") -> None:
    """d log p(x) = sum_z p(z | x) d log p(x, z), for every parameter of writer, codes and prior."""
    plans, text = coded(), texts()
    if impl == "triton":
        plans = plans.float()
    parameters = dict(plans.named_parameters())
    found = torch.autograd.grad(plans.marginal(text, impl=impl).log_p.sum(), parameters.values())
    every = plans.one_hot(plans.plans)[:, None].expand(-1, len(text), -1, -1)  # [K^m, B, m, K]
    joint = plans.log_joint(text, every, impl="naive").total  # [K^m, B]
    expected = torch.autograd.grad((joint.detach().softmax(0) * joint).sum(), parameters.values())
    for name, a, b in zip(parameters, found, expected, strict=True):
        assert (a - b).abs().max() < 1e-5 * max(1.0, float(b.abs().max())), name


def tokens_see_what_they_may() -> None:
    """Text tokens see start, prompt, plan and their window; nothing sees ahead."""
    for window in (None, 1, 2):
        plans, text, prompt = coded(window), texts(1), prompts(1)
        plans.model.blocks = plans.model.blocks[:1]  # one layer: what it sees is all it knows
        plan = plans.one_hot(torch.tensor([[0, 2]]))
        with torch.no_grad():
            before = plans.hidden(plan, text, prompt)[0]
            for i in range(M):  # another code at place i
                other = plan.clone()
                other[0, i] = other[0, i].roll(1)
                moved = (plans.hidden(other, text, prompt)[0] - before).abs().amax(1) > 1e-9
                assert moved.tolist() == [j > i for j in range(M + T)], f"plan token {i}"
            for t in range(T):
                other_text = text.clone()
                other_text[0, t] = (text[0, t] + 1) % V
                moved = (plans.hidden(plan, other_text, prompt)[0] - before).abs().amax(1) > 1e-9
                reached = [M + t < j and (window is None or j - M - t <= window) for j in range(M + T)]
                assert moved.tolist() == reached, f"token {t} under a window of {window}"
            other_prompt = (prompt + 1) % V
            assert ((plans.hidden(plan, text, other_prompt)[0] - before).abs().amax(1) > 1e-9).all()


def frequencies_match(count: int = 4000) -> None:
    """Plans and texts together are drawn with the probabilities of the joint: a chi-square test over all of them."""
    torch.manual_seed(1)
    plans = CodedPlans(Transformer(Config(2, 6, 1, 16, 2, 1)), 2, 2)
    torch.nn.init.normal_(plans.prior.weight)
    drawn = plans.sample(count, 2, draw=Draw(1.0, generator=torch.Generator().manual_seed(0)))
    bits = torch.cat([drawn.plan.argmax(-1), drawn.text], 1)  # [B, 4]
    counts = torch.bincount(bits @ torch.tensor([8, 4, 2, 1]), minlength=16)
    every = torch.tensor(list(itertools.product(range(2), repeat=4)))
    with torch.no_grad():
        law = plans.log_joint(every[:, 2:], plans.one_hot(every[:, :2])).total.exp()
    assert abs(float(law.sum()) - 1) < 1e-5
    statistic = ((counts - count * law) ** 2 / (count * law)).sum()
    assert statistic < 37.7, f"chi-square {statistic:.1f} of 15 degrees: above 37.7 once in a thousand"


def company_changes_nothing() -> None:
    for plans in (coded(1), VectorPlans(trunk(), 2, M).double()):
        prompt, seeds = prompts(), [5, 6, 7]
        together = plans.sample(3, T, prompt, draw=Draw(1.0, seeds=seeds))
        for b in range(3):
            alone = plans.sample(1, T, prompt[b : b + 1], draw=Draw(1.0, seeds=seeds[b : b + 1]))
            assert torch.equal(alone.text[0], together.text[b]) and torch.allclose(alone.plan[0], together.plan[b])


LAWS: dict[str, Callable[[], None]] = {
    "enumeration": plans_are_enumerated,
    "total probability": all_texts_together_are_certain,
    "posterior-weighted": the_gradient_is_weighted_by_the_posterior,
    "sight": tokens_see_what_they_may,
    "frequencies": frequencies_match,
    "company": company_changes_nothing,
}


@pytest.mark.parametrize("law", LAWS)
def test_a_plan_is_a_latent_variable(law: str) -> None:
    LAWS[law]()


@pytest.mark.parametrize("impl", IMPLS)
def test_every_implementation_equals_enumeration(impl: Impl) -> None:
    if impl == "triton":
        pytest.importorskip("triton")
    plans_are_enumerated(impl)
    the_gradient_is_weighted_by_the_posterior(impl)


def test_the_law_of_plans_is_the_prior_of_the_marginal() -> None:
    plans, text, prompt = coded(), texts(), prompts()
    law = plans.log_law(prompt)
    torch.testing.assert_close(law.exp().sum(1), torch.ones(3).double())
    joint = [plans.log_joint(text, plans.one_hot(z).expand(3, -1, -1), prompt) for z in plans.plans]
    torch.testing.assert_close(law, torch.stack([j.prior.sum(-1) for j in joint], 1))
    assert plans.log_law().shape == (1, K**M)


def test_vectors_have_the_normal_prior() -> None:
    plans = VectorPlans(trunk(), 2, M).double()
    z = torch.randn(5, 3, M, 2, dtype=torch.float64)
    joint = plans.log_joint(texts(), z)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(joint.prior, expected.double())
    assert joint.total.shape == (5, 3)
    drawn = plans.sample(2000, 1, draw=Draw(1.0)).plan
    assert drawn.mean().abs() < 0.05 and (drawn.var() - 1).abs() < 0.1


def test_without_temperature_everyone_writes_the_best() -> None:
    plans = coded()
    written = plans.sample(4, T, draw=Draw(0.0))
    assert (written.text == written.text[0]).all() and (written.plan == written.plan[0]).all()
    assert int(written.plan[0, 0].argmax()) == int(plans.log_law().exp().view(K, K).sum(1).argmax())
    given = plans.one_hot(torch.tensor([[1, 2]] * 4))
    assert torch.equal(plans.sample(4, T, plan=given).plan, given), "a plan may be given"


def test_no_tensor_is_made_without_saying_where() -> None:
    """On the default device "meta", which holds no numbers, a computation that meets such a tensor fails."""
    vectors = VectorPlans(trunk(), 2, M)
    tree = TreePlans(trunk(), 2, 2, 3)
    pairs = [
        (coded(1).float(), CodePosterior(trunk().config, K, M)),
        (vectors, NormalPosterior(trunk().config, 2, M)),
    ]
    text, noise = texts(), torch.Generator().manual_seed(0)
    with torch.device("meta"):
        losses = [pairs[0][0].marginal(text).log_p.sum(), tree.marginal(text).log_p.sum()]
        for plans, posterior in pairs:
            for kind in ("elbo", "iwae"):
                found = estimate(plans, posterior, text, kind=kind, gradient="reinforce", generator=noise)
                losses.append(found.objective.sum())
            plans.sample(2, T)
        tree.sample(2, 1)
        for loss in losses:
            loss.backward()
    assert all(loss.device.type == "cpu" and loss.isfinite() for loss in losses)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: CodedPlans(trunk(), 0), "codes"),
        (lambda: CodedPlans(trunk(), 2, 0), "length"),
        (lambda: CodedPlans(trunk(), 2, window=0), "window"),
        (lambda: CodedPlans(trunk(), 10, 5).plans, "too many"),
        (lambda: coded().marginal(torch.zeros(1, 20, dtype=torch.int64)), "context"),
    ],
)
def test_misfits_are_refused(make: Callable[[], LatentPlan], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


HERE, WINDOW = "pdref.methods.latent_plan:", "pdref.text.window:"
BUGS = {
    "a text is predicted by states that have read it": Bug(
        f"{HERE}LatentPlan.hidden", "return states[", "return states.roll(-1, -2)[", ("enumeration",)
    ),
    "the prior is of one plan token": Bug(
        f"{HERE}CodedPlans.marginal", "of_plan).sum(-1)", "of_plan)[..., 0]", ("enumeration", "total probability")
    ),
    "plans are read backwards": Bug(
        f"{HERE}CodedPlans.vectors", "plan, self.codebook", "plan.flip(-2), self.codebook", ("enumeration", "sight")
    ),
    "the window hides the plan": Bug(f"{WINDOW}within", "near | kept", "near", ("sight",)),
    "the window is one too wide": Bug(f"{WINDOW}within", "- key < window", "- key <= window", ("sight",)),
    "the window sees ahead": Bug(f"{WINDOW}within", "past & (near", "(near", ("sight",)),
    "plan tokens are drawn from one place": Bug(
        f"{HERE}CodedPlans.draw_plan", "[:, i]\n", "[:, 0]\n", ("frequencies",)
    ),
    "plan and text share their noise": Bug(
        f"{HERE}LatentPlan.sample", "new_tensor(self.length + t)", "new_tensor(t)", ("frequencies",)
    ),
    "noise by row of the batch": Bug(
        f"{HERE}LatentPlan.sample", "draw.request_seeds(count)", "torch.arange(count)", ("company",)
    ),
}


@pytest.mark.parametrize(("bug", "law"), [(bug, law) for bug, planted in BUGS.items() for law in planted.red])
def test_a_planted_bug_turns_its_laws_red(bug: str, law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug].plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        LAWS[law]()
