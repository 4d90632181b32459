"""Learners side by side learn what they would alone, pay what their model pays, and read no more than they may."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from laws.planting import Bug
from pdref.data.delayed_copy import DelayedCopy
from pdref.data.random_xor import RandomXor
from pdref.lab import token_lab
from pdref.lab.token_lab import Headed, Learners, Myopic, Narrow
from pdref.model.heads import KINDS, MultiToken
from pdref.model.transformer import Config, Transformer
from pdref.ops.multi_token_nll import multi_token_nll

SMALL = Config(2, 12, 1, 8, 2, 2)
COPY = DelayedCopy(2, 0.1)


def tokens(count: int = 3, length: int = 12) -> Tensor:
    return COPY.sample(count, length, torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("n", "kind"), [(1, "parallel"), *((3, kind) for kind in KINDS)])
def test_a_headed_learner_pays_what_its_model_pays(n: int, kind: str) -> None:
    """The op's nats by the place of the token, from the model as it is built elsewhere."""
    learner = Headed(SMALL, n, kind, seed=2)
    model = MultiToken(SMALL, n, kind) if n > 1 else Transformer(SMALL)
    model.load_state_dict(learner.model.state_dict())
    x = tokens()
    place = torch.arange(12).expand_as(x)
    hidden = model.ahead(x, place) if n > 1 else model.forward(x, place)[:, :, None]
    right = multi_token_nll(hidden, model.unembed.weight, x, torch.ones_like(x, dtype=torch.bool))
    nats = learner(x)[1]
    for k in range(1, n + 1):
        torch.testing.assert_close(nats[:, :-k, k - 1], right[:, k:, k - 1])


def test_together_is_alone() -> None:
    """A row of a stack learns, step by step, what it learns by itself."""
    sources = [COPY, DelayedCopy(3, 0.1)]
    make = [lambda: Narrow(SMALL, 4, 2, seed=0), lambda: Narrow(SMALL, 8, 2, seed=1)]
    both = Learners([m() for m in make]).learn(sources, 5, batch=4)
    for r in range(2):
        alone = Learners([make[r]()]).learn(sources[r : r + 1], 5, batch=4)
        torch.testing.assert_close(both[:, r : r + 1], alone)


def test_learning_reaches_the_floor() -> None:
    learners = Learners([Narrow(Config(2, 12, 1, 16, 2, 2), 4, 2, seed=0)])
    learners.learn([COPY], 120)
    lost = token_lab.regret(learners, [COPY], token_lab.samples([COPY], 200, 12, 9), start=4)
    assert lost.shape == (1, 2) and lost.max() < 0.03


def changed(learner: Narrow, place: int) -> Tensor:
    """Which nats [T, n] move when the token at `place` does; targets at that place aside."""
    x = tokens(1)
    y = x.clone()
    y[0, place] = 1 - y[0, place]
    return ((learner(x)[1] - learner(y)[1]).abs() > 1e-7)[0]


def test_parallel_heads_read_the_state_alone_and_sequential_ones_what_lies_between() -> None:
    """Token 8 as seen from place 6 is the target of head 2, and on the way of head 3 if heads are chained."""
    parallel, chained = (changed(Narrow(SMALL, 8, 3, heads, seed=0), 8) for heads in ("parallel", "sequential"))
    assert parallel[6].tolist() == [False, True, False]
    assert chained[6].tolist() == [False, True, True]
    assert not parallel[:5].any() and not chained[:5].any(), "nobody reads beyond his offset"


def test_nobody_is_told_the_answer() -> None:
    """The chances of both values of a token add up to one: none depends on which it is."""
    x = tokens(1)
    y = x.clone()
    y[0, 8] = 1 - y[0, 8]
    for heads in ("parallel", "sequential"):
        learner = Narrow(SMALL, 8, 3, heads, seed=0)
        chances = [(-learner(z)[1][0]).exp() for z in (x, y)]
        for k in (1, 2, 3):
            assert sum(chance[8 - k, k - 1].item() for chance in chances) == pytest.approx(1, abs=1e-5)


