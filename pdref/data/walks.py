"""Walks around a ring: a question whose answer takes a calculation, and whose steps leave nothing to choose.

A prompt lists the `nodes` edges of a random ring in random order, one token each, and a start; the text is the node
that lies `hops` edges on. The thoughts are the nodes between. Prompts decide thoughts and text, so both have entropy
zero: what thoughts hold is work, not a decision. Who follows one edge and guesses is right once in nodes - 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Asked(NamedTuple):
    """Questions, the nodes on the way, and answers."""

    prompt: Tensor  # [B, nodes + 1] int64
    thoughts: Tensor  # [B, hops - 1]
    text: Tensor  # [B, 1]


@dataclass(frozen=True)
class Walks:
    """Rings of `nodes`, walked `hops` edges far. Raises ValueError for a walk of one edge or once around.

    Tokens 0..nodes - 1 are nodes, token nodes * (1 + a) + b is the edge from a to b.
    """

    nodes: int = 7
    hops: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.hops < self.nodes:
            raise ValueError(f"a walk takes 2 to nodes - 1 hops, not {self.hops} on {self.nodes} nodes")

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return self.nodes * (1 + self.nodes)

    @property
    def chance(self) -> float:
        """Right answers of one who knows the first node on the way and guesses among those that are left."""
        return 1 / (self.nodes - 2)

    def sample(self, count: int, generator: torch.Generator) -> Asked:
        """`count` questions, on the CPU."""
        ring = torch.rand(count, self.nodes, generator=generator).argsort(1)  # nodes in the order of the ring
        edges = self.nodes * (1 + ring) + ring.roll(-1, 1)
        order = torch.rand(count, self.nodes, generator=generator).argsort(1)
        prompt = torch.cat([edges.gather(1, order), ring[:, :1]], 1)
        return Asked(prompt, ring[:, 1 : self.hops], ring[:, self.hops : self.hops + 1])
