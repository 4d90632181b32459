"""A window on the past: each token sees the last few before it and, whatever the distance, what is kept in sight.

The rule, for a query at position i and a key at position j:

    may see  =  j <= i  and  (i - j < window  or  the key's role is kept in sight)  and  the key is not PAD

It makes a relay of a transformer: what a text says about an early choice lives on only in the words that repeat it.
A plan kept in sight ends the relay. `theory.coherence` says what follows from each; notebook 04 trains both.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from pdref.text.layout import Layout, Role


def may_see(query: Layout, key: Layout, window: int | None, in_sight: Collection[Role] = (Role.PLAN,)) -> Tensor:
    """Whether each query token sees each key token; the fields broadcast against each other.

    Without a window (None) it is plain causal attention. Raises ValueError for a window below 1: a token sees itself.
    """
    kept = torch.isin(key.role, torch.tensor([int(role) for role in in_sight], device=key.role.device))
    return within(window, query.position, key.position, kept) & (key.role != Role.PAD)


def within(window: int | None, query: Tensor, key: Tensor, kept: Tensor) -> Tensor:
    """The rule on positions alone: keys not ahead of their query, and near it or `kept`; all broadcast.

    Raises as `may_see`.
    """
    past = key <= query
    if window is None:
        return past
    if window < 1:
        raise ValueError(f"a window holds at least the token itself, not {window}")
    near = query - key < window
    return past & (near | kept)


def window_mask(query: Layout, key: Layout, window: int | None, in_sight: Collection[Role] = (Role.PLAN,)) -> Tensor:
    """The rule as attention wants it, [B, 1, Tq, Tk] bool. Raises as `may_see`."""
    return may_see(query.map(lambda f: f[:, None, :, None]), key.map(lambda f: f[:, None, None, :]), window, in_sight)


def reach(layers: int, window: int) -> int:
    """How many tokens back a token's last hidden state can know of: each layer adds window - 1.

    Tokens kept in sight are seen from anywhere, and with them what they know.
    """
    return layers * (window - 1)
