"""One token at a time: p(y | c) = prod_i p(y_i | y_<i, c), its loss and its cached sampler.

The same trunk writes plans for Planned Diffusion, so everything that decodes token by token is here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdref.methods.decoding import Draw, Requests, Speaker
from pdref.methods.generation import Generation
from pdref.model.transformer import Transformer
from pdref.ops.impl import Impl
from pdref.ops.multi_token_nll import multi_token_nll
from pdref.text.layout import Layout, Role
from pdref.text.tags import Tag


def next_token_nll(model: Transformer, hidden: Tensor, layout: Layout, impl: Impl = "auto") -> Tensor:
    """Nats [B, T] of each token given its past, from the hidden states [B, T, D] of a causal forward.

    Zero where nothing is scored: the prompt, which is given, and padding.
    """
    one_head = hidden[:, :, None]  # [B, T, 1, D]
    return multi_token_nll(one_head, model.unembed.weight, layout.token, layout.response, impl)[..., 0]


def document_nll(model: Transformer, layout: Layout, impl: Impl = "auto") -> Tensor:
    """Nats [B, T] of every response token of clean documents under the autoregressive model."""
    return next_token_nll(model, model(layout.token, layout.position, impl=impl), layout, impl)


def objective(model: Transformer, layout: Layout, impl: Impl = "auto") -> Tensor:
    """Mean over documents of nats per response token; a scalar."""
    return per_document_mean(document_nll(model, layout, impl), layout).mean()


def per_document_mean(nats: Tensor, layout: Layout) -> Tensor:
    """(1 / |Y|) sum over a document's response Y of `nats` [B, T] -> [B]."""
    return nats.sum(1) / layout.response.sum(1)


@torch.inference_mode()
def sample(
    speaker: Speaker,
    prompts: Sequence[str],
    draw: Draw | None = None,
    limit: int | None = None,
    cached: bool = True,
    impl: Impl = "auto",
) -> list[Generation]:
    """Write whole documents, plan and spans, token by token until <eos>, `limit` tokens or the end of the context."""
    requests = Requests(speaker, prompts, draw or Draw(), cached, impl)
    rows = range(len(prompts))
    with requests.timed("write"):
        requests.read(rows)
        ended = requests.write(rows, "write", lambda b, token: token == Tag.EOS, limit or requests.context)
    for b in rows:
        if b in ended:
            requests.add(b, "write", [Tag.EOS], Role.TAG, 0)
        else:
            requests.generations[b].cuts += (f"no <eos> within {requests.length(b)} tokens",)
    return requests.finish()
