"""Plans that are trees: sum-product against plan after plan, and samples from the joint."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from laws.planting import Bug
from pdref.methods.decoding import Draw
from pdref.methods.latent_plan import read
from pdref.methods.plan_tree import TreePlans
from pdref.model.transformer import Config, Transformer
from pdref.ops.impl import Impl

V, A, C, N, L = 3, 2, 3, 2, 2
IMPLS: list[Impl] = ["naive", "torch", "triton"]


def tree(tops: int = A, options: int = C) -> TreePlans:
    torch.manual_seed(0)
    plans = TreePlans(Transformer(Config(V, 8, 1, 16, 2, 1)), tops, options, N).double()
    torch.nn.init.normal_(plans.top_scores)
    torch.nn.init.normal_(plans.option_scores)
    return plans


def texts(B: int = 3) -> Tensor:
    return torch.randint(V, (B, N * L), generator=torch.Generator().manual_seed(1))


def by_hand(plans: TreePlans, text: Tensor) -> Tensor:
    """log p(x, a, b_1, .., b_n) of all A C^n plans, one after another, [B, A, C, .., C]."""
    top, option = plans.top_scores.softmax(0).log(), plans.option_scores.softmax(1).log()
    found = torch.zeros(len(text), A, *[C] * N, dtype=top.dtype)
    for a, *bs in itertools.product(range(A), *[range(C)] * N):
        total = top[a] + sum(option[a, b] for b in bs)
        for i, b in enumerate(bs):
            part = text[:, i * L : (i + 1) * L]
            told = torch.stack([plans.places.weight[i], plans.tops.weight[a], plans.options.weight[b]])
            for t in range(L):  # each token is asked for by a forward that has not seen it
                x = torch.cat([told.expand(len(text), -1, -1), plans.model.embed(part[:, :t])], 1)
                log_words = plans.model.logits(read(plans.model, x, impl="naive")[:, -1]).log_softmax(-1)
                total = total + log_words.gather(1, part[:, t : t + 1])[:, 0]
        found[(slice(None), a, *bs)] = total
    return found


@torch.no_grad()
def sum_product_is_enumeration(impl: Impl = "torch") -> None:
    plans, text = tree(), texts()
    joint = by_hand(plans, text)
    used = plans.float() if impl == "triton" else plans
    log_p, log_top, log_options = (x.double() for x in used.marginal(text, impl))
    flat = joint.flatten(1)
    assert (log_p.exp() / flat.logsumexp(1).exp() - 1).abs().max() < 1e-5
    posterior = flat.softmax(1).view_as(joint)
    assert (log_top.exp() - posterior.sum((2, 3))).abs().max() < 1e-5
    first, second = posterior.sum(3), posterior.sum(2)  # [B, A, C]: p(a, b_i | x)
    found = (log_top[..., None, None] + log_options).exp()  # [B, A, n, C]
    assert (found - torch.stack([first, second], 2)).abs().max() < 1e-5


@torch.no_grad()
def all_texts_together_are_certain() -> None:
    every = torch.tensor(list(itertools.product(range(V), repeat=N * L)))
    assert abs(float(tree().marginal(every).log_p.exp().sum()) - 1) < 1e-9


def the_gradient_is_weighted_by_the_posterior(impl: Impl = "torch") -> None:
    plans, text = tree(), texts()
    if impl == "triton":
        plans = plans.float()
    found = torch.autograd.grad(plans.marginal(text, impl).log_p.sum(), list(plans.parameters()), allow_unused=True)
    joint = by_hand(plans, text).flatten(1)
    weighted = (joint.detach().softmax(1) * joint).sum()
    expected = torch.autograd.grad(weighted, list(plans.parameters()), allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None) and (a is None or (a - b).abs().max() < 1e-5 * max(1.0, float(b.abs().max())))


def frequencies_match(count: int = 4000) -> None:
    torch.manual_seed(0)
    plans = TreePlans(Transformer(Config(2, 8, 1, 16, 2, 1)), 2, 2, 2)
    torch.nn.init.normal_(plans.option_scores)
    drawn = plans.sample(count, 1, Draw(1.0, generator=torch.Generator().manual_seed(0)))
    bits = torch.cat([drawn.plan, drawn.text], 1)  # a, b_1, b_2, x_1, x_2
    counts = torch.bincount(bits @ torch.tensor([16, 8, 4, 2, 1]), minlength=32)
    with torch.no_grad():
        every = torch.tensor(list(itertools.product(range(2), repeat=2)))
        part = plans.log_parts(every)  # [4, A, C, n]
        law = []
        for a, b1, b2, x1, x2 in itertools.product(range(2), repeat=5):
            row = part[2 * x1 + x2, a]
            law.append(plans.log_top[a] + plans.log_options[a, b1] + plans.log_options[a, b2] + row[b1, 0] + row[b2, 1])
        law = torch.stack(law).exp()
    assert abs(float(law.sum()) - 1) < 1e-5
    statistic = ((counts - count * law) ** 2 / (count * law)).sum()
    assert statistic < 61.1, f"chi-square {statistic:.1f} of 31 degrees: above 61.1 once in a thousand"


def company_changes_nothing() -> None:
    plans = tree()
    together = plans.sample(3, L, Draw(1.0, seeds=[5, 6, 7]))
    for b in range(3):
        alone = plans.sample(1, L, Draw(1.0, seeds=[5 + b]))
        assert torch.equal(alone.text[0], together.text[b]) and torch.equal(alone.plan[0], together.plan[b])


LAWS: dict[str, Callable[[], None]] = {
    "enumeration": sum_product_is_enumeration,
    "total probability": all_texts_together_are_certain,
    "posterior-weighted": the_gradient_is_weighted_by_the_posterior,
    "frequencies": frequencies_match,
    "company": company_changes_nothing,
}


@pytest.mark.parametrize("law", LAWS)
def test_a_tree_is_summed_out(law: str) -> None:
    LAWS[law]()


@pytest.mark.parametrize("impl", IMPLS)
def test_every_implementation_equals_enumeration(impl: Impl) -> None:
    if impl == "triton":
        pytest.importorskip("triton")
    sum_product_is_enumeration(impl)
    the_gradient_is_weighted_by_the_posterior(impl)


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match="tree"):
        tree(tops=0)
    with pytest.raises(ValueError, match="split"):
        tree().marginal(torch.zeros(1, 3, dtype=torch.int64))


HERE = "pdref.methods.plan_tree:TreePlans."
BUGS = {
    "parts choose together": Bug(
        f"{HERE}marginal", "self.log_top + of_parts.sum(-1)", "self.log_top + of_parts.mean(-1)", ("enumeration",)
    ),
    "the best option instead of their sum": Bug(
        f"{HERE}marginal", "leaves.logsumexp(2)", "leaves.amax(2)", ("enumeration", "total probability")
    ),
    "options forget their law": Bug(
        f"{HERE}marginal", "self.log_options[..., None] + ", "", ("enumeration", "total probability")
    ),
    "tops forget their law": Bug(
        f"{HERE}marginal", "self.log_top + of_parts", "of_parts", ("enumeration", "total probability")
    ),
    "states are off by one": Bug(f"{HERE}states", "[..., 2:, :]", "[..., 1:-1, :]", ("enumeration",)),
    "parts share their noise": Bug(
        f"{HERE}sample", "1 + n * (1 + t) + place", "1 + n * (1 + t) + 0 * place", ("frequencies",)
    ),
    "options are drawn without their top": Bug(
        f"{HERE}sample", "self.log_options[top]", "self.log_options[0 * top]", ("frequencies",)
    ),
}


@pytest.mark.parametrize(("bug", "law"), [(bug, law) for bug, planted in BUGS.items() for law in planted.red])
def test_a_planted_bug_turns_its_laws_red(bug: str, law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug].plant(monkeypatch)
    with pytest.raises(AssertionError):
        LAWS[law]()
