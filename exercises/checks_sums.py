"""The first two exercises of `kernels.ipynb`, a log-sum-exp in numpy and as a kernel; and how all its checks answer.

The right answers have every number at hand at once, in float64. Where an answer is wrong in a known way, the check
makes the same mistake and says what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
Part = tuple[Array, Array]

NO_RESCALE = "the sum is not rescaled: when the maximum grows, what was summed so far shrinks by exp(old - new)"
NO_MAXIMUM = "exp overflows: subtract the maximum before exp, and add it again after log"
NAN_TILE = "nan after a tile that is -inf throughout: its maximum is -inf, and -inf - -inf is nan; subtract 0 there"


# Exercise 1: a sum that never overflows.

MERGE_MISTAKES: dict[str, str] = {
    "no rescale": "the sums are added as they are: each counts in units of exp(its own maximum), so rescale both first",
    "one rescaled": "only the first sum is rescaled: either maximum may be the smaller one",
    "wrong way": "the rescaling goes the wrong way: a sum taken below a smaller maximum shrinks, exp(own - common)",
    "log too early": "the sum is a logarithm already: keep (m, s) and take one logarithm at the very end",
}


def check_merge(merge: Callable[[Part, Part], Part]) -> None:
    """Parts near 0 and ±1000 in every pairing, a pair a row; then empty ones, and three in either grouping."""
    draw, shifts = np.random.default_rng(0), np.array([0.0, 1000.0, -1000.0])
    left, right = (draw.normal(size=(9, 5)) + shift[:, None] for shift in (shifts.repeat(3), np.tile(shifts, 3)))
    a, b = _part(left), _part(right)
    before = [x.copy() for x in (*a, *b)]
    with np.errstate(all="ignore"):
        found = merge(a, b)
        mistakes = {why: _merge(a, b, name) for name, why in MERGE_MISTAKES.items()}
    assert all(map(np.array_equal, (*a, *b), before)), "the parts given were changed in place: make new arrays"
    teach(found, _part(np.concatenate([left, right], 1)), mistakes, "the pairs (m, s) of nine unions")
    nothing: Part = (np.full(9, -np.inf), np.zeros(9))
    for pair in ((a, nothing), (nothing, a), (nothing, nothing)):
        with np.errstate(all="ignore"):
            found = merge(*pair)
        assert not np.isnan(found).any(), (
            "an empty set is (-inf, 0): where both are empty, -inf - -inf is nan, so subtract 0 instead"
        )
        teach(found, pair[pair[0] is nothing], {}, "a union with the empty set, which changes nothing")
    c = _part(right[::-1])
    teach(merge(merge(a, b), c), merge(a, merge(b, c)), {}, "(a + b) + c beside a + (b + c)")
    print("merge: any order, any grouping, empty sets and logits of 1000")


def check_online_logsumexp(online: Callable[[Iterator[Array]], Array]) -> None:
    """Tiles that can be seen only once: what was handed out is overwritten when the next is asked for."""
    for shift, blank, width in product((0.0, 1000.0, -1000.0), (0, 4), (1, 4, 64)):
        scores = np.random.default_rng(width).normal(size=(3, 10)) + shift + np.arange(10.0)
        scores[:, :blank] = -np.inf
        with np.errstate(all="ignore"):
            found = online(_once(scores, width))
            mistakes = online_mistakes(scores, width) | {
                "tiles are kept: each can be read only until the next one comes, so keep (m, s) and nothing else": (
                    np.full(3, np.nan) if not blank else None
                )
            }
        if blank:
            assert not np.isnan(array(found)).any(), NAN_TILE
        teach(found, logsumexp(scores), mistakes, f"log-sum-exp of rows {np.round(scores[0], 1)}, tiles of {width}")
    print("online log-sum-exp: one pass, any tile width, logits of ±1000")


def _once(scores: Array, width: int) -> Iterator[Array]:
    for start in range(0, scores.shape[1], width):
        tile = scores[:, start : start + width].copy()
        yield tile
        tile.fill(np.nan)


def _part(scores: Array) -> Part:
    """(m, s) of each row."""
    m = scores.max(1)
    return m, np.exp(scores - np.where(np.isneginf(m), 0, m)[:, None]).sum(1)


def _merge(a: Part, b: Part, mistake: str) -> Part:
    (m1, s1), (m2, s2), m = a, b, np.maximum(a[0], b[0])
    if mistake == "no rescale":
        return m, s1 + s2
    if mistake == "one rescaled":
        return m, s1 * np.exp(m1 - m) + s2
    if mistake == "wrong way":
        return m, s1 * np.exp(m - m1) + s2 * np.exp(m - m2)
    return m, np.log(s1 * np.exp(m1 - m) + s2 * np.exp(m2 - m))


def logsumexp(scores: Array) -> Array:
    m, s = _part(scores)
    return m + np.log(s)


def online_mistakes(scores: Array, width: int) -> dict[str, Array]:
    """What a row gives where one step of the loop over tiles is missing."""
    tiles = [scores[:, i : i + width] for i in range(0, scores.shape[1], width)]
    parts, whole = [_part(tile) for tile in tiles], scores.shape[1] // width
    maxima = np.maximum.accumulate([m for m, _ in parts])
    running = zip(tiles, np.where(np.isneginf(maxima), 0, maxima), strict=True)
    return {
        MERGE_MISTAKES["no rescale"]: scores.max(1) + np.log(sum(s for _, s in parts)),
        NO_RESCALE: scores.max(1) + np.log(sum(np.exp(tile - m[:, None]).sum(1) for tile, m in running)),
        NO_MAXIMUM: np.log(np.exp(scores).sum(1)),
        "only the last tile counts: the sum so far is thrown away": logsumexp(tiles[-1]),
        "the maximum is not added again after the logarithm": np.log(_part(scores)[1]),
        "the last, narrower tile is left out: the number of columns need not divide by the tile": (
            logsumexp(scores[:, : whole * width]) if whole else np.full(len(scores), -np.inf)
        ),
    }


# Exercise 2: the same as a kernel.


def check_row_logsumexp(row_logsumexp: Callable[[Tensor, int], Tensor]) -> None:
    """Rows in the middle of other numbers, so that a read beside the row shows; widths that no tile divides."""
    for (columns, tile), shift, blank in product(((64, 64), (1, 16), (100, 32), (257, 64)), (0, 300, -300), (0, 1)):
        buffer = 2 * torch.randn(5, columns + 70, generator=torch.Generator().manual_seed(columns)) + shift + 3
        scores = buffer[1:4, :columns]  # rows do not follow one another in memory
        scores[:, : blank * tile * (columns > tile)] = -torch.inf
        before = buffer.clone()
        with _errors_of_the_kernel():
            found = array(row_logsumexp(scores, tile))
        assert torch.equal(buffer, before), "the kernel writes into its input"
        assert found.shape == (3,), f"the answer has shape {list(found.shape)}, not [3]"
        numbers, memory = array(scores), array(buffer)
        padded = -columns % tile
        with np.errstate(all="ignore"):
            mistakes = online_mistakes(numbers, tile) | {
                "the tile that hangs over the end of the row is read without a mask": logsumexp(
                    np.concatenate([numbers, memory[1:4, columns : columns + padded]], axis=1)
                ),
                "masked columns count as logits of 0: a lane that is switched off must hold -inf": logsumexp(
                    np.concatenate([numbers, np.zeros((3, padded))], axis=1)
                ),
                "rows are taken to follow one another: row r begins r * row_stride numbers on": logsumexp(
                    np.stack([memory.ravel()[memory.shape[1] + r * columns :][:columns] for r in range(3)])
                ),
                "every program reads row 0: tl.program_id(0) says which row is this one's": (
                    logsumexp(numbers)[[0, 0, 0]]
                ),
            }
        wrong = np.isnan(found)
        assert not (blank and wrong.all()), NAN_TILE
        assert not wrong.any(), (
            f"row {wrong.argmax()} of the answer was never written, or it is nan: tl.store(out + row, ...)"
        )
        teach(found, logsumexp(numbers), mistakes, f"log-sum-exp of {columns} columns in tiles of {tile}")
    print("log-sum-exp kernel: ragged widths, rows apart, nothing read beside a row")


@contextmanager
def _errors_of_the_kernel() -> Iterator[None]:
    """Raise what a kernel's own line raised; the interpreter wraps it."""
    from triton.runtime.errors import InterpreterError  # not at the top: Triton is for Linux, the other checks are not

    try:
        yield
    except InterpreterError as error:
        raise error.__cause__ or error from None


# How a check answers.


def teach(found: object, right: object, mistakes: Mapping[str, object], what: str) -> None:
    """Pass if `found` is `right`; else name the known mistake that gives `found`, or show what differs."""
    if same(found, right):
        return
    for why, wrong in mistakes.items():
        assert wrong is None or not same(found, wrong), why
    raise AssertionError(f"{what}:\n  yours {_shown(found)}\n  right {_shown(right)}")


def same(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    x, y = array(a), array(b)
    return x.shape == y.shape and np.allclose(x, y, rtol=1e-5, atol=1e-5, equal_nan=True)


def array(values: object) -> Array:
    return values.detach().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _shown(values: object) -> str:
    if isinstance(values, tuple):
        return ", ".join(map(_shown, values))
    return np.array2string(array(values), precision=4, threshold=8, edgeitems=3)
