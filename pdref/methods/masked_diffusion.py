"""Masked diffusion (MDLM, arXiv 2406.07524) of a whole response, plan and tags included.

    -log p(x | c) <= E_{t ~ U(0,1)} [ (1/t) sum_{i : x_i masked} CE(f(x_t), x_i) ]

It is Planned Diffusion with no plan and one span: the response, filled with <pad> to a fixed length, is the span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pdref.methods.autoregressive import per_document_mean
from pdref.methods.decoding import Draw, Requests, Speaker
from pdref.methods.denoising import Canvas, Unmasking, denoise
from pdref.methods.generation import Generation
from pdref.methods.planned_diffusion import draw_noise, draw_times
from pdref.model.transformer import Transformer
from pdref.ops.impl import Impl
from pdref.ops.token_nll import IGNORE, token_nll
from pdref.text.layout import Layout, LayoutBuilder, Role, Stream, TooLong
from pdref.text.mask import Sight
from pdref.text.tags import Tag


def as_one_span(layout: Layout, length: int) -> Layout:
    """Documents as prompt and one NOISED span of `length` tokens, their whole response; [B, T'].

    Raises TooLong for a longer response.
    """
    prompt = layout.role == Role.PROMPT
    longest = int(layout.response.sum(1).max())
    if longest > length:
        raise TooLong(f"a response of {longest} tokens does not fit {length}")
    end = prompt.sum(1, keepdim=True) + length  # [B, 1]
    grow = max(0, int(end.max()) - layout.shape[1])
    token = torch.nn.functional.pad(layout.token, (0, grow), value=int(Tag.PAD))[:, : int(end.max())]
    at = torch.arange(token.shape[1], device=token.device).expand_as(token)
    given = at < prompt.sum(1, keepdim=True)
    outside = at >= end
    return Layout(
        token=token,
        role=torch.where(given, int(Role.PROMPT), torch.where(outside, int(Role.PAD), int(Role.CONTENT))),
        stage=torch.zeros_like(token),
        span=torch.where(given | outside, -1, 0),
        position=at.contiguous(),
        stream=torch.where(given | outside, int(Stream.CLEAN), int(Stream.NOISED)),
    )


def nll_bound(
    model: Transformer, layout: Layout, generator: torch.Generator | None = None, impl: Impl = "auto"
) -> Tensor:
    """(1/t) nats of each masked token [B, T] of layouts from `as_one_span`; summed, a draw of the bound."""
    times = draw_times(layout, generator)
    masked = (layout.role == Role.CONTENT) & (draw_noise(layout, generator) < times)
    noised = layout.masked(masked)
    hidden = model(noised.token, noised.position, Sight.of(noised, noised), impl=impl)
    return token_nll(hidden, model.unembed.weight, layout.token.masked_fill(~masked, IGNORE), impl) / times


def objective(
    model: Transformer, layout: Layout, generator: torch.Generator | None = None, impl: Impl = "auto"
) -> Tensor:
    """Mean over documents of bounded nats per response token; a scalar."""
    return per_document_mean(nll_bound(model, layout, generator, impl), layout).mean()


@torch.inference_mode()
def sample(
    speaker: Speaker,
    prompts: Sequence[str],
    length: int,
    unmasking: Unmasking | None = None,
    draw: Draw | None = None,
    cached: bool = True,
    impl: Impl = "auto",
) -> list[Generation]:
    """Denoise whole responses of `length` tokens; what follows the first <eos> is dropped.

    Raises TooLong if prompt and response exceed the context.
    """
    speaker = replace(speaker, shifted=False)  # `objective` never shifts
    requests = Requests(speaker, prompts, draw or Draw(), cached, impl)
    rows = range(len(prompts))
    for b in rows:
        if requests.room(b) < length:
            raise TooLong(f"prompt {b} leaves {requests.room(b)} tokens of {requests.context}; {length} are asked for")
    builder = LayoutBuilder(speaker.tokenizer, speaker.grammar)
    builder.add([Tag.MASK] * length, Role.CONTENT, 0, 0)
    canvas = Canvas.of([builder.build()] * len(prompts), list(rows), [requests.length(b) for b in rows])
    with requests.timed("plan"):
        requests.read(rows)
    for b in rows:
        requests.record(b, "scaffold", requests.length(b), [Tag.MASK] * length)
    with requests.timed("denoise"):
        tokens = denoise(requests, canvas, unmasking or Unmasking(), forbidden=(Tag.MASK, Tag.BOS))
    for b, ids in zip(rows, tokens.tolist(), strict=True):
        end = ids.index(Tag.EOS) + 1 if Tag.EOS in ids else length
        requests.builders[b].add(ids[:end], Role.CONTENT, 0, 0)
    return requests.finish()
