"""The transformer: attentions agree, positions are relative, information flows where the mask lets it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pdref.model.transformer import Config, Transformer, rotate, turns
from pdref.text.layout import Layout
from pdref.text.mask import Siblings, Sight, dense_mask

V, C = 23, 64
GROUPINGS = pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (4, 4), (4, 2), (4, 1)])


def build(heads: int = 4, key_heads: int = 2, layers: int = 2) -> Transformer:
    torch.manual_seed(0)
    return Transformer(Config(V, C, layers, 16, heads, key_heads)).double()


def text(B: int, T: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(B + T))
    return tokens, torch.arange(T).expand(B, T)


@GROUPINGS
def test_naive_and_torch_attention_give_the_same_network(heads: int, key_heads: int) -> None:
    model, (tokens, positions) = build(heads, key_heads), text(2, 9)
    mask = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.7
    for seen in (None, mask):
        naive, stock = (model(tokens, positions, seen, impl=impl) for impl in ("naive", "torch"))
        torch.testing.assert_close(naive, stock)


@GROUPINGS
def test_a_key_head_that_is_shared_is_the_same_as_copies_of_it(heads: int, key_heads: int) -> None:
    grouped, (tokens, positions) = build(heads, key_heads), text(2, 7)
    full = build(heads, heads)
    share, width = heads // key_heads, 16 // heads
    with torch.no_grad():
        state = grouped.state_dict()
        for name in [name for name in state if name.endswith("qkv.weight")]:
            q, k, v = state[name].unflatten(0, (-1, width)).split([heads, key_heads, key_heads])
            k, v = k.repeat_interleave(share, 0), v.repeat_interleave(share, 0)
            state[name] = torch.cat([q, k, v]).flatten(0, 1)
        full.load_state_dict(state)
    torch.testing.assert_close(full(tokens, positions), grouped(tokens, positions))


def test_rotation_turns_each_pair_by_its_own_rate() -> None:
    # By hand: width 4 has the rates 1 and 1/100, and position 3 turns (1, 0) by 3 and by 0.03 radians.
    angle = torch.tensor([3.0, 0.03], dtype=torch.float64)
    turned = rotate(torch.tensor([[[[1.0, 0.0, 1.0, 0.0]]]]), turns(8, 4)[3][None, None, None])
    expected = torch.stack([angle.cos(), angle.sin()], -1).flatten().float()
    torch.testing.assert_close(turned[0, 0, 0], expected)
    assert (turns(8, 4)[0] == 1).all(), "position 0 does not turn"


def test_scores_depend_on_relative_positions_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator, dtype=torch.float64)
    table = turns(400, 8).to(torch.complex128)

    def score(i: int, j: int) -> Tensor:
        return (rotate(q, table[i][None, None, None]) * rotate(k, table[j][None, None, None])).sum()

    for i, j in ((0, 0), (5, 2), (2, 5), (40, 0)):
        for shift in (1, 7, 300):
            torch.testing.assert_close(score(i + shift, j + shift), score(i, j), rtol=1e-5, atol=1e-5)
        assert not torch.isclose(score(i + 1, j), score(i, j), rtol=1e-3)


def test_a_text_means_the_same_wherever_it_stands() -> None:
    model, (tokens, positions) = build(), text(2, 9)
    torch.testing.assert_close(model(tokens, positions + 40), model(tokens, positions), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(tokens, positions * 2), model(tokens, positions), rtol=1e-3)


def test_tokens_may_come_in_any_order_if_they_keep_their_positions() -> None:
    model, (tokens, positions) = build(), text(1, 8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    past = (positions[:, None, None, order] <= positions[:, None, order, None]).double() > 0
    shuffled = model(tokens[:, order], positions[:, order], past)
    torch.testing.assert_close(shuffled, model(tokens, positions)[:, order])


def test_no_output_moves_when_a_later_token_changes() -> None:
    model, (tokens, positions) = build(), text(1, 8)
    before = model(tokens, positions)
    for changed in range(8):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % V
        moved = (model(other, positions) != before).any(-1)[0]
        assert moved.tolist() == [i >= changed for i in range(8)]


@pytest.mark.parametrize("siblings", ["sparse", "dense"])
@pytest.mark.parametrize("stream", ["two streams", "in place"])
def test_an_output_depends_on_exactly_the_tokens_that_it_may_see(
    drawn: Callable[[str], Layout], siblings: Siblings, stream: str
) -> None:
    clean = drawn("czz<x><yy>|zz<x><>$_")
    layout = Layout.concatenate([clean, clean.span_copy()[0]]) if stream == "two streams" else clean.in_place()
    model, embedded = build(), []
    hook = model.embed.register_forward_hook(lambda _, __, out: embedded.append(out))
    hidden = model(layout.token, layout.position, Sight.of(layout, layout, siblings))
    hook.remove()
    upstream = torch.randn(hidden.shape[-1], dtype=torch.float64)
    gradients = [torch.autograd.grad(h @ upstream, embedded[0], retain_graph=True)[0][0] for h in hidden[0]]
    flows = torch.stack([gradient.abs().sum(-1) > 0 for gradient in gradients])
    # The residual stream carries a token to itself, which padding may not see by attention.
    assert torch.equal(flows, dense_mask(layout, layout, siblings)[0] | torch.eye(len(flows), dtype=torch.bool))


def test_converting_a_model_keeps_its_rotation() -> None:
    # `.to(dtype)` drops the imaginary part of complex buffers; `.double()` does not.
    torch.manual_seed(0)
    model, (tokens, positions) = Transformer(Config(V, C, 2, 16, 2, 2)), text(1, 9)
    with torch.no_grad():
        single = model(tokens, positions)
        for converted in (copy.deepcopy(model).double(), copy.deepcopy(model).to(torch.float64)):
            torch.testing.assert_close(converted(tokens, positions).float(), single, rtol=1e-4, atol=1e-5)


def test_logits_are_a_linear_map_of_hidden_states() -> None:
    model = build()
    hidden = torch.randn(2, 3, 16, dtype=torch.float64)
    torch.testing.assert_close(model.logits(hidden), hidden @ model.unembed.weight.T)
    assert model.logits(hidden).shape == (2, 3, V)


@pytest.mark.parametrize(("depth", "share", "key_heads"), [(1, 1, 1), (3, 1, 3), (4, 2, 2), (4, 4, 1), (2, 4, 1)])
def test_one_dial_sets_all_sizes(depth: int, share: int, key_heads: int) -> None:
    config = Config.of_depth(depth, vocabulary=V, context=C, share=share)
    assert config == Config(V, C, depth, 32 * depth, depth, key_heads)
    assert config.head_width == 32


def test_the_size_of_a_model_is_the_sum_of_its_parts() -> None:
    model = build(heads=4, key_heads=2, layers=3)
    D, Dh = 16, 4
    layer = D + (4 + 2 * 2) * Dh * D + D * D + D + 2 * 4 * D * D  # norm, qkv, out, norm, up and down
    assert model.parameter_count == V * D + 3 * layer + D + D * V
    assert "turns" not in model.state_dict(), "a checkpoint holds what was learned and nothing else"
    assert model.device == torch.device("cpu")
