"""What the answers to `kernels.ipynb` must do, checked by example.

Every check takes your function; where the library has that very function, the check takes the library's without one.
Here are the exercises on a vocabulary, 3 and 5, with what `checks_sums` and `checks_tiles` hold of the others. The
right answers are computed a second time in float64, with all logits in memory at once: small cases can afford what a
kernel must not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from checks_sums import NO_MAXIMUM, NO_RESCALE, Array, array, logsumexp, online_mistakes, teach
from checks_sums import check_merge as check_merge
from checks_sums import check_online_logsumexp as check_online_logsumexp
from checks_sums import check_row_logsumexp as check_row_logsumexp
from checks_tiles import check_tile_state as check_tile_state
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pdref.ops import token_nll as library
from pdref.ops.unmask import unmask
from pdref.ops.unmask.counters import uniform

# Exercise 3: the loss of a token without its logits.

NLL_MISTAKES: dict[str, str] = {
    "no rescale": NO_RESCALE,
    "no maximum": NO_MAXIMUM,
    "no target": "the target's score is missing: nats are log-partition minus score",
    "every tile": "the target's score is taken from every tile: only the tile that holds column y[n] has it",
    "sign": "the sign is wrong: nats are log-partition minus score, never negative",
    "mean": "the nats are averaged: one number per token is asked for",
}
GRADIENT_MISTAKES: dict[str, str] = {
    "no one-hot": "the one-hot is missing: a score's gradient is softmax minus one-hot",
    "no upstream": "the upstream gradient is missing: each token's row is multiplied by its own",
    "upstream on softmax": "the upstream gradient scales the softmax only: it multiplies the one-hot as well",
    "sign": "the sign is wrong: softmax minus one-hot raises the loss of wrong tokens' scores",
    "every tile": "the one-hot stands in every tile: compare y[n] with the tile's own columns, start included",
    "tile softmax": "each tile is normalised by itself: divide by exp(log-partition) of the whole row",
    "last tile": "only the last tile reaches the hidden states: their gradient is a sum over tiles",
}


class _Case(NamedTuple):
    hidden: Tensor  # [N, D]
    unembedding: Tensor  # [V, D]
    targets: Tensor  # [N]
    upstream: Tensor  # [N]


TILE = 16
CASES = {"small logits": 1.0, "logits near 1000": 300.0}


def check_token_nll(token_nll: Callable[..., tuple[Tensor, Tensor]] | None = None) -> None:
    """Nats and log-partition [N] of 24 tokens; 101 words in tiles of 16."""
    token_nll = token_nll or _library_nll
    for name, scale in CASES.items():
        case = _case(scale)
        with _at_most(case, token_nll):
            found = token_nll(*case[:3], TILE)
        assert len(found) == 2, "two tensors are asked for: nats and log-partition"
        nats, log_partition = map(array, found)
        with np.errstate(all="ignore"):
            wrong = {why: _nll(case, mistake)[0] for mistake, why in NLL_MISTAKES.items()}
            teach(nats, _nll(case)[0], wrong, f"nats, {name}")
            teach(log_partition, _nll(case)[1], {}, f"log-partition, {name}")
    print("token nll: nats and log-partition, logits of 1000, no [N, V] in memory")


def check_token_nll_backward(backward: Callable[..., tuple[Tensor, Tensor]] | None = None) -> None:
    """Both gradients for an upstream gradient per token, of either sign and 0."""
    backward = backward or _library_backward
    for name, scale in CASES.items():
        case = _case(scale)
        log_partition = torch.from_numpy(_nll(case)[1])
        with _at_most(case, backward):
            found = backward(case.upstream, *case[:3], log_partition, TILE)
        assert len(found) == 2, "two gradients are asked for: of hidden states and unembedding"
        for i, what in enumerate(("hidden states", "unembedding")):
            shape = case[i].shape
            assert found[i].shape == shape, f"the gradient of {what} is {list(found[i].shape)}, not {list(shape)}"
            wrong = {why: _gradients(case, mistake)[i] for mistake, why in GRADIENT_MISTAKES.items()}
            teach(found[i], _gradients(case)[i], wrong, f"gradient of {what}, {name}")
    print("token nll, backward: both gradients by recomputation, no [N, V] in memory")


def _case(scale: float) -> _Case:
    draw = torch.Generator().manual_seed(0)
    hidden, unembedding = (torch.randn(n, 8, generator=draw, dtype=torch.float64) for n in (24, 101))
    targets = torch.randint(101, (24,), generator=draw)
    targets[:2] = torch.tensor([100, 0])  # the last word, in the ragged tile, and the first
    upstream = torch.randn(24, generator=draw, dtype=torch.float64)
    upstream[2] = 0
    return _Case(scale * hidden, unembedding, targets, upstream)


def _scores(hidden: Tensor, unembedding: Tensor) -> Array:
    return array(hidden.double()) @ array(unembedding.double()).T


def _nll(case: _Case, mistake: str = "") -> tuple[Array, Array]:
    scores, y = _scores(case.hidden, case.unembedding), array(case.targets)
    log_partition = logsumexp(scores)
    if mistake == "no rescale":
        log_partition = online_mistakes(scores, TILE)[NO_RESCALE]
    if mistake == "no maximum":
        log_partition = np.log(np.exp(scores).sum(1))
    score = scores[np.arange(len(y)), y]
    if mistake == "every tile":
        score = sum(scores[np.arange(len(y)), np.minimum(i + y % TILE, 100)] for i in range(0, 101, TILE))
    nats = log_partition - score * (mistake != "no target")
    return {"sign": -nats, "mean": nats.mean()}.get(mistake, nats), log_partition


def _gradients(case: _Case, mistake: str = "") -> tuple[Array, Array]:
    hidden, unembedding, y, upstream = map(array, case)
    scores = hidden @ unembedding.T
    p = np.exp(scores - logsumexp(scores)[:, None])
    if mistake == "tile softmax":
        tiles = [scores[:, i : i + TILE] for i in range(0, 101, TILE)]
        p = np.concatenate([np.exp(tile - logsumexp(tile)[:, None]) for tile in tiles], axis=1)
    columns = np.arange(101)
    hot = (columns % TILE == y[:, None] % TILE) if mistake == "every tile" else (columns == y[:, None])
    hot = hot * (mistake != "no one-hot")
    each = upstream[:, None]
    change = (
        each * p - hot if mistake == "upstream on softmax" else (1 if mistake == "no upstream" else each) * (p - hot)
    )
    change = -change if mistake == "sign" else change
    seen = columns >= 101 - 101 % TILE if mistake == "last tile" else columns >= 0
    return (change * seen) @ unembedding, change.T @ hidden


@contextmanager
def _at_most(case: _Case, function: object) -> Iterator[None]:
    """Let nothing as large as all logits be made; the library's own functions may choose to."""
    n, v = case.hidden.shape[0], case.unembedding.shape[0]
    with _Largest() as largest:
        yield
    if getattr(function, "__module__", None) != __name__:
        assert largest.numbers < n * v, (
            f"a tensor of {largest.numbers:,} numbers was made: {n} tokens x {v} words is all logits at once; "
            "never hold more than one tile of them"
        )


