"""Hidden Markov sources: all that a past says about the future, computed exactly.

In state s a source emits token x and moves on to s' with probability matrices[x, s, s']. The belief, the law of the
state given the tokens so far, decides the law of everything that follows, so pasts with equal beliefs are one past:

    b'(s') ∝ sum_s b(s) matrices[x, s, s']            p(x_{t+1}, ..., x_{t+k} | past) = b M_{x_{t+1}} ... M_{x_{t+k}} 1

Below are the sources that `representation.py` compares, and words of known choices. Random-random-XOR and Mess3 are
those of Shai et al. 2024 (arXiv 2405.15943), who find beliefs in the residual streams of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LARGEST = 10**6  # rows of a table: enumeration beyond this is refused


def alike(laws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `laws` [P, ...] that are equal but for rounding: the first of each kind [K], and the kind of each [P].

    Numbers are told apart on a grid of 3e-10. Its step is irrational, so that no fraction lies on an edge of it.
    """
    grid = np.round(laws.reshape(len(laws), -1) * (np.pi * 1e9))
    _, first, kind = np.unique(grid, axis=0, return_index=True, return_inverse=True)
    return first, kind.ravel()


@dataclass(frozen=True, eq=False)
class HiddenMarkov:
    """`matrices` [V, S, S], summed over tokens a stochastic matrix; `start` [S], the law of the first state.

    Raises ValueError for shapes or numbers that are no such thing.
    """

    matrices: np.ndarray
    start: np.ndarray

    def __post_init__(self) -> None:
        if self.matrices.ndim != 3 or self.matrices.shape[1:] != self.start.shape * 2:
            raise ValueError(f"matrices are [V, S, S] and start [S], not {self.matrices.shape} and {self.start.shape}")
        sums = np.append(self.matrices.sum((0, 2)), self.start.sum())
        if min(self.matrices.min(), self.start.min()) < 0 or not np.allclose(sums, 1):
            raise ValueError("what leaves a state, and the start, are probabilities that sum to 1")

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return len(self.matrices)

    def step(self, weight: np.ndarray) -> np.ndarray:
        """Weights [..., S] of the states to [..., V, S], for each token that may come and the state after it."""
        V, S, _ = self.matrices.shape
        return (weight @ self.matrices.transpose(1, 0, 2).reshape(S, V * S)).reshape(*weight.shape[:-1], V, S)

    def beliefs(self, tokens: np.ndarray) -> np.ndarray:
        """The belief before any of `tokens` [..., T] and after each, [..., T + 1, S].

        Raises ValueError for tokens that the source cannot write.
        """
        found = [np.broadcast_to(self.start, (*tokens.shape[:-1], len(self.start)))]
        for x in np.moveaxis(tokens, -1, 0):
            weight = np.take_along_axis(self.step(found[-1]), x[..., None, None], -2)[..., 0, :]
            chance = weight.sum(-1, keepdims=True)
            if not (chance > 0).all():
                raise ValueError(f"the source cannot write token {len(found) - 1} of some sequence")
            found.append(weight / chance)
        return np.stack(found, -2)

    def ahead(self, beliefs: np.ndarray, offset: int) -> np.ndarray:
        """p(x_{t+offset} | past) [..., V] for `beliefs` [..., S]: what the head of one offset can know."""
        moved = beliefs @ np.linalg.matrix_power(self.matrices.sum(0), offset - 1)
        return moved @ self.matrices.sum(2).T

    def future(self, beliefs: np.ndarray, horizon: int) -> np.ndarray:
        """p(x_{t+1}, ..., x_{t+horizon} | past) for `beliefs` [..., S], with an axis of V for each token."""
        after = np.ones((len(self.start), 1))  # p(tokens | state) [S, V^k], grown from the last token to the first
        for _ in range(horizon):
            after = np.moveaxis(self.matrices @ after, 0, 1).reshape(len(self.start), -1)
        return (beliefs @ after).reshape(*beliefs.shape[:-1], *(self.vocabulary,) * horizon)

    def pasts(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The distinct beliefs [P, S] that `length` tokens can leave, and their probabilities [P].

        Raises ValueError where they are too many to list.
        """
        chance, beliefs = np.ones(1), self.start[None]
        for _ in range(length):
            if len(beliefs) * self.vocabulary > LARGEST:
                raise ValueError(f"{length} tokens leave more than {LARGEST:,} beliefs; filter samples instead")
            weight = self.step(beliefs * chance[:, None]).reshape(-1, len(self.start))
            weight = weight[weight.sum(1) > 0]
            beliefs = weight / weight.sum(1, keepdims=True)
            first, kind = alike(beliefs)
            chance, beliefs = np.bincount(kind, weight.sum(1)), beliefs[first]
        return chance, beliefs

    def table(self, past: int, horizon: int) -> np.ndarray:
        """The joint law [P, V, ..., V] of what `past` tokens say and of the `horizon` tokens after them.

        Raises ValueError where it is too large.
        """
        chance, beliefs = self.pasts(past)
        if len(chance) * self.vocabulary**horizon > 32 * LARGEST:
            raise ValueError(f"{len(chance)} beliefs by {horizon} tokens of {self.vocabulary} are too large a table")
        return self.future(beliefs * chance[:, None], horizon)


def delayed_copy(delay: int, noise: float, vocabulary: int = 2) -> HiddenMarkov:
    """x_t is x_{t-delay}, or with probability `noise` one of the other tokens; the first `delay` are uniform.

    The state is the last `delay` tokens as a number, the oldest its leading digit.
    """
    size = vocabulary**delay
    state = np.arange(size)
    token = np.arange(vocabulary)[:, None]
    chance = np.where(token == state // (size // vocabulary), 1 - noise, noise / (vocabulary - 1))  # [V, S]
    matrices = np.zeros((vocabulary, size, size))
    matrices[token, state, state * vocabulary % size + token] = chance
    return HiddenMarkov(matrices, np.full(size, 1 / size))


def random_xor(period: int = 3, known_phase: bool = False) -> HiddenMarkov:
    """`period` - 1 fair bits, then their parity, over and over; period 3 is random-random-XOR.

    State 0 opens a period; 2k - 1 + p is the place k of a period whose bits so far have parity p. Where the
    first token falls in a period is uniform, unless `known_phase`, when it opens one.
    """
    size = 2 * period - 1
    matrices = np.zeros((2, size, size))
    for bit in (0, 1):
        matrices[bit, 0, 1 + bit] = 0.5
        for parity in (0, 1):
            for place in range(1, period - 1):
                matrices[bit, 2 * place - 1 + parity, 2 * place + 1 + (parity ^ bit)] = 0.5
        matrices[bit, size - 2 + bit, 0] = 1.0
    start = np.full(size, 1 / (2 * period))
    start[0] = 1 / period
    return HiddenMarkov(matrices, np.eye(size)[0] if known_phase else start)


def mess3(x: float = 0.05, a: float = 0.85) -> HiddenMarkov:
    """Three states: it moves to each of the others with probability x, and where it arrives shows with probability a.

    T^(v)[s, s'] = (a if s' = v else (1 - a)/2) (1 - 2x if s = s' else x)
    """
    same = np.eye(3)
    show = same * a + (1 - same) * (1 - a) / 2  # [token, state]
    move = same * (1 - 2 * x) + (1 - same) * x  # [state, state]
    return HiddenMarkov(show[:, None, :] * move[None], np.full(3, 1 / 3))


def choice_words(branches: int, length: int) -> HiddenMarkov:
    """Words of a chosen branch, spelled out but for a free last token; token place * branches + value.

    State 0 opens a word, the last state is before its last token, and 1 + (place - 1) * branches + branch between.
    """
    size = 2 + branches * (length - 2)
    matrices = np.zeros((branches * length, size, size))
    for branch in range(branches):
        states = [0, *(1 + place * branches + branch for place in range(length - 2)), size - 1]
        for place in range(length - 1):
            matrices[place * branches + branch, states[place], states[place + 1]] = 1 if place else 1 / branches
        matrices[(length - 1) * branches + branch, size - 1, 0] = 1 / branches
    return HiddenMarkov(matrices, np.eye(size)[0])
