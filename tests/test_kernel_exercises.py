"""The checks of the second exercise set: right answers in another form pass, and wrong ones are told why.

Each answer is written once with a switch for every mistake, so that the frame of the mistakes is itself tested.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from laws.cells import ROOT, module
from pdref.ops.unmask.counters import uniform

tl = pytest.importorskip("triton.language", reason="Triton is built for Linux only")
triton = sys.modules["triton"]

sys.path.append(str(ROOT / "exercises"))  # its files import one another
checks = module(ROOT / "exercises" / "checks_kernels.py")
checks_sums = sys.modules["checks_sums"]
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles in this process")

Part = tuple[np.ndarray, np.ndarray]
INF = float("inf")


# Exercise 1.


def _merge(a: Part, b: Part, bug: str = "") -> Part:
    (m, s), (n, t) = a, b
    high = np.maximum(m, n)
    base = high if bug == "nan" else np.where(np.isneginf(high), 0, high)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        left, right = np.exp(m - base), np.exp(n - base)
        if bug == "no rescale":
            return high, s + t
        if bug == "one rescaled":
            return high, s * left + t
        if bug == "wrong way":
            return high, s / left + t / right
        if bug == "log":
            return high, np.log(s * left + t * right)
        if bug == "in place":
            s *= left
            return high, s + t * right
        return high, s * left + t * right + (bug == "one more")


def _online(tiles: Iterator[np.ndarray], bug: str = "") -> np.ndarray:
    so_far: Part = (np.array(-np.inf), np.array(0.0))
    kept = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for tile in tiles:
            kept.append(tile)
            m = 0 * tile[:, 0] if bug == "no maximum" else tile.max(1)
            m = np.nan_to_num(m, nan=0.0) if bug == "no maximum" else m
            base = m if bug == "nan" else np.where(np.isneginf(m), 0, m)
            part = m, np.exp(tile - base[:, None]).sum(1)
            so_far = part if bug == "last tile" else _merge(so_far, part, bug)
            if tile.shape[1] == 4 and len(kept) == 2 and bug == "narrow tile":
                break
        if bug == "kept":
            return np.log(np.exp(np.concatenate(kept, 1)).sum(1))
        return so_far[0] * (bug != "maximum lost") + np.log(so_far[1]) + (bug == "one more")


# Exercise 2.


@triton.jit
def _kernel(scores, out, V, stride, TILE: tl.constexpr, MASK: tl.constexpr, OTHER: tl.constexpr, WHOLE: tl.constexpr,
            RESCALE: tl.constexpr, MAXIMUM: tl.constexpr, GUARD: tl.constexpr, ROW: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scores += row * stride * ROW
    m = -float("inf")
    s = 0.0
    for start in range(0, V // TILE * TILE if WHOLE else V, TILE):
        v = start + tl.arange(0, TILE)
        x = tl.load(scores + v, mask=(v < V) | (MASK == 0), other=OTHER)
        larger = tl.maximum(m, tl.max(x, 0))
        base = tl.where((larger == -float("inf")) & (GUARD == 1), 0.0, larger) * MAXIMUM
        s = s * (tl.exp(m - base) if RESCALE else 1.0) + tl.sum(tl.exp(x - base), 0)
        m = larger
    tl.store(out + row, m * MAXIMUM + tl.log(s))


RIGHT = dict(MASK=1, OTHER=-INF, WHOLE=0, RESCALE=1, MAXIMUM=1, GUARD=1, ROW=1)


def _rows(scores: Tensor, tile: int, dense: bool = False, forgotten: bool = False, **bug: float) -> Tensor:
    out = torch.full((len(scores),), torch.nan)
    stride = scores.shape[1] if dense else scores.stride(0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        _kernel[(len(scores) - forgotten,)](scores, out, scores.shape[1], stride, TILE=tile, **{**RIGHT, **bug})
    return out


# Exercise 3.


def _nll(hidden: Tensor, words: Tensor, y: Tensor, tile: int, bug: str = "") -> tuple[Tensor, ...]:
    m, s, score = torch.full_like(hidden[:, 0], -INF), 0 * hidden[:, 0], 0 * hidden[:, 0]
    if bug == "all logits":
        z = (hidden @ words.T).logsumexp(1)
        return z - (hidden * words[y]).sum(1), z
    for start in range(0, len(words), tile):
        x = hidden @ words[start : start + tile].T
        high = torch.zeros_like(m) if bug == "no maximum" else torch.maximum(m, x.amax(1))
        s = s * (1 if bug == "no rescale" or bug == "no maximum" else (m - high).exp()) + (x - high[:, None]).exp().sum(
            1
        )
        m = high
        column = (y % tile).clamp(max=x.shape[1] - 1) if bug == "every tile" else y - start
        score += torch.where(torch.arange(x.shape[1]) == column[:, None], x, 0).sum(1)
    z = m + s.log()
    if bug == "short":
        return (z - score,)
    nats = z if bug == "no target" else z - score
    return {"sign": -nats, "mean": nats.mean()}.get(bug, nats), z + (bug == "log Z")


def _backward(
    g: Tensor, hidden: Tensor, words: Tensor, y: Tensor, z: Tensor, tile: int, bug: str = ""
) -> tuple[Tensor, ...]:
    d_hidden, d_words = torch.zeros_like(hidden), torch.zeros_like(words)
    if bug == "all logits":
        p = (hidden @ words.T).softmax(1)
    for start in range(0, len(words), tile):
        w = words[start : start + tile]
        x = hidden @ w.T
        p = x.softmax(1) if bug == "tile softmax" else (x - z[:, None]).exp()
        hot = torch.arange(len(w)) == (y % tile if bug == "every tile" else y - start)[:, None]
        hot = hot.to(p) * (bug != "no one-hot")
        each = torch.ones_like(g)[:, None] if bug == "no upstream" else g[:, None]
        d = each * p - hot if bug == "upstream on softmax" else each * (p - hot)
        d = -d if bug == "sign" else d
        d_hidden = d @ w if bug == "last tile" else d_hidden + d @ w
        d_words[start : start + tile] = d.T @ hidden
    if bug == "short":
        return (d_hidden,)
    return d_hidden * (2 if bug == "twice" else 1), d_words.T if bug == "transposed" else d_words


# Exercise 4.


def _state(query, key, bug: str = ""):  # type: ignore[no-untyped-def]
    def equal(field: str) -> tuple[Tensor, Tensor]:
        (a, b), (c, d) = ([getattr(end, field) for end in side] for side in (query, key))
        return (a <= d) & (c <= b), (a == b) & (c == d) & (a == c)

    low, high = query.low.position, query.high.position
    some_past, all_past = key.low.position <= high, key.high.position <= low
    if bug == "highest key":
        some_past = key.high.position <= high
    if bug == "lowest key":
        all_past = key.low.position <= low
    (some_block, all_block), (some_region, all_region) = equal("block"), equal("region")
    if bug == "blocks overlap":
        all_block = some_block
    if bug == "blocks ignored":
        some_block = all_block = torch.zeros_like(some_block)
    if bug == "regions ignored":
        some_region = all_region = torch.zeros_like(some_region)
    some = some_past & ~all_block | (all_region if bug == "one region" else some_region)
    every = all_past & ~some_block | all_region
    states = some.long() + every.long()
    return {
        "never empty": states.clamp(min=1),
        "never full": states.clamp(max=1),
        "boolean": some + every,
        "one query": states[:1],
        "three": states + 1,
    }.get(bug, states)


# Exercise 5.


def _draw(
    hidden: Tensor, words: Tensor, seeds: Tensor, positions: Tensor, T: float, tile: int, bug: str = ""
) -> tuple[Tensor, ...]:
    m, s = torch.full_like(hidden[:, 0], -INF), 0 * hidden[:, 0]
    best, score, token = m, s, torch.zeros_like(seeds)
    if bug == "batch":
        positions = torch.arange(len(seeds))
    for start in range(0, len(words), tile):
        plain = hidden @ words[start : start + tile].T
        x = plain / (T or 1)
        v = torch.arange(len(x[0])) + start * (bug != "same noise")
        u = uniform(seeds[:, None], positions[:, None], 0, v)
        noise = {"uniform": u, "sign": (-u.log()).log(), "no noise": 0 * u}.get(bug, -(-u.log()).log())
        noise = noise * bool(T or bug == "not greedy") / ((T or 1) if bug == "hot noise" else 1)
        noisy = {"upside down": plain * (T or 1), "no temperature": plain}.get(bug, x) + noise
        top, at = noisy.max(1)
        better = torch.ones_like(top, dtype=torch.bool) if bug == "last tile" else top > best
        token = torch.where(better, at if bug == "in tile" else at + start, token)
        sums = {"p with noise": noisy, "p of temperature 1": plain}.get(bug, x)
        score = torch.where(better, sums.gather(1, at[:, None])[:, 0], score)
        best = torch.maximum(best, top)
        high = torch.maximum(m, sums.amax(1))
        s = s * (1 if bug == "p without rescale" else (m - high).exp()) + (sums - high[:, None]).exp().sum(1)
        m = high
    p = (score - m - (0 if bug == "p of the best" else s.log())).exp()
    p = torch.ones_like(p) if bug == "certain" and T == 0 else p
    token = token.float() if bug == "floats" else token
    return (token,) if bug == "short" else (token, p)


def _all_at_once(hidden: Tensor, words: Tensor, *rest: object) -> tuple[Tensor, ...]:
    _ = hidden @ words.T
    return _draw(hidden, words, *rest)  # type: ignore[arg-type]


RIGHT_ANSWERS: dict[str, Callable[..., object]] = {
    "merge": _merge,
    "online_logsumexp": _online,
    "row_logsumexp": _rows,
    "token_nll": _nll,
    "token_nll_backward": _backward,
    "tile_state": _state,
    "gumbel_max": _draw,
}
WRONG_ANSWERS: dict[str, dict[str, str]] = {
    "merge": {
        "no rescale": "added as they are",
        "one rescaled": "only the first sum is rescaled",
        "wrong way": "the wrong way",
        "log": "a logarithm already",
        "nan": "an empty set is",
        "in place": "changed in place",
        "one more": "the pairs",
    },
    "online_logsumexp": {
        "no rescale": "added as they are",
        "no maximum": "exp overflows",
        "last tile": "only the last tile counts",
        "maximum lost": "not added again",
        "narrow tile": "narrower tile is left out",
        "nan": "-inf throughout",
        "kept": "can be read only until the next",
        "one more": "log-sum-exp of rows",
    },
    "token_nll": {
        "no rescale": "shrinks by exp",
        "no maximum": "exp overflows",
        "no target": "score is missing",
        "every tile": "only the tile that holds",
        "sign": "sign is wrong",
        "mean": "averaged",
        "log Z": "log-partition, small logits",
        "short": "two tensors",
        "all logits": "all logits at once",
    },
    "token_nll_backward": {
        "no one-hot": "one-hot is missing",
        "no upstream": "upstream gradient is missing",
        "upstream on softmax": "multiplies the one-hot as well",
        "sign": "sign is wrong",
        "every tile": "one-hot stands in every tile",
        "tile softmax": "normalised by itself",
        "last tile": "only the last tile reaches",
        "short": "two gradients",
        "transposed": r"is \[8, 101\], not \[101, 8\]",
        "twice": "gradient of hidden states",
        "all logits": "all logits at once",
    },
    "tile_state": {
        "highest key": "called EMPTY, .* one past key is enough",
        "lowest key": "called FULL, .* every key has to lie",
        "blocks overlap": "called EMPTY, .* may also differ",
        "blocks ignored": "called FULL, .* one block in common",
        "regions ignored": "called EMPTY, .* share a region",
        "one region": "called EMPTY, .* share a region",
        "never empty": "called PARTIAL, which is safe but slow: their ranges prove them EMPTY",
        "never full": "called PARTIAL, which is safe but slow: their ranges prove them FULL",
        "boolean": "booleans added",
        "one query": "let the fields broadcast",
        "three": "EMPTY, PARTIAL or FULL",
    },
    "gumbel_max": {
        "same noise": "every tile gets the same noise",
        "uniform": "noise is uniform",
        "sign": "wrong sign",
        "no noise": "no noise is added",
        "not greedy": "temperature 0 is greedy",
        "hot noise": "draw of temperature 1",
        "upside down": "multiplied by the temperature",
        "no temperature": "draw of temperature 1",
        "last tile": "a later tile always wins",
        "in tile": "counts from its tile",
        "p with noise": "noise decides who wins",
        "p of temperature 1": "the probability is that of temperature 1",
        "p without rescale": "shrinks by exp",
        "p of the best": "subtract the log-sum-exp",
        "certain": "every draw would be certain",
        "batch": "tokens at temperature 1",
        "floats": "tokens are int64",
        "short": "two tensors",
    },
}
WRONG_KERNELS: dict[str, tuple[dict[str, float], str]] = {
    "no mask": ({"MASK": 0}, "read without a mask"),
    "zero fill": ({"OTHER": 0.0}, "logits of 0"),
    "whole tiles": ({"WHOLE": 1}, "narrower tile is left out"),
    "no rescale": ({"RESCALE": 0}, "shrinks by exp"),
    "no maximum": ({"MAXIMUM": 0}, "exp overflows"),
    "no guard": ({"GUARD": 0}, "-inf throughout"),
    "one row": ({"ROW": 0}, "every program reads row 0"),
    "dense rows": ({"dense": True}, "rows are taken to follow one another"),
    "a row forgotten": ({"forgotten": True}, "row 2 .* never written"),
}


@interpreted
@pytest.mark.parametrize("name", RIGHT_ANSWERS)
def test_right_answers_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(checks, f"check_{name}")(RIGHT_ANSWERS[name])
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", ["token_nll", "token_nll_backward", "gumbel_max"])
def test_the_library_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(checks, f"check_{name}")()
    assert capsys.readouterr().out


@pytest.mark.parametrize(("name", "bug"), [(name, bug) for name, bugs in WRONG_ANSWERS.items() for bug in bugs])
def test_wrong_answers_are_told_why(name: str, bug: str) -> None:
    with pytest.raises(AssertionError, match=WRONG_ANSWERS[name][bug]):
        getattr(checks, f"check_{name}")(partial(RIGHT_ANSWERS[name], bug=bug))


@interpreted
@pytest.mark.parametrize("bug", WRONG_KERNELS)
def test_wrong_kernels_are_told_why(bug: str) -> None:
    change, message = WRONG_KERNELS[bug]
    with pytest.raises(AssertionError, match=message):
        checks.check_row_logsumexp(partial(_rows, **change))


def test_a_draw_from_all_logits_is_told_so() -> None:
    with pytest.raises(AssertionError, match="all logits at once"):
        checks.check_gumbel_max(_all_at_once)


def test_draws_that_only_look_random_fail_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word as the counters say is one law, frequencies are another: noise that is no noise breaks it."""
    monkeypatch.setattr(checks, "uniform", lambda *_: torch.full((1, 37), 0.5))
    monkeypatch.setitem(globals(), "uniform", lambda *counters: torch.full(torch.broadcast_shapes(*(
        torch.as_tensor(c).shape for c in counters)), 0.5))  # fmt: skip
    with pytest.raises(AssertionError, match="do not follow the softmax"):
        checks.check_gumbel_max(_draw)


