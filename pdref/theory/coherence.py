"""How often T decisions contradict what was decided first: the first theorem of the course page, made exact.

A constraint Theta is uniform on m symbols. Whoever takes a decision has a copy of it, and copies go wrong: each is
one of the m - 1 other symbols with probability eps, independently (the m-ary symmetric channel). V counts the
decisions whose copy is not Theta. Schemes differ in what is copied from what, level by level:

    relay       Theta -> M_1 -> ... -> M_T            decision t reads M_t, a copy of a copy, t times over
    plan        Theta -> Z, then Z -> M_t for all t   the plan is wrong with probability pi, a reading with eps_p
    sectioned   Theta -> Z_1, ..., Z_k                a plan of k tokens; a relay of T/k decisions starts at each
    tree        a relay of b nodes below every node   at every level; T leaves decide (two levels: a plan of b tokens
                                                      that is itself written in sequence)

A channel shrinks what the symbols differ by to lambda = 1 - eps m/(m - 1), so with d(t) copies between Theta and t

    P(decision t agrees) = 1/m + (1 - 1/m) lambda^d(t)          E[V] = (1 - 1/m) (T - sum_t lambda^d(t))

and the sum over a tree is a product over its levels. Errors are independent, and nobody notices or mends one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np


def survival(error: float, values: int = 2) -> float:
    """lambda: how much of what the symbols differ by survives a copy that goes wrong with probability `error`."""
    return 1 - error * values / (values - 1)


def composed(first: float, second: float, values: int = 2) -> float:
    """The error of a copy of a copy."""
    return (1 - 1 / values) * (1 - survival(first, values) * survival(second, values))


@dataclass(frozen=True, slots=True)
class Level:
    """Siblings below a node: the error of a copy from the node, and of one from the elder sibling.

    If `along` is None every sibling reads the node; otherwise only the eldest does, and they form a relay.
    """

    siblings: int
    down: float
    along: float | None = None

    @property
    def errors(self) -> np.ndarray:
        """The error of the copy that makes each sibling, [b]."""
        later = self.down if self.along is None else self.along
        return np.array([self.down] + [later] * (self.siblings - 1))

    def carried(self, values: int) -> np.ndarray:
        """What of the node survives at each sibling, a power of lambda, [b]."""
        shrunk = 1 - self.errors * values / (values - 1)
        return shrunk if self.along is None else shrunk.cumprod()

    def total(self, values: int) -> float:
        """The sum of `carried`, in closed form: b lambda, or lambda (1 - lambda^b)/(1 - lambda)."""
        down = survival(self.down, values)
        if self.along is None:
            return self.siblings * down
        lost = self.along * values / (values - 1)  # 1 - lambda
        if lost == 0:
            return self.siblings * down
        if lost < 0.5:  # 1 - lambda^b without the cancellation
            return down * -math.expm1(self.siblings * math.log1p(-lost)) / lost
        return down * (1 - (1 - lost) ** self.siblings) / lost


@dataclass(frozen=True)
class Scheme:
    """Levels of copying between a constraint on `values` symbols and its T decisions, the leaves, in order.

    Raises ValueError for errors that are no probabilities, and where nothing is copied or there is one symbol.
    """

    levels: tuple[Level, ...]
    values: int = 2

    def __post_init__(self) -> None:
        if self.values < 2:
            raise ValueError(f"a constraint has at least 2 values, not {self.values}")
        if not self.levels or min(level.siblings for level in self.levels) < 1:
            raise ValueError(f"a scheme has levels of at least one sibling, not {self.levels}")
        for error in (e for level in self.levels for e in (level.down, level.along)):
            if error is not None and not 0 <= error <= 1:
                raise ValueError(f"the error of a copy is a probability, not {error}")

    @property
    def decisions(self) -> int:
        """T."""
        return math.prod(level.siblings for level in self.levels)

    # In closed form.

    @property
    def agreement(self) -> np.ndarray:
        """P(decision t agrees with Theta), [T]."""
        carried = reduce(np.kron, (level.carried(self.values) for level in self.levels))  # lambda^d(t)
        return 1 / self.values + (1 - 1 / self.values) * carried

    @property
    def violations(self) -> float:
        """E[V]. One constraint; k independent ones are violated k times as often."""
        carried = math.prod(level.total(self.values) for level in self.levels)
        return (1 - 1 / self.values) * (self.decisions - carried)

    @property
    def union_bound(self) -> float:
        """E[V] <= the sum, over decisions, of the errors of all copies on the way: T (eps_p + pi), eps T (T + 1)/2...

        Exact to first order in the errors, while a second error on the way is unlikely.
        """
        ways = (level.errors if level.along is None else level.errors.cumsum() for level in self.levels)
        return self.decisions * sum(float(way.mean()) for way in ways)

    @property
    def flawless(self) -> float:
        """P(V = 0), by the chance that all decisions below a node agree if the node does, and if it does not."""
        below = np.array([1.0, 0.0])
        for level in reversed(self.levels):
            down, along = (_right_and_wrong(error, self.values) for error in (level.down, level.along or 0.0))
            if level.along is None:
                below = (down @ below) ** level.siblings
            else:
                below = down @ np.linalg.matrix_power(below[:, None] * along, level.siblings - 1) @ below
        return float(below[0])

    # By enumeration, one decision after another.

    @cached_property
    def law(self) -> np.ndarray:
        """P(V = v) exactly, [T + 1]; takes time T^2."""
        below = np.eye(2)[(np.arange(self.values) > 0).astype(int)]  # [m, 2]: V of a leaf that holds each symbol
        for level in reversed(self.levels):
            down = channel(level.down, self.values)
            rest = below if level.along is not None else down @ below  # [m, v]: V from a sibling on
            each, along = rest, np.eye(self.values) if level.along is None else channel(level.along, self.values)
            for _ in range(level.siblings - 1):
                rest = np.stack([np.convolve(one, later) for one, later in zip(each, along @ rest, strict=True)])
            below = rest if level.along is None else down @ rest
        return below[0]

    @property
    def spread(self) -> float:
        """The standard deviation of V: a mean over R runs has the standard error `spread` / sqrt(R)."""
        v = np.arange(self.decisions + 1)
        return float(np.sqrt(self.law @ (v - self.law @ v) ** 2))

    # By simulation.

    def simulate(self, runs: int, seed: int) -> np.ndarray:
        """Which decisions contradict Theta in each of `runs` runs, bool [R, T]."""
        rng = np.random.default_rng(seed)
        whole = np.min_scalar_type(-2 * self.values * self.decisions)  # holds every sum of slips
        off = np.zeros((runs, 1), whole)  # [R, n] a node's symbol minus Theta's, modulo m
        for level in self.levels:
            shape = (*off.shape, level.siblings)
            slips = (rng.random(shape) < level.errors).astype(whole)  # [R, n, b]
            if self.values > 2:
                slips *= rng.integers(1, self.values, shape, whole)
            if level.along is not None:
                slips = slips.cumsum(-1, dtype=whole)
            off = ((off[..., None] + slips) % self.values).reshape(runs, -1)
        return off > 0


def channel(error: float, values: int) -> np.ndarray:
    """The m-ary symmetric channel [m, m]: from the symbol that is copied to the copy."""
    return np.where(np.eye(values, dtype=bool), 1 - error, error / (values - 1))


def _right_and_wrong(error: float, values: int) -> np.ndarray:
    """The channel with all wrong symbols made one, [2, 2]."""
    back = error / (values - 1)
    return np.array([[1 - error, error], [back, 1 - back]])


def relay(decisions: int, error: float, values: int = 2, first: float | None = None) -> Scheme:
    """No plan: each decision copies from the one before. The first copies from Theta, with error `first` if given."""
    return Scheme((Level(decisions, error if first is None else first, error),), values)


def plan(decisions: int, read: float, wrong: float = 0.0, values: int = 2) -> Scheme:
    """Every decision reads the plan with error eps_p = `read`; the plan is wrong with probability pi = `wrong`."""
    return Scheme((Level(1, wrong), Level(decisions, read)), values)


def sectioned(decisions: int, sections: int, error: float, wrong: float = 0.0, values: int = 2) -> Scheme:
    """A plan of k tokens, each wrong with probability `wrong` by itself; in each section a relay starts at its token.

    Raises ValueError if the sections cannot be equal.
    """
    if decisions % sections:
        raise ValueError(f"{sections} equal sections do not make {decisions} decisions")
    return Scheme((Level(sections, wrong), Level(decisions // sections, error, error)), values)


def tree(branching: tuple[int, ...], error: float, values: int = 2) -> Scheme:
    """Siblings in sequence at every level. (T,) is the relay, (k, T/k) a plan of k tokens written in sequence."""
    return Scheme(tuple(Level(b, error, error) for b in branching), values)


def even(decisions: int, depth: int) -> tuple[int, ...]:
    """The branching of a tree with nearly equal levels: prime factors, each given to the smallest level so far.

    Raises ValueError if there are fewer prime factors than levels.
    """
    levels, rest = [1] * depth, decisions
    primes = []
    for p in range(2, decisions + 1):
        while rest % p == 0:
            primes.append(p)
            rest //= p
    if len(primes) < depth:
        raise ValueError(f"{decisions} leaves have no tree of {depth} levels that all branch")
    for p in reversed(primes):
        levels[levels.index(min(levels))] *= p
    return tuple(sorted(levels, reverse=True))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over runs and its standard error."""

    mean: np.ndarray
    error: np.ndarray


def estimate(samples: np.ndarray) -> Estimate:
    """From samples [R, ...], one a run: violations, or which decisions were violations."""
    return Estimate(samples.mean(0), samples.std(0, ddof=1) / len(samples) ** 0.5)
