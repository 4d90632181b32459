"""Planned Diffusion (arXiv 2510.18087): plan token by token, then denoise the spans side by side.

    p(x, z | c) = p_AR(z | c) prod_k p_D(x(k) | z, c)

    L = E_{Y, t ~ U(0,1)} 1/|Y| sum_i [ 1(y_i in Z) CE(f(y_<i), y_i) + 1/t 1(y_i in X) CE(f(M_i(Y_t)), y_i) ]

Two streams compute both terms in one forward: a clean causal copy of the document, on which plan tokens are predicted
and which finished spans become for later stages, and a noised copy of the spans. The released trainer differs in four
ways; `released_terms` is that trainer, so that the difference can be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdref.methods.autoregressive import next_token_nll, per_document_mean
from pdref.methods.decoding import Draw, Requests, Speaker
from pdref.methods.denoising import Canvas, Unmasking, denoise
from pdref.methods.generation import Generation
from pdref.methods.planning import Bounds, Sized, end_stage, plan_stage
from pdref.model.transformer import Transformer
from pdref.ops.impl import Impl
from pdref.ops.planned_nll import planned_nll
from pdref.text.document import Item
from pdref.text.layout import NO_SPAN, Layout, LayoutBuilder, Role
from pdref.text.mask import Siblings, Sight
from pdref.text.tags import CONTENT_FORBIDS, Tag

T_FLOOR = 1e-3


@dataclass(frozen=True, slots=True)
class Terms:
    """The two terms of the formula, token by token, before the mean over |Y|."""

    clean: Tensor  # [B, T] nats of each response token given its clean past
    diffusion: Tensor  # [B, T] (1/t) nats of each masked content token; its expectation is the ELBO's
    layout: Layout

    @property
    def plan(self) -> Tensor:
        """[B, T] nats of the planner's tokens, the Z of the formula."""
        return self.clean * self.layout.planned

    def loss(self, clean_weight: float = 0.0) -> Tensor:
        """The formula; `clean_weight` adds next-token prediction of the other response tokens (the AR baseline)."""
        rest = clean_weight * self.clean * ~self.layout.planned
        return per_document_mean(self.plan + self.diffusion + rest, self.layout).mean()


def draw_times(layout: Layout, generator: torch.Generator | None = None) -> Tensor:
    """One noise level per span, [B, T] in [T_FLOOR, 1], stratified over the batch's spans; 1 outside spans.

    The spans' terms are summed, so a level per span has the formula's expectation with less variance than one
    per document.
    """
    in_span = layout.span != NO_SPAN  # [B, T]
    key = layout.stage * (layout.span.max() + 1) + layout.span
    rows = torch.arange(layout.shape[0], device=key.device)[:, None]
    _, which = torch.unique((rows * (key.max() + 1) + key)[in_span], return_inverse=True)
    count = int(which.max()) + 1
    start = torch.rand((), generator=generator, device="cpu")
    levels = (start + torch.randperm(count, generator=generator, device="cpu") / count) % 1.0
    levels = levels.clamp_min(T_FLOOR).to(which.device)
    return torch.ones(layout.shape, device=key.device).masked_scatter(in_span, levels[which])


def draw_noise(layout: Layout, generator: torch.Generator | None = None) -> Tensor:
    """A number in [0, 1) per token, [B, T]; drawn on the CPU, so that a seed means the same on every device."""
    return torch.rand(layout.shape, generator=generator, device="cpu").to(layout.token.device)


def terms(
    model: Transformer,
    layout: Layout,
    generator: torch.Generator | None = None,
    times: Tensor | None = None,
    siblings: Siblings = "sparse",
    impl: Impl = "auto",
) -> Terms:
    """Both terms for a batch of documents, from one two-stream forward.

    `times` [B, T] are the noise levels of the content tokens (drawn, if None).
    """
    times = draw_times(layout, generator) if times is None else times
    masked = (layout.role == Role.CONTENT) & (draw_noise(layout, generator) < times)  # [B, T]

    copy, index = layout.span_copy()  # [B, U]
    both = Layout.concatenate([layout, copy.masked(masked.gather(1, index) & copy.real)])  # [B, T + U]
    hidden = model(both.token, both.position, Sight.of(both, both, siblings), impl=impl)
    return Terms(*planned_nll(hidden, model.unembed.weight, layout, masked, times, impl), layout)


