"""The multi-token objective: every offset's nats by hand, its mean, and head by head with the gradients of all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from laws import worlds
from pdref.lab.kernels.memory import Meter
from pdref.methods import autoregressive, multi_token
from pdref.model.heads import KINDS, Kind, MultiToken
from pdref.model.transformer import Config
from pdref.ops.impl import Impl
from pdref.text.layout import NO_SPAN, Grammar, Layout, Role, Stream
from pdref.text.tags import Tag

EVERY = pytest.mark.parametrize("kind", KINDS)
IMPLS: list[Impl] = ["naive", "torch"]
N = 3


def model_of(kind: Kind, n: int = N) -> MultiToken:
    """A float64 model with heads that disagree."""
    torch.manual_seed(0)
    model = MultiToken(Config(worlds.V, 90, layers=2, width=8, heads=2, key_heads=1), n, kind).double()
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def documents() -> list[Layout]:
    """Documents of unequal length."""
    return worlds.layouts(Grammar(grid=2))


@EVERY
@pytest.mark.parametrize("impl", IMPLS)
def test_every_response_token_is_scored_by_every_head_that_reaches_it(kind: Kind, impl: Impl) -> None:
    model, batch = model_of(kind), Layout.collate(documents())
    log_p = model.logits(model.ahead(batch.token, batch.position)).log_softmax(-1)
    nats = multi_token.document_nll(model, batch, impl)
    for b in range(batch.shape[0]):
        for i in range(batch.shape[1]):
            for k in range(1, N + 1):
                scored = i >= k and int(batch.role[b, i]) not in (Role.PROMPT, Role.PAD)
                expected = -log_p[b, i - k, k - 1, batch.token[b, i]].item() if scored else 0.0
                assert nats[b, i, k - 1].item() == pytest.approx(expected, rel=1e-9), f"token {i}, head {k}"
    further = multi_token.further_nll(model, batch, impl)
    torch.testing.assert_close(further, nats[..., 1:])


@EVERY
def test_a_document_has_the_nats_that_it_has_alone(kind: Kind) -> None:
    model, rows = model_of(kind), documents()
    together = multi_token.document_nll(model, Layout.collate(rows))
    for b, row in enumerate(rows):
        alone = multi_token.document_nll(model, row)[0]
        torch.testing.assert_close(together[b, : len(alone)], alone)
        assert not together[b, len(alone) :].any(), "padding costs nothing"


def test_the_objective_is_the_mean_over_documents_of_weighted_nats() -> None:
    model, rows = model_of("parallel"), documents()
    losses = []
    for row in rows:
        nats = multi_token.document_nll(model, row)[0].sum(0)  # [n]
        losses.append((nats[0] + 0.3 * (nats[1] + nats[2])) / row.response.sum())
    found = multi_token.objective(model, Layout.collate(rows), further=0.3)
    torch.testing.assert_close(found, torch.stack(losses).mean())
    plain = autoregressive.objective(model, Layout.collate(rows))
    torch.testing.assert_close(multi_token.objective(model, Layout.collate(rows), further=0.0), plain)


def test_nats_per_offset_are_means_over_what_was_predicted() -> None:
    model, batch = model_of("medusa"), Layout.collate(documents())
    nats = multi_token.document_nll(model, batch)
    expected = [head[head > 0].mean() for head in nats.unbind(-1)]
    torch.testing.assert_close(multi_token.per_offset(nats, batch), torch.stack(expected).detach())
    torch.testing.assert_close(
        multi_token.per_offset(nats[..., 1:], batch, first=2), torch.stack(expected[1:]).detach()
    )


def test_offsets_before_the_start_are_not_counted() -> None:
    [layout, *_] = documents()
    everything = Layout(**{n: (f * 0 + Role.PLAN if n == "role" else f)[:, :4] for n, f in layout.items()})
    nats = torch.ones(1, 4, 3) * (torch.arange(4)[:, None] >= torch.arange(1, 4))  # 3, 2 and 1 tokens are reached
    assert multi_token.per_offset(nats, everything).tolist() == [1, 1, 1]


# One head at a time.


def gradients(model: MultiToken) -> dict[str, Tensor]:
    """All of them, taken away."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", ["parallel", "medusa"])
def test_head_by_head_has_the_gradients_of_all_at_once(kind: Kind, impl: Impl) -> None:
    model, batch = model_of(kind), Layout.collate(documents())
    loss = multi_token.objective(model, batch, further=0.5, impl="naive")
    loss.backward()
    joint = gradients(model)
    nats = multi_token.backward(model, batch, further=0.5, impl=impl)
    one_by_one = gradients(model)
    torch.testing.assert_close(nats, multi_token.document_nll(model, batch))
    assert not nats.requires_grad
    assert joint.keys() == one_by_one.keys() == dict(model.named_parameters()).keys()
    for name, gradient in joint.items():
        torch.testing.assert_close(one_by_one[name], gradient, msg=name)


@pytest.mark.parametrize("kind", ["causal", "sequential"])
def test_heads_that_read_each_other_are_refused(kind: Kind) -> None:
    with pytest.raises(ValueError, match="read each other"):
        multi_token.backward(model_of(kind), documents()[0])


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_every_offset(kind: Kind) -> None:
    model, batch = model_of(kind).float(), Layout.collate(documents())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    before = multi_token.per_offset(multi_token.document_nll(model, batch), batch)
    for _ in range(40):
        optimizer.zero_grad()
        multi_token.objective(model, batch).backward()
        optimizer.step()
    after = multi_token.per_offset(multi_token.document_nll(model, batch), batch)
    assert (after < 0.5 * before).all(), f"{before.tolist()} -> {after.tolist()}"


def test_head_by_head_four_heads_take_the_memory_of_one() -> None:
    """Beside the gradients, which are there before; all at once, the heads' activations pile up."""
    config = Config(vocabulary=200, context=128, layers=2, width=32, heads=2, key_heads=2)
    tokens = torch.randint(len(Tag), 200, (4, 128), generator=torch.Generator().manual_seed(0))
    rest = {"stage": 0, "span": NO_SPAN, "stream": Stream.CLEAN, "role": Role.PLAN}
    fields = {name: torch.full_like(tokens, int(value)) for name, value in rest.items()}
    batch = Layout(token=tokens, position=torch.arange(128).expand(4, -1), **fields)

    def peak(n: int, step: Callable[[MultiToken], object]) -> int:
        model = MultiToken(config, n, "parallel")
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        meter = Meter("cpu")
        meter(lambda: step(model))
        return meter.peak

    def at_once(model: MultiToken) -> None:
        multi_token.objective(model, batch).backward()

    def one(model: MultiToken) -> None:
        autoregressive.objective(model, batch).backward()

    def in_turn(model: MultiToken) -> Tensor:
        return multi_token.backward(model, batch)

    alone = peak(2, one)
    assert peak(4, in_turn) <= 1.1 * alone
    assert peak(4, at_once) > 1.5 * alone