class _Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor holds that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.numel())
        return out


def _library_nll(hidden: Tensor, unembedding: Tensor, targets: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    return library.token_nll(hidden, unembedding, targets, log_partition=True)


def _library_backward(upstream: Tensor, hidden: Tensor, unembedding: Tensor, targets: Tensor, *_: object) -> Any:
    leaves = [x.clone().requires_grad_() for x in (hidden, unembedding)]
    nats = library.token_nll(leaves[0], leaves[1], targets)
    return torch.autograd.grad(nats, leaves, upstream)


# Exercise 5: a draw without the logits.

TOKEN_MISTAKES: dict[str, str] = {
    "same noise": "every tile gets the same noise: the counter is the word's number in the vocabulary, start included",
    "uniform": "the noise is uniform: Gumbel noise is -log(-log u)",
    "sign": "the noise has the wrong sign: Gumbel noise is -log(-log u), its long tail points up",
    "upside down": "the scores are multiplied by the temperature: divide, so that a high temperature flattens",
    "no temperature": "this is the draw of temperature 1: divide the scores, and only them, by T, then add noise",
    "no noise": "no noise is added: this is the most probable token, as at temperature 0",
    "not greedy": "temperature 0 is greedy: no noise there",
    "last tile": "a later tile always wins: keep the best so far, with its score",
    "in tile": "the token counts from its tile's first word: add the tile's start",
}
PROBABILITY_MISTAKES: dict[str, str] = {
    "certain": "at temperature 0 every draw would be certain: there, give the probability at temperature 1",
    "with noise": "the probability is that of the noisy scores: noise decides who wins, not how probable it was",
    "no rescale": NO_RESCALE,
    "best only": "the probability is exp(score - maximum): subtract the log-sum-exp of the whole row",
    "temperature 1": "the probability is that of temperature 1: the draw was made at another one",
}


class _Draw(NamedTuple):
    hidden: Tensor  # [N, D]
    unembedding: Tensor  # [V, D]
    seeds: Tensor  # [N]
    positions: Tensor  # [N]


def check_gumbel_max(gumbel_max: Callable[..., tuple[Tensor, Tensor]] | None = None) -> None:
    """The draws of 64 rows word for word, alone and in a batch; then 20,000 of one row against its softmax."""
    gumbel_max = gumbel_max or _library_draw
    for scale, temperature in ((1.0, 1.0), (1.0, 0.5), (1.0, 2.0), (300.0, 150.0), (1.0, 0.0)):
        case = _draw_case(64, scale)
        found = gumbel_max(*case, temperature, TILE)
        assert len(found) == 2, "two tensors are asked for: tokens and their probabilities"
        assert found[0].dtype == torch.int64, f"tokens are int64, not {found[0].dtype}"
        with np.errstate(all="ignore"):
            wrong = {why: _drawn(case, temperature, mistake)[0] for mistake, why in TOKEN_MISTAKES.items()}
            teach(found[0], _drawn(case, temperature)[0], wrong, f"tokens at temperature {temperature:g}")
            wrong = {why: _drawn(case, temperature, mistake)[1] for mistake, why in PROBABILITY_MISTAKES.items()}
            teach(found[1], _drawn(case, temperature)[1], wrong, f"probabilities at temperature {temperature:g}")
        alone = gumbel_max(*(x[:1] if x is not case.unembedding else x for x in case), temperature, 7)[0]
        assert alone == found[0][0], "a row draws another token alone, or in tiles of 7: only its counters may matter"
    one = _draw_case(1, 1.0)
    rows = 20_000
    case = _Draw(one.hidden.expand(rows, -1), one.unembedding, torch.full((rows,), 5), torch.arange(rows))
    with _at_most(case, gumbel_max):
        token, _ = gumbel_max(*case, 1.0, TILE)
    p = np.exp(_log_softmax(_scores(one.hidden, one.unembedding)))[0]
    fit = stats.chisquare(np.bincount(token, minlength=len(p)), rows * p)
    assert fit.pvalue > 1e-3, f"20,000 draws do not follow the softmax (chi-square p = {fit.pvalue:.1g})"
    print("gumbel-max: every draw as the counters say, and 20,000 of one row follow its softmax")


def _draw_case(rows: int, scale: float) -> _Draw:
    draw = torch.Generator().manual_seed(1)
    hidden, unembedding = (torch.randn(n, 4, generator=draw, dtype=torch.float64) / 2 for n in (rows, 37))
    return _Draw(scale * hidden, 2 * unembedding, torch.arange(rows) // 8, torch.arange(rows) % 8)


def _log_softmax(scores: Array) -> Array:
    return scores - logsumexp(scores)[:, None]


def _drawn(case: _Draw, temperature: float, mistake: str = "") -> tuple[Array, Array]:
    """Token and probability from all scores at once, with a mistake or without."""
    plain, columns, rows = _scores(*case[:2]), np.arange(37), np.arange(len(case.hidden))
    scores = plain / (temperature or 1.0)
    counter = torch.from_numpy(columns % TILE if mistake == "same noise" else columns)
    u = array(uniform(case.seeds[:, None], case.positions[:, None], 0, counter))
    noise = {"uniform": u, "sign": np.log(-np.log(u)), "no noise": 0 * u}.get(mistake, -np.log(-np.log(u)))
    if temperature == 0 and mistake != "not greedy":
        noise = 0 * noise
    noisy = {"upside down": plain * (temperature or 1.0), "no temperature": plain}.get(mistake, scores) + noise
    token = noisy.argmax(1)
    if mistake == "last tile":
        token = 37 // TILE * TILE + noisy[:, 37 // TILE * TILE :].argmax(1)
    sums = {"with noise": noisy, "temperature 1": plain}.get(mistake, scores)
    log_p = (sums - logsumexp(sums)[:, None])[rows, token]
    if mistake == "no rescale":
        log_p = scores[rows, token] - online_mistakes(scores, TILE)[NO_RESCALE]
    if mistake == "best only":
        log_p = scores[rows, token] - scores.max(1)
    p = np.ones(len(rows)) if mistake == "certain" and temperature == 0 else np.exp(log_p)
    return token % TILE if mistake == "in tile" else token, p


def _library_draw(
    hidden: Tensor, unembedding: Tensor, seeds: Tensor, positions: Tensor, temperature: float, tile: int
) -> tuple[Tensor, Tensor]:
    drawn = unmask(hidden, unembedding, seeds, positions, temperature=temperature)
    return drawn.token, drawn.probability