def released_terms(
    model: Transformer,
    layout: Layout,
    generator: torch.Generator | None = None,
    siblings: Siblings = "sparse",
    impl: Impl = "auto",
) -> Terms:
    """The terms as the released trainer computes them, which differ from the formula in four ways.

    (a) 1/t scales the plan term too. (b) Labels are shifted by one but the gate on masked positions is not, so some
    targets are visible tokens, and a model so trained is `Speaker(shifted=True)`. (c) The <async> tags can be masked
    in training though never at inference. (d) Later stages are trained on noised earlier spans: one stream.
    """
    single = layout.in_place()
    times = torch.rand(layout.shape[0], 1, generator=generator, device="cpu")  # [B, 1]
    times = times.clamp_min(T_FLOOR).to(layout.token.device)
    async_tags = (layout.token == Tag.ASYNC) | (layout.token == Tag.END_ASYNC)
    maskable = (layout.role == Role.CONTENT) | async_tags  # (c)
    masked = maskable & (draw_noise(layout, generator) < times)
    noised = single.masked(masked)  # (d)
    hidden = model(noised.token, noised.position, Sight.of(noised, noised, siblings), impl=impl)
    nats = next_token_nll(model, hidden, layout, impl)  # [B, T], of token i from hidden i-1
    gated = masked.roll(1, dims=1) & layout.real  # (b): the gate of i-1 on the target i
    return Terms(nats * layout.planned / times, nats * gated / times, layout)  # (a)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A Monte-Carlo mean and its standard error, [B] each, in nats."""

    mean: Tensor
    error: Tensor


@dataclass(frozen=True, slots=True)
class Likelihood:
    """log p(x, z | c) of each document in nats: exact for the plan, a lower bound for the spans."""

    plan: Tensor  # [B] log p_AR(z | c)
    spans: Estimate  # sum_k ELBO of log p_D(x(k) | z, c)

    @property
    def joint(self) -> Tensor:
        """[B]."""
        return self.plan + self.spans.mean


@torch.no_grad()
def log_likelihood(
    model: Transformer,
    layout: Layout,
    samples: int = 64,
    generator: torch.Generator | None = None,
    siblings: Siblings = "sparse",
    impl: Impl = "auto",
) -> Likelihood:
    """The joint log-likelihood of a batch; the diffusion term from `samples` >= 2 noise levels per span."""
    if samples < 2:
        raise ValueError(f"an error needs at least 2 samples, not {samples}")
    draws = [terms(model, layout, generator, siblings=siblings, impl=impl) for _ in range(samples)]
    bounds = -torch.stack([draw.diffusion.sum(1) for draw in draws])  # [samples, B]
    return Likelihood(-draws[0].plan.sum(1), Estimate(bounds.mean(0), bounds.std(0) / samples**0.5))


@torch.inference_mode()
def sample(
    speaker: Speaker,
    prompts: Sequence[str],
    unmasking: Unmasking | None = None,
    draw: Draw | None = None,
    length_factor: float = 1.0,
    siblings: Siblings = "sparse",
    plans: Sequence[Sequence[Item] | None] | None = None,
    bounds: Bounds | None = None,
    cached: bool = True,
    impl: Impl = "auto",
) -> list[Generation]:
    """Answer `prompts` side by side: plan, denoise, commit, until each document ends.

    `plans` gives the first stage's plan of each prompt (None: the model plans). `length_factor` scales the planned
    lengths. The commit is one clean forward over finished spans: it writes the keys that later stages read and
    predicts whether there is one. Heads that look ahead draft the plans and change none (see `drafting`).
    Raises ValueError for a factor that is not positive or plans that do not match.
    """
    unmasking, draw, bounds = unmasking or Unmasking(), draw or Draw(), bounds or Bounds()
    if length_factor <= 0:
        raise ValueError(f"the length factor is positive, not {length_factor}")
    requests = Requests(speaker, prompts, draw, cached, impl)
    active = list(range(len(prompts)))
    for stage in range(bounds.stages):
        with requests.timed("plan"):
            given = plans if stage == 0 else None
            planned = plan_stage(requests, active, stage, bounds, given, length_factor)
        if not planned:
            break
        with requests.timed("denoise"):
            _fill(requests, planned, stage, unmasking, siblings)
        with requests.timed("commit"):
            requests.read([*planned])
            active = end_stage(requests, [*planned], stage, bounds)
        if not active:
            break
    return requests.finish()


def _fill(requests: Requests, plans: dict[int, Sized], stage: int, unmasking: Unmasking, siblings: Siblings) -> None:
    """Build the scaffolds, denoise them and put the finished spans into the requests."""
    spans, owners, starts = [], [], []
    for b, plan in plans.items():
        start = requests.length(b)
        for k, (item, length) in enumerate(plan):
            builder = LayoutBuilder(requests.tokenizer, requests.grammar)
            builder.open_span(item, stage, k)
            builder.add([Tag.MASK] * length, Role.CONTENT, stage, k)
            builder.close_span(stage, k)
            spans.append(builder.build())
            owners.append(b)
            starts.append(start)
            requests.record(b, "scaffold", start, spans[-1].token[0].tolist())
            start += len(builder.rows)
    canvas = Canvas.of(spans, owners, starts)
    tokens = denoise(requests, canvas, unmasking, siblings, CONTENT_FORBIDS)
    for b, span, ids in zip(owners, spans, tokens.tolist(), strict=True):
        rows = zip(ids, span.role[0].tolist(), span.span[0].tolist(), strict=False)
        requests.builders[b].rows += [(token, role, stage, k) for token, role, k in rows]
