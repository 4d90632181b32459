"""What no memory can beat, and the page's rules of thumb beside the exact sums of `coherence`.

A relay of m-ary symmetric channels loses what it knows about Theta at a rate that nothing put between the channels can
slow down. Three forms of that, from the sharpest:

    total variation   P(any reader of M_t names Theta) <= 1/m + (1 - 1/m) lambda^t        attained: the relay's own
    Fano              H(Theta | M_t) <= h(P_e) + P_e ln(m - 1)                            equality on this channel
    information       I(Theta; M_t) <= eta^t ln m                                         eta = `contraction`

The first is Dobrushin's: the channel brings any two laws of M_{t-1} closer by lambda in total variation, so those of
M_t under Theta = i and under j are within lambda^t, and a reader's P(right) exceeds 1/m by (1 - 1/m) lambda^t at most.
It needs lambda >= 0, an error of at most 1 - 1/m.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pdref.theory.coherence import Scheme, survival

BEST_BRANCHING = 3.5911214766686  # b ln b = b + 1


def coherence_length(error: float, values: int = 2) -> float:
    """L = 1/(1 - lambda), in copies: after t of them lambda^t ~ exp(-t/L) of what the symbols differ by is left."""
    return (values - 1) / (values * error)


def information(agreement: np.ndarray, values: int = 2) -> np.ndarray:
    """I(Theta; M_t) in nats, for a copy that agrees with probability `agreement` and else is any other symbol."""
    wrong = 1 - np.asarray(agreement)
    return math.log(values) - uncertainty(wrong, values)


def uncertainty(wrong: np.ndarray, values: int = 2) -> np.ndarray:
    """h(P_e) + P_e ln(m - 1) in nats: the most that a reader who errs with P_e = `wrong` can be left with (Fano)."""
    return -_xlogx(wrong) - _xlogx(1 - wrong) + wrong * math.log(values - 1)


def fano(known: np.ndarray, values: int = 2) -> np.ndarray:
    """The least error of any reader who has `known` nats about Theta: Fano's inequality, solved by bisection."""
    left = math.log(values) - np.asarray(known, float)
    low, high = np.zeros_like(left), np.full_like(left, 1 - 1 / values)
    for _ in range(60):
        middle = (low + high) / 2
        enough = uncertainty(middle, values) >= left
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


def contraction(error: float, values: int = 2) -> float:
    """eta: I(Theta; M_t) <= eta I(Theta; M_{t-1}) whatever the law of M_{t-1}; lambda^2 for two symbols.

    The strong data-processing constant of the m-ary symmetric channel, reached at two equally likely symbols.
    """
    return survival(error, values) ** 2 / (1 - error + error / (values - 1))


def early(decisions: int, error: float) -> float:
    """The page's eps T^2/2 for T << L; it misses T/2 of T^2/2 and the saturation, which takes T/(3 L) of it."""
    return error * decisions**2 / 2


def late(decisions: int, error: float, values: int = 2) -> float:
    """The page's (1 - 1/m)(T - L) for T >> L; the limit is (1 - 1/m)(T - L + 1)."""
    return (1 - 1 / values) * (decisions - coherence_length(error, values))


def plan_read(decisions: int, tokens: int, error: float) -> float:
    """The page's eps T^2/(2k) for a plan of k tokens that is right; to first order eps T (T/k + 1)/2."""
    return error * decisions**2 / (2 * tokens)


def plan_written(decisions: int, tokens: int, error: float) -> float:
    """The page's (eps T/2)(k + T/k) for a plan written in sequence, least at k = sqrt(T); to first order + eps T."""
    return error * decisions / 2 * (tokens + decisions / tokens)


def tree_of_depth(decisions: int, depth: float, error: float) -> float:
    """The page's eps T D T^(1/D)/2, least at D = ln T with (e/2) eps T ln T.

    It leaves out that among b siblings in sequence the mean place is (b + 1)/2: to first order eps T D (b + 1)/2,
    least at b = 3.59, D = 0.78 ln T with 1.80 eps T ln T. At D = ln T the difference is 3%.
    """
    return error * decisions * depth * decisions ** (1 / depth) / 2


def best_depth(decisions: int) -> float:
    """The depth D at which D (T^(1/D) + 1) is least, as a real number: ln T / ln b, where b ln b = b + 1."""
    return math.log(decisions) / math.log(BEST_BRANCHING)


def pairs(scheme: Callable[[int], Scheme], decisions: int, every: int) -> float:
    """Expected violated pairs when decisions 0, `every`, 2 `every`, ... state constraints that bind all that follow.

    `scheme(n)` is how one of them reaches the n decisions that it binds.
    """
    return sum(scheme(decisions - start).violations for start in range(0, decisions, every))


def _xlogx(p: np.ndarray) -> np.ndarray:
    p = np.asarray(p, float)
    return p * np.log(p, where=p > 0, out=np.zeros_like(p))