@interpreted
def test_an_error_in_a_kernel_is_the_students_own() -> None:
    def fails(scores: Tensor, tile: int) -> Tensor:
        _broken[(1,)](scores)
        return scores

    with pytest.raises(ZeroDivisionError):
        checks.check_row_logsumexp(fails)


@triton.jit
def _broken(scores):
    1 // 0  # noqa: B018


def test_every_known_mistake_shows() -> None:
    """Each mistake that a check can name gives another answer than the right one and than the other mistakes."""
    case, one = checks._case(1.0), checks._draw_case(64, 1.0)
    lists = [
        [checks._nll(case, name)[0] for name in ["", *checks.NLL_MISTAKES] if name != "no maximum"],
        [checks._gradients(case, name)[1] for name in ["", *checks.GRADIENT_MISTAKES] if name != "last tile"],
        [checks._gradients(case, name)[0] for name in ["", "last tile"]],
        [checks._drawn(one, 2.0, name)[0] for name in ["", *checks.TOKEN_MISTAKES] if name != "not greedy"],
        [checks._drawn(one, 2.0, name)[1] for name in ["", *checks.PROBABILITY_MISTAKES] if name != "certain"],
    ]
    for answers in lists:
        assert all(not checks_sums.same(a, b) for i, a in enumerate(answers) for b in answers[:i])