def test_a_state_is_as_narrow_as_it_says() -> None:
    state = Narrow(SMALL, 3, seed=0)(tokens())[0]
    assert (state[..., :3] != 0).all() and (state[..., 3:] == 0).all()
    with pytest.raises(ValueError, match="1 to 8 numbers"):
        Narrow(SMALL, 9)


def test_a_clock_tells_the_place() -> None:
    """The same token at two places of one hour gives one embedding, at another hour another."""
    learner = Narrow(SMALL, 8, clock=3, seed=0)
    assert learner.trunk.config.vocabulary == 6
    same = torch.zeros(1, 12, dtype=torch.int64)
    state = learner(same)[0][0]
    assert not torch.allclose(state[0], state[1])


def test_myopic_attention_is_attention_whose_past_gets_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 2, 5, 4, generator=generator)
    entries = torch.randn(2, 4, 5, 4, generator=generator, requires_grad=True)
    k, v = entries.chunk(2, 1)
    out = Myopic().attend(0, q, entries, None, "naive")
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(out, whole)
    (d,) = torch.autograd.grad(out[:, :, 3].sum(), entries)
    touched = (d != 0).any(-1).any(1)[0]
    assert touched.tolist() == [False, False, False, True, False]


def test_offsets_are_averaged_over_what_exists() -> None:
    nats = torch.zeros(1, 4, 2)
    nats[0, :, 0] = torch.tensor([9.0, 1.0, 3.0, 99.0])  # the last predicts nothing
    nats[0, :, 1] = torch.tensor([9.0, 5.0, 99.0, 99.0])
    assert token_lab.by_offset(nats, start=1).tolist() == [2.0, 5.0]


def test_misfits_are_refused() -> None:
    learners = Learners([Narrow(SMALL, 8)])
    for shape in ((2, 3, 12), (1, 3, 13), (3, 12)):
        with pytest.raises(ValueError, match="tokens are"):
            learners(torch.zeros(shape, dtype=torch.int64))


def test_equal_sources_give_equal_sequences() -> None:
    x = token_lab.samples([COPY, RandomXor(), DelayedCopy(2, 0.1)], 4, 6, seed=3)
    assert torch.equal(x[0], x[2]) and not torch.equal(x[0], x[1])


def test_a_floor_is_asked_where_the_prediction_is_made() -> None:
    nats = 100 * torch.arange(6)[:, None] + torch.arange(3)  # token and head, both readable
    found = token_lab._at_source(nats[None])[0]
    for place, k in ((0, 1), (2, 3), (4, 1), (0, 3)):
        assert found[place, k - 1] == 100 * (place + k) + k - 1


HEADS = test_parallel_heads_read_the_state_alone_and_sequential_ones_what_lies_between
BUGS = {
    "a head is told its own token": (
        Bug("pdref.lab.token_lab:Narrow.forward", "self.told * self.earlier", "self.told", ()),
        test_nobody_is_told_the_answer,
    ),
    "parallel heads are told what lies between": (
        Bug("pdref.lab.token_lab:Narrow.forward", "if self.chained:", "if True:", ()),
        HEADS,
    ),
    "the state is as wide as the trunk": (
        Bug("pdref.lab.token_lab:Narrow.forward", " * self.kept", "", ()),
        test_a_state_is_as_narrow_as_it_says,
    ),
    "the floor is of other offsets": (
        Bug("pdref.lab.token_lab:_at_source", "roll(-k, 1)", "roll(k, 1)", ()),
        test_a_floor_is_asked_where_the_prediction_is_made,
    ),
    "the end is counted": (
        Bug("pdref.lab.token_lab:by_offset", "start : T - k,", "start : T,", ()),
        test_offsets_are_averaged_over_what_exists,
    ),
    "learners share their row": (
        Bug(
            "pdref.lab.token_lab:samples",
            "drawn[source] for source in sources",
            "drawn[sources[0]] for _ in sources",
            (),
        ),
        test_equal_sources_give_equal_sequences,
    ),
}


@pytest.mark.parametrize(("bug", "law"), BUGS.values(), ids=BUGS)
def test_bugs_are_found(bug: Bug, law: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    with pytest.raises(AssertionError):
        law()
