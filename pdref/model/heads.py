"""Heads that look ahead: from what a trunk makes of a position, the hidden states of the offsets 1..n.

    parallel    h_1 = B_1(z)    h_k = B_k(z)                  a layer each (Gloeckle et al. 2024, arXiv 2404.19737)
    causal      h_1 = B_1(z)    h_k = B_k(h_{k-1})            the same, each head reading the one before it
    sequential  h_1 = z         h_k = B_k(M_k [norm h_{k-1}; norm emb(x_{i+k-1})])       (DeepSeek-V3, 2412.19437)
    medusa      h_1 = z         h_k = z + silu(W_k z)         W_k = 0 at first, so h_k = z   (Cai et al., 2401.10774)

Head 1 is the next-token head, and the unembedding is everyone's: softmax(U norm(h_k)) at position i is of x_{i+k}.
`MultiToken` is a `Transformer` with more heads than one. What knows nothing of them uses it as it is, and a plain
transformer's weights fit its trunk. B_1 is the transformer's last layer; its `layers` count it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pdref.model.norm import RMSNorm
from pdref.model.transformer import Block, Config, Memory, Transformer
from pdref.ops.impl import Impl
from pdref.text.mask import Sight

Kind = Literal["parallel", "causal", "sequential", "medusa"]
KINDS: tuple[Kind, ...] = ("parallel", "causal", "sequential", "medusa")


def at_parity(config: Config, n: int) -> Config:
    """The layers that are left when n - 1 heads of a layer each join. Raises ValueError if none are."""
    return replace(config, layers=config.layers - (n - 1))


class Follower(nn.Module):
    """A sequential head: a layer on the head before it and the token that that one predicts."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.norm_state = RMSNorm(config.width)
        self.norm_token = RMSNorm(config.width)
        self.mix = nn.Linear(2 * config.width, config.width, bias=False)
        self.block = Block(config, layer)

    def join(self, x: Tensor, token: Tensor) -> Tensor:
        """The stream x and embedded tokens, [B, T, D] each -> [B, T, D]."""
        both = torch.cat([self.norm_state.forward(x), self.norm_token.forward(token)], -1)
        return F.linear(both, self.mix.weight)


class Residuals(nn.Module):
    """Medusa's heads, all in one matrix product."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, width, width))

    def forward(self, z: Tensor) -> Tensor:
        """[..., D] -> [..., n - 1, D]."""
        inner = F.linear(z, self.weight.flatten(0, 1)).unflatten(-1, self.weight.shape[:2])
        return z.unsqueeze(-2) + F.silu(inner)

    def one(self, j: int, z: Tensor) -> Tensor:
        """Head j + 2 alone, [..., D] -> [..., D]."""
        return z + F.silu(F.linear(z, self.weight[j]))


class MultiToken(Transformer):
    """A transformer with `n` heads, whose `forward` is that of the first. Raises ValueError for one, or no `kind`."""

    def __init__(self, config: Config, n: int, kind: Kind = "parallel") -> None:
        if n < 2 or kind not in KINDS:
            raise ValueError(f"heads are at least 2, not {n}, and one of {', '.join(KINDS)}, not {kind!r}")
        super().__init__(config)
        self.n, self.kind = n, kind
        if kind == "medusa":
            self.heads: nn.Module = Residuals(config.width, n - 1)
        else:
            head = Follower if kind == "sequential" else Block
            self.heads = nn.ModuleList(head(config, layer) for layer in range(n - 1))

    @property
    def attends(self) -> bool:
        """Whether the further heads attend to earlier positions; their layers are numbered from 0."""
        return self.kind != "medusa"

    @property
    def reach(self) -> int:
        """How many tokens after a position's next one the further heads read of the text."""
        return self.n - 2 if self.kind == "sequential" else 0

    def trunk(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | Sight | None = None,
        memory: Memory | None = None,
        impl: Impl = "auto",
    ) -> Tensor:
        """The z of all heads, [B, T, D]; arguments as those of `forward`."""
        if self.kind == "medusa":
            return self.forward(tokens, positions, mask, memory, impl)
        layers = self.config.layers - (self.kind == "parallel")
        return self.stream(tokens, positions, mask, memory, impl, layers)

    def first(
        self,
        z: Tensor,
        positions: Tensor,
        mask: Tensor | Sight | None = None,
        memory: Memory | None = None,
        impl: Impl = "auto",
    ) -> Tensor:
        """Head 1 [B, T, D] of z: first(trunk(...), ...) is forward(...)."""
        if self.kind == "medusa":
            return z
        if self.kind == "parallel":
            z = self.blocks[-1].forward(z, self._turn(positions), mask, mask is None and memory is None, memory, impl)
        return self.norm.forward(z)

    def further(
        self,
        z: Tensor,
        positions: Tensor,
        following: Callable[[int], Tensor],
        mask: Tensor | Sight | None = None,
        memory: Memory | None = None,
        impl: Impl = "auto",
    ) -> Iterator[Tensor]:
        """Heads 2..n of z, [B, T, D] each, one after the other.

        `following(k)` are the tokens [B, T] that stand k places after `positions`; a sequential head asks for them
        when its turn comes, so that the head before may have drawn the latest. `memory` is the heads' own.
        """
        if self.kind == "medusa":
            yield from self.heads(z).unbind(-2)
            return
        x, turn, causal = z, self._turn(positions), mask is None and memory is None
        for k, head in enumerate(self.heads, 1):
            if self.kind == "sequential":
                x, layer = head.join(x, self.embed(following(k))), head.block
            else:
                x, layer = z if self.kind == "parallel" else x, head
            x = layer.forward(x, turn, mask, causal, memory, impl)
            yield self.norm.forward(x)

    def ahead(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | Sight | None = None, impl: Impl = "auto"
    ) -> Tensor:
        """Hidden states [B, T, n, D] of all heads on texts that are known, as in training.

        Where x_{i+k} lies beyond the end, what head k says is of no use to anyone.
        """
        z = self.trunk(tokens, positions, mask, impl=impl)
        heads = self.further(z, positions, lambda k: tokens.roll(-k, dims=1), mask, impl=impl)
        return torch.stack([self.first(z, positions, mask, impl=impl), *heads], 2)

    def apart(
        self, positions: Tensor, mask: Tensor | Sight | None = None, impl: Impl = "auto"
    ) -> list[Callable[[Tensor], Tensor]]:
        """The heads as functions of z alone. Raises ValueError where a head needs the one before it."""
        first = partial(self.first, positions=positions, mask=mask, impl=impl)
        turn = self._turn(positions)
        if self.kind == "medusa":
            return [first, *(partial(self.heads.one, j) for j in range(self.n - 1))]
        if self.kind != "parallel":
            raise ValueError(f"{self.kind} heads read each other; parallel and medusa heads read the trunk alone")

        def head(block: Block, z: Tensor) -> Tensor:
            return self.norm.forward(block.forward(z, turn, mask, mask is None, None, impl))

        return [first, *(partial(head, block) for block in self.heads)]

    def _turn(self, positions: Tensor) -> Tensor:
        return torch.view_as_complex(self.turns[positions])
