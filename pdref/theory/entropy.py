"""Shannon's entropy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def entropy(p: np.ndarray, log: Callable[[np.ndarray], np.ndarray] = np.log2) -> float:
    """H of a law of any shape, in bits; with `log=np.log` in nats."""
    p = p[p > 0]
    return float(-(p * log(p)).sum())
