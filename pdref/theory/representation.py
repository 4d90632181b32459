"""What n-token prediction can teach a hidden state, in exact bits: the second theorem of the course page.

The course page claims I(h^(n); F) >= I(h^(1); F) for the hidden states h^(n) of a model trained with n heads and the
future F. As stated that is not a theorem: a hidden state may keep more than its loss asks for, and which of two
states of limited capacity keeps more depends on the source. What holds is an order of minimal statistics. Let
S_n(past) be what the optimum of n heads is a function of:

    parallel heads     S_n = (p(x_{t+1} | past), ..., p(x_{t+n} | past))        each offset on its own
    sequential heads   S_n = p(x_{t+1}, ..., x_{t+n} | past)                    jointly

Then S_1 is a function of S_n, so I(S_1; F) <= I(S_n; F) <= I(past; F): the least that an optimum must keep can only
grow with n. `kept` computes these; `best_codes` asks the same of a hidden state that can take few values, by trying
all of them, and `counterexample` is a source on which the claim then fails.

A table [P, V, ..., V] is the joint law of P pasts and the next tokens, as `HiddenMarkov.table` makes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pdref.theory.entropy import entropy
from pdref.theory.hidden_markov import alike

Heads = Literal["parallel", "sequential"]
MOST_CODES = 10**5
TIE = 1e-9  # bits within which two codes are equally good


def information(table: np.ndarray) -> float:
    """I(first axis; all others) in bits."""
    table = table.reshape(len(table), -1)
    return entropy(table.sum(0)) + entropy(table.sum(1)) - entropy(table)


def reads(table: np.ndarray, n: int, heads: Heads) -> list[np.ndarray]:
    """The joint laws of the past with whatever one head or one chain of heads predicts.

    A table [P, V] for each offset 1..n of parallel heads; one table [P, V, ..., V] for sequential heads.
    Raises ValueError for more heads than the table has tokens.
    """
    horizon = table.ndim - 1
    if not 1 <= n <= horizon:
        raise ValueError(f"{n} heads read a table of {horizon} next tokens")
    if heads == "sequential":
        return [table.sum(tuple(range(n + 1, horizon + 1)))]
    return [table.sum(tuple(k for k in range(1, horizon + 1) if k != offset)) for offset in range(1, n + 1)]


def statistic(table: np.ndarray, n: int, heads: Heads = "parallel") -> np.ndarray:
    """The minimal statistic S_n as a label [P] for each past: equal where all heads predict the same."""
    chance = table.reshape(len(table), -1).sum(1, keepdims=True)
    laws = np.hstack([part.reshape(len(table), -1) / chance for part in reads(table, n, heads)])
    return alike(laws)[1]


def merged(table: np.ndarray, code: np.ndarray) -> np.ndarray:
    """The joint law [M, V, ..., V] of a code h and the future.

    `code` [P] gives each past its value in 0..M-1, or [P, M] the probability of each.
    """
    if code.ndim == 2:
        return np.tensordot(code.T, table, 1)
    sums = np.zeros((code.max() + 1, *table.shape[1:]))
    np.add.at(sums, code, table)
    return sums


def kept(table: np.ndarray, code: np.ndarray) -> float:
    """I(h; F) in bits: what a code of the past (a statistic, or any other) says about the next tokens."""
    return information(merged(table, code))


def earned(table: np.ndarray, code: np.ndarray, n: int, heads: Heads = "parallel") -> float:
    """By how many bits a code h lowers the loss of n heads that read it: sum_k I(h; x_{t+k}), or I(h; x_{t+1..t+n})."""
    return sum(information(part) for part in reads(merged(table, code), n, heads))


@dataclass(frozen=True, slots=True)
class Row:
    """What a source tells about its next tokens, in bits, and how much of it each kind of heads asks for."""

    past: float
    next_token: float
    parallel: float
    sequential: float


def row(table: np.ndarray, n: int = 4) -> Row:
    """What all of the past says, what S_1 does, and what S_n does for parallel and for sequential heads."""
    laws = (statistic(table, 1), statistic(table, n), statistic(table, n, "sequential"))
    return Row(information(table), *(kept(table, law) for law in laws))


@dataclass(frozen=True, slots=True)
class Optimum:
    """All codes [C, P] that lower the loss by the most, `earned` bits; they keep `least` to `most` bits of the future.

    Training guarantees `least`: an optimum may be any of them.
    """

    codes: np.ndarray
    earned: float
    least: float
    most: float


def best_codes(table: np.ndarray, values: int, n: int, heads: Heads = "parallel") -> Optimum:
    """The optima of n heads that read a hidden state of at most `values` values, by exhaustive search.

    Codes that toss coins need no search: I(h; x) is convex in the law of h given the past, so its greatest value is
    found at a function of the past. Raises ValueError where there are too many functions.
    """
    codes = np.stack(list(partitions(len(table), values)))
    gains = np.array([earned(table, code, n, heads) for code in codes])
    best = codes[gains > gains.max() - TIE]
    keeps = [kept(table, code) for code in best]
    return Optimum(best, float(gains.max()), min(keeps), max(keeps))


def partitions(pasts: int, values: int) -> Iterator[np.ndarray]:
    """Every way to give `pasts` pasts at most `values` values, up to their names, as labels [pasts].

    A past takes a value in use or the next new one. Raises ValueError for more than `MOST_CODES` ways.
    """
    ways = [1] + [0] * values  # ways[m]: partitions of the pasts so far into m parts
    for _ in range(pasts):
        ways = [0] + [m * ways[m] + ways[m - 1] for m in range(1, values + 1)]
    if sum(ways) > MOST_CODES:
        raise ValueError(f"{sum(ways):,} codes of {pasts} pasts with {values} values; at most {MOST_CODES:,} are tried")

    def extended(code: list[int]) -> Iterator[np.ndarray]:
        if len(code) == pasts:
            yield np.array(code)
            return
        for value in range(min(max(code, default=-1) + 2, values)):
            yield from extended([*code, value])

    return extended([])


def counterexample(first: float = 0.316, second: float = 0.243) -> np.ndarray:
    """A source on which more heads keep less, as a table [4, 2, 2, 2]; the past is 2 U + V.

    U and V are fair bits, x_1 = U xor Bern(first), x_2 = V xor Bern(second) and x_3 = x_2 xor U. A hidden state of
    one bit that serves one head is U, which x_2 and x_3 will show: 1 bit. One that serves three parallel heads is V or
    U xor V, for x_2 or x_3 alone are better predicted from these than x_1 is from U: 0.2 bits. Three sequential heads
    would be served by U again, for together x_2 and x_3 reveal it.
    """
    table = np.zeros((4, 2, 2, 2))
    for u, v, a, b in np.ndindex(2, 2, 2, 2):  # a and b are the noise
        chance = (first if a else 1 - first) * (second if b else 1 - second) / 4
        table[2 * u + v, u ^ a, v ^ b, v ^ b ^ u] += chance
    return table
