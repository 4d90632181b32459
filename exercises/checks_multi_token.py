"""What the answers to `multi_token.ipynb` must do, checked by example and, where an answer draws, by law.

Every check takes your function; where the library has that very function, the check takes the library's without one.
Here are the exercises on the loss, 1 and 2, with what `checks_drafts` holds of the others. The right answers are
computed a second time in another form, and so are the well-known wrong ones: a check that fails says which of them
yours agrees with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from checks_drafts import check_generate as check_generate
from checks_drafts import check_speculative as check_speculative
from checks_drafts import check_verify as check_verify
from checks_drafts import law_of as law_of
from checks_drafts import plain_greedy as plain_greedy
from checks_sums import Array, array, same, teach
from torch import Tensor, nn

from pdref.ops import multi_token_nll as library
from pdref.ops.multi_token_nll.sequential import sequential_backward

# Exercise 1: the loss with its shifts and its tail.

NLL_MISTAKES: dict[str, str] = {
    "no shift": "nothing is shifted: a head is asked for the token it has just read",
    "one shift": "every head is asked for the next token: head j looks first + j places ahead",
    "too near": "the heads look one place too near: the first of them, first = 1, is asked for the next token",
    "too far": "the heads look one place too far: the first of them, first = 1, is asked for the next token",
    "first": "`first` is ignored: the heads given begin at that offset",
    "wraps": "the tail wraps round: what lies past the end of a row is not its beginning, so its first k tokens cost 0",
    "padding": "padding is scored: a token that is not real costs 0",
    "padding by source": "padding is judged where the prediction is made: what counts is whether its target is real",
    "by source": "the nats stand where the prediction is made: they belong at the place of the token that is predicted",
    "no partition": "these are scores, not probabilities: take the log-softmax over the vocabulary",
    "sign": "the sign is wrong: nats are -log p, never negative",
}


class _Case(NamedTuple):
    hidden: Tensor  # [B, T, n, D]
    unembedding: Tensor  # [V, D]
    tokens: Tensor  # [B, T]
    real: Tensor  # [B, T]
    first: int = 1


def check_multi_token_nll(nll: Callable[..., Tensor] | None = None) -> None:
    """Nats [B, T, n] of two rows, one of them padded; of heads that begin at offset 3; of a row shorter than n."""
    nll = nll or library.multi_token_nll
    for what, case in (("three heads", _case(7, 3)), ("heads 3 and 4", _case(7, 2, 3)), ("a short row", _case(3, 4))):
        wrong = {why: _nats(case, mistake) for mistake, why in NLL_MISTAKES.items()}
        found = nll(*case[:4], first=case.first)
        shape = case.hidden.shape[:3]
        assert found.shape == shape, f"one number per token and head: [B, T, n] = {list(shape)}, not {[*found.shape]}"
        teach(found, _nats(case), wrong, f"nats of {what}, first = {case.first}")
    print("multi-token nll: every head at its own offset, nothing past the end, nothing of padding")


def _case(T: int, n: int, first: int = 1) -> _Case:
    draw = torch.Generator().manual_seed(T)
    hidden, unembedding = (torch.randn(*shape, 4, generator=draw, dtype=torch.float64) for shape in ((2, T, n), (9,)))
    real = torch.arange(T) < torch.tensor([[T], [T - 2]])
    return _Case(hidden, unembedding, torch.randint(9, (2, T), generator=draw), real, first)


def _nats(case: _Case, mistake: str = "") -> Array:
    """Token by token and head by head, with a mistake or without."""
    hidden, unembedding, tokens, real = map(array, case[:4])
    nats = np.zeros(hidden.shape[:3])
    T = tokens.shape[1]
    for b, i, j in np.ndindex(*nats.shape):
        k = case.first + j
        k = {"no shift": 0, "one shift": 1, "too near": k - 1, "too far": k + 1, "first": 1 + j}.get(mistake, k)
        scored = real[b, max(0, i - k)] if mistake == "padding by source" else real[b, i] or mistake == "padding"
        if scored and (i >= k or mistake == "wraps"):
            scores = unembedding @ hidden[b, (i - k) % T, j]
            partition = 0 if mistake == "no partition" else np.log(np.exp(scores).sum())
            at = i - k if mistake == "by source" else i
            nats[b, at, j] = (partition - scores[tokens[b, i]]) * (-1 if mistake == "sign" else 1)
    return nats


# Exercise 2: head by head, forward and backward.

BACKWARD_MISTAKES: dict[str, str] = {
    "no trunk": "the trunk has no gradient: what the heads left at the copy of z must still go backward through z",
    "last head": "only the last head reaches the trunk: the gradients at the copy of z add up over the heads",
    "first head": "only the first head reaches the trunk: all heads read one copy of z, which collects them",
    "next token": "every head is trained on the next token: head k begins at offset k, so pass first=k",
    "mean of heads": "the heads are averaged: their losses are summed, all over the number of real tokens",
    "own means": "each head is averaged over the tokens it reaches: all are divided by the number of real tokens",
    "sum": "the nats are not divided by the number of real tokens",
}
SLACK = 1.25  # what several heads may hold over what one does


class Kept:
    """Counts the numbers that autograd keeps for backward passes yet to come: how many now, and the `most` so far."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: _Held(self, x), lambda held: held.tensor)

    def __enter__(self) -> Self:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


