"""Trees of drafts: where the first guess at a place falls, the second may stand, and one forward tries both.

    p(node) = p(its parent) q_k(its token)          q_k the drafter's distribution k places ahead

The heads of a drafter speak of each place by itself, so every sequence of their candidates is a draft. The `size` most
probable beginnings of such sequences form a tree; each of its tokens reads the text and its own ancestors
(`model.cache.Fork`), and the one path that the model itself would have written stays. Source: Medusa (2401.10774,
section 2.1.2, whose trees are fixed beforehand); growing the best nodes first is after EAGLE-2 (2406.16858).
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = -1


class Node(NamedTuple):
    """A draft: its token, how many places behind the root it stands (from 1), and the index of its parent or `ROOT`."""

    token: int
    depth: int
    parent: int


def grow(log_q: Tensor, size: int) -> list[Node]:
    """The `size` most probable nodes under log_q [J, V], parents before their children; fewer where there are none."""
    J, V = log_q.shape
    if not J:
        return []
    best, tokens = (x.tolist() for x in log_q.topk(min(size, V)))  # [J, C]
    nodes: list[Node] = []
    waiting = [(-best[0][0], 0.0, 0, ROOT, 0)]  # -log p, that of the parent, depth, parent, which candidate
    while waiting and len(nodes) < size:
        cost, before, k, parent, c = heappop(waiting)
        nodes.append(Node(tokens[k][c], k + 1, parent))
        if c + 1 < len(best[k]):
            heappush(waiting, (before - best[k][c + 1], before, k, parent, c + 1))
        if k + 1 < J:
            heappush(waiting, (cost - best[k + 1][0], cost, k + 1, len(nodes) - 1, 0))
    return nodes


def lineage(nodes: Sequence[Node], width: int) -> Tensor:
    """Who reads whom, [width, width] bool: the root, place 0, then each node itself, its ancestors and the root."""
    reads = torch.eye(width, dtype=torch.bool)
    reads[:, 0] = True
    for i, node in enumerate(nodes, 1):
        reads[i] |= reads[node.parent + 1]
    return reads


def path(nodes: Sequence[Node], exact: Sequence[int]) -> list[int]:
    """The nodes that come true, from the root down, where exact[i] is the model's token after place i of `lineage`."""
    found, at = [], ROOT
    for i, node in enumerate(nodes):  # children come after their parent, and siblings have different tokens
        if node.parent == at and node.token == exact[at + 1]:
            found.append(at := i)
    return found
