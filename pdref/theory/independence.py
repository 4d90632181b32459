"""What it costs to write spans that cannot see each other: theory C of the reference page, exactly and estimated.

Planned Diffusion fills spans x(1), ..., x(b) independently given the plan z and the context c. The best that it can
write is the product of the spans' own laws, and what that lacks is their conditional total correlation:

    TC(x(1); ...; x(b) | z, c) = sum_k H(x(k) | z, c) - H(x(1), ..., x(b) | z, c)
                               = KL( p(x | z, c) || prod_k p(x(k) | z, c) )            in nats, averaged over z and c

Any other independent fill q costs more by what it gets wrong of the spans one by one, and by nothing else:

    KL(p || prod_k q_k) = TC + sum_k KL(p_k || q_k)

A joint is an array [Z, X_1, ..., X_b] of probabilities: plan and context on the first axis, a span on each other.
"""

from __future__ import annotations

import numpy as np

from pdref.theory.coherence import Estimate, estimate
from pdref.theory.entropy import entropy


def conditional_entropy(joint: np.ndarray) -> float:
    """H(x(1), ..., x(b) | z) in nats."""
    return entropy(joint, np.log) - entropy(joint.reshape(len(joint), -1).sum(1), np.log)


def span_law(joint: np.ndarray, span: int) -> np.ndarray:
    """p(z, x(span)), [Z, X_span], spans counted from 0."""
    return joint.sum(tuple(axis for axis in range(1, joint.ndim) if axis != span + 1))


def total_correlation(joint: np.ndarray) -> float:
    """TC(x(1); ...; x(b) | z) in nats, by entropies; zero iff the spans are independent given z."""
    alone = sum(conditional_entropy(span_law(joint, k)) for k in range(joint.ndim - 1))
    return alone - conditional_entropy(joint)


def best_fill(joint: np.ndarray) -> np.ndarray:
    """p(z) prod_k p(x(k) | z), of the shape of `joint`: the independent fill nearest to it."""
    plans = joint.reshape(len(joint), -1).sum(1)  # [Z]
    weight = np.divide(1.0, plans, where=plans > 0, out=np.zeros_like(plans))
    filled = plans.reshape(-1, *[1] * (joint.ndim - 1))
    for k in range(joint.ndim - 1):
        law = span_law(joint, k) * weight[:, None]  # p(x(k) | z)
        filled = filled * np.expand_dims(law, tuple(axis for axis in range(1, joint.ndim) if axis != k + 1))
    return filled


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) in nats; infinite where p writes what q never does."""
    if (q[p > 0] == 0).any():
        return float("inf")
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


def impossible(joint: np.ndarray) -> float:
    """How often the best independent fill writes spans that the source never writes together."""
    return float(best_fill(joint)[joint == 0].sum())


def estimated(together: np.ndarray, alone: np.ndarray) -> Estimate:
    """TC from two models' log-likelihoods of documents of the source: E[log p(x | z) - sum_k log p(x(k) | z)].

    `together` [N] is of all spans by a model whose spans see each other, `alone` [N, b] of each span by one whose
    spans do not. Both err upwards in nats, so the estimate may err either way; with the source's own log p(x | z)
    for `together` it errs upwards alone, by sum_k KL(p_k || q_k).
    """
    return estimate(together - alone.sum(1))
