"""Layouts of a given number of tokens, without text, for ops that read nothing but a layout."""

from __future__ import annotations

import torch

from pdref.text.layout import NO_SPAN, Layout, Role


def two_streams(T: int, spans: int, stages: int = 1, seed: int = 0) -> Layout:
    """A clean document and the noised copy of its spans, together T tokens, [1, T].

    About a tenth, at least one token, is prompt and plans. The rest are spans of unequal length, spread over the
    stages; where there are more of them than tokens, some are empty.
    """
    generator = torch.Generator().manual_seed(seed)
    content = (T - max(1, T // 10)) // 2  # tokens in spans, of one stream
    weights = 0.3 + torch.rand(spans, generator=generator)
    span_of = (weights.cumsum(0) / weights.sum() * content).round().long()  # where each span ends
    number = torch.searchsorted(span_of, torch.arange(content), right=True)  # [content]
    first = torch.arange(stages) * spans // stages  # the first span of each stage
    stage = torch.searchsorted(first, number, right=True) - 1
    plans = torch.arange(T - 2 * content) * stages // max(1, T - 2 * content)  # the stages of tokens outside spans
    span = torch.cat([torch.full_like(plans, NO_SPAN), number - first[stage]])
    role = torch.where(span == NO_SPAN, int(Role.PLAN), int(Role.CONTENT))
    role[0] = int(Role.PROMPT)
    order = torch.cat([plans, stage]).argsort(stable=True)  # by stage, and within one its plan first
    role, stage, span = (x[order][None] for x in (role, torch.cat([plans, stage]), span))
    clean = Layout(torch.zeros_like(role), role, stage, span, torch.arange(role.shape[1])[None], torch.zeros_like(role))
    return Layout.concatenate([clean, clean.span_copy()[0]])