class _Held:
    """A tensor that a graph keeps; when the graph lets go of it, it is counted no more."""

    def __init__(self, kept: Kept, tensor: Tensor) -> None:
        self.kept, self.tensor = kept, tensor
        kept.now += tensor.numel()
        kept.most = max(kept.most, kept.now)

    def __del__(self) -> None:
        self.kept.now -= self.tensor.numel()


class _Counted(torch.autograd.Function):
    """The identity, which counts how often its backward runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: list[int]) -> Tensor:
        ctx.count = count
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.count.append(1)
        return gradient, None


class World(nn.Module):
    """A trunk, n heads and an unembedding, all small and float64, and two rows of tokens, one of them padded."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        D, V, T = 8, 64, 16
        self.trunk = nn.Sequential(nn.Embedding(V, D), nn.Linear(D, D), nn.Tanh()).double()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(D, D), nn.SiLU(), nn.Linear(D, D)).double() for _ in range(n)
        )
        self.unembedding = nn.Parameter(torch.empty(V, D, dtype=torch.float64))
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=draw, dtype=torch.float64) / 2)
        self.tokens = torch.randint(V, (2, T), generator=draw)
        self.real = torch.arange(T) < torch.tensor([[T], [T - 5]])

    def gradients(self) -> tuple[Tensor, ...]:
        """Of trunk, heads and unembedding, one flat tensor each; zeros where there is none."""
        parts = (self.trunk.parameters(), self.heads.parameters(), [self.unembedding])
        return tuple(
            torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in part]) for part in parts
        )


def check_head_by_head(head_by_head: Callable[..., Tensor] | None = None) -> None:
    """Gradients and loss of the joint backward; the trunk run backward once; no more held than one head needs."""
    head_by_head = head_by_head or _library_backward
    world, runs = World(), list[int]()
    z = _Counted.apply(world.trunk(world.tokens), runs)
    with Kept() as kept:
        loss = head_by_head(z, world.heads, world.unembedding, world.tokens, world.real)
    found, right = world.gradients(), _joint(World())
    wrong = {why: _joint(World(), mistake) for mistake, why in BACKWARD_MISTAKES.items()}
    for mistake, gradients in wrong.items():
        assert not all(map(same, found, gradients[1:])), mistake
    for i, part in enumerate(("trunk", "heads", "unembedding")):
        teach(found[i], right[i + 1], {}, f"gradient of the {part}")
    teach(loss, right[0], {}, "the loss that is returned")
    assert not loss.requires_grad, "the loss that is returned holds its graph: detach it"
    assert len(runs) == 1, (
        f"the trunk ran backward {len(runs)} times: let the heads read a detached copy of z, and run it once at the end"
    )
    with Kept() as one:
        alone = World(1)
        head_by_head(alone.trunk(alone.tokens).detach().requires_grad_(), alone.heads, *_rest(alone))
    assert kept.most <= SLACK * one.most, (
        f"4 heads kept {kept.most:,} numbers for the backward pass where one keeps {one.most:,}: "
        "run a head backward before the next goes forward, and retain no graph"
    )
    print("head by head: the joint gradients, one backward through the trunk, one head in memory")


def _rest(world: World) -> tuple[Tensor, Tensor, Tensor]:
    return world.unembedding, world.tokens, world.real


def _joint(world: World, mistake: str = "") -> tuple[Tensor, ...]:
    """Loss and gradients of all heads at once, with a mistake or without."""
    z = world.trunk(world.tokens)
    seen = {"no trunk": [], "last head": [len(world.heads)], "first head": [1]}.get(mistake, range(9))
    loss = torch.zeros((), dtype=torch.float64)
    for k, head in enumerate(world.heads, 1):
        hidden = head(z if k in seen else z.detach())[:, :, None]
        offset = 1 if mistake == "next token" else k
        nats = library.multi_token_nll(hidden, *_rest(world), impl="naive", first=offset).sum()
        reached = world.real[:, k:].sum() if mistake == "own means" else world.real.sum()
        loss = loss + nats / (1 if mistake == "sum" else reached)
    loss = loss / (len(world.heads) if mistake == "mean of heads" else 1)
    loss.backward()
    return loss.detach(), *world.gradients()


def _library_backward(z: Tensor, heads: Sequence[Any], unembedding: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
    weight = torch.ones((), dtype=z.dtype) / real.sum()
    return (sequential_backward(z, heads, unembedding, tokens, real, weight, "naive") * weight).sum()
