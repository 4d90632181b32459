"""Heads that look ahead: each kind against its equation, what each may see, and a trunk that is a plain transformer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pdref.model.cache import Cache
from pdref.model.heads import KINDS, Kind, MultiToken, at_parity
from pdref.model.transformer import Config, Transformer

EVERY = pytest.mark.parametrize("kind", KINDS)
CONFIG = Config(vocabulary=11, context=20, layers=2, width=8, heads=2, key_heads=1)
N = 4


def model_of(kind: Kind, n: int = N) -> MultiToken:
    """A float64 model in which nothing is zero."""
    torch.manual_seed(0)
    model = MultiToken(CONFIG, n, kind).double()
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def text(B: int = 2, T: int = 9, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens and positions."""
    tokens = torch.randint(CONFIG.vocabulary, (B, T), generator=torch.Generator().manual_seed(seed))
    return tokens, torch.arange(T).expand(B, T)


# A transformer with more heads.


@EVERY
def test_its_first_head_is_the_transformer(kind: Kind) -> None:
    model, plain = model_of(kind), Transformer(CONFIG).double()
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("heads.")}
    plain.load_state_dict(own)
    tokens, positions = text()
    expected = plain(tokens, positions)
    torch.testing.assert_close(model(tokens, positions), expected)
    torch.testing.assert_close(model.first(model.trunk(tokens, positions), positions), expected)
    assert model.ahead(tokens, positions).shape == (2, 9, N, 8)
    torch.testing.assert_close(model.ahead(tokens, positions)[:, :, 0], expected)


def test_the_heads_cost_what_the_trunk_gave_up() -> None:
    full = Transformer(CONFIG)
    parallel = MultiToken(at_parity(CONFIG, 2), 2, "parallel")
    assert parallel.parameter_count == full.parameter_count
    with pytest.raises(ValueError, match="every size is at least 1"):
        at_parity(CONFIG, 3)


def test_medusa_starts_as_the_next_token_head() -> None:
    torch.manual_seed(0)
    model = MultiToken(CONFIG, N, "medusa")
    hidden = model.ahead(*text())
    assert torch.equal(hidden, hidden[:, :, :1].expand_as(hidden))


@pytest.mark.parametrize(("n", "kind"), [(1, "parallel"), (4, "linear"), (0, "medusa")])
def test_what_is_no_set_of_heads(n: int, kind: str) -> None:
    with pytest.raises(ValueError, match=r"at least 2, not .*one of parallel, causal, sequential, medusa"):
        MultiToken(CONFIG, n, kind)  # type: ignore[arg-type]


# The equations.


def layer(model: MultiToken, block: torch.nn.Module, x: Tensor, positions: Tensor) -> Tensor:
    """A causal layer on a residual stream."""
    return block(x, torch.view_as_complex(model.turns[positions]), None, True, None, "naive")


@EVERY
def test_each_kind_is_its_equation(kind: Kind) -> None:
    model = model_of(kind)
    tokens, positions = text()
    z = model.stream(tokens, positions, layers=1)
    stream = layer(model, model.blocks[-1], z, positions)
    expected = [model.norm(stream)]
    previous = stream
    for k in range(2, N + 1):
        head = None if kind == "medusa" else model.heads[k - 2]
        if kind == "medusa":
            normed = expected[0]
            expected.append(normed + torch.nn.functional.silu(normed @ model.heads.weight[k - 2].T))
            continue
        if kind == "sequential":  # what head k - 1 predicts at place i is the token at i + k - 1
            token = torch.stack([model.embed(tokens[:, min(i + k - 1, 8)]) for i in range(9)], 1)
            previous = head.mix(torch.cat([head.norm_state(previous), head.norm_token(token)], -1))
        previous = layer(model, getattr(head, "block", head), z if kind == "parallel" else previous, positions)
        expected.append(model.norm(previous))
    found = model.ahead(tokens, positions)
    for k, hidden in enumerate(expected, 1):
        told = 9 - k  # places whose token k on is known; the sequential head reads the one before it
        torch.testing.assert_close(found[:, :told, k - 1], hidden[:, :told], msg=f"head {k}")


@EVERY
def test_no_head_sees_what_it_predicts_or_what_comes_after(kind: Kind) -> None:
    """Head k at place i depends on the tokens up to i, the sequential one on those up to i + k - 1."""
    model = model_of(kind)
    tokens, positions = text(B=1)
    before = model.ahead(tokens, positions)
    for changed in range(1, 9):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % CONFIG.vocabulary
        moved = (model.ahead(other, positions) != before).any(-1)[0]  # [T, n]
        for i in range(9):
            for k in range(1, N + 1):
                if i + k > 8:
                    continue  # beyond the end
                reach = i + k - 1 if kind == "sequential" else i
                assert bool(moved[i, k - 1]) == (changed <= reach), f"head {k} at {i}, token {changed} changed"


@EVERY
def test_padding_on_the_right_changes_nothing_before_it(kind: Kind) -> None:
    model = model_of(kind)
    tokens, positions = text(B=1)
    longer = torch.cat([tokens, torch.zeros(1, 4, dtype=torch.int64)], 1)
    found = model.ahead(longer, torch.arange(13)[None])
    alone = model.ahead(tokens, positions)
    for k in range(1, N + 1):
        torch.testing.assert_close(found[:, : 9 - k, k - 1], alone[:, : 9 - k, k - 1])


@EVERY
def test_gradients_reach_every_parameter(kind: Kind) -> None:
    model = model_of(kind)
    model.ahead(*text()).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if name != "unembed.weight")


# Heads apart, and heads in step with a cache.


@pytest.mark.parametrize("kind", ["parallel", "medusa"])
def test_heads_that_read_the_trunk_alone_come_apart(kind: Kind) -> None:
    model = model_of(kind)
    tokens, positions = text()
    z = model.trunk(tokens, positions)
    apart = torch.stack([head(z) for head in model.apart(positions)], 2)
    torch.testing.assert_close(apart, model.ahead(tokens, positions))


@pytest.mark.parametrize("kind", ["causal", "sequential"])
def test_heads_that_read_each_other_do_not(kind: Kind) -> None:
    with pytest.raises(ValueError, match=f"{kind} heads read each other"):
        model_of(kind).apart(text()[1])


@EVERY
@pytest.mark.parametrize("pieces", [(9,), (1,) * 9, (4, 1, 4)])
def test_trunk_and_heads_read_in_pieces_what_they_read_at_once(kind: Kind, pieces: tuple[int, ...]) -> None:
    model = model_of(kind)
    tokens, positions = text()
    expected = model.ahead(tokens, positions)
    trunk = Cache(model.config, 2, 20, model.embed.weight)
    heads = Cache(model.config, 2, 20, model.embed.weight) if model.attends else None
    # The sequential heads get the layers they need: one each, more than this trunk has.
    if heads is not None:
        heads.entries = heads.entries.new_zeros(N - 1, *heads.entries.shape[1:])
    padded, start = torch.cat([tokens, torch.zeros_like(tokens)], 1), 0
    for size in pieces:
        part = positions[:, start : start + size]
        memory = trunk.at(part)
        z = model.trunk(tokens[:, start : start + size], part, memory=memory)
        first = model.first(z, part, memory=memory)
        own = heads.at(part) if heads is not None else None
        rest = model.further(z, part, lambda k, part=part: padded.gather(1, part + k), memory=own)
        found = torch.stack([first, *rest], 2)
        for k in range(1, N + 1):
            told = max(0, min(size, 9 - k - start))
            torch.testing.assert_close(found[:, :told, k - 1], expected[:, start : start + told, k - 1])
        start += size
