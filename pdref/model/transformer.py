"""One transformer for everything here: methods differ in what they mask, noise and sample, never in the network.

Choices: pre-norm RMSNorm, rotary positions, GELU, no biases, optional grouped-query heads, untied unembedding,
PyTorch's default initialisation. (QK-norm, zero-initialised output projections and squared ReLU were tried at this
size with two-stream training and stall; see LOG.md.) One dial: `Config.of_depth(d)` sets width 32 d and d heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pdref.model.norm import RMSNorm
from pdref.ops.impl import Impl
from pdref.ops.planned_attention import planned_attention
from pdref.text.mask import Sight


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes: V tokens, C positions, N layers, D width, H query heads, G key heads. Raises ValueError."""

    vocabulary: int
    context: int = 512
    layers: int = 3
    width: int = 96
    heads: int = 3
    key_heads: int = 3

    def __post_init__(self) -> None:
        if min(self.vocabulary, self.context, self.layers, self.width, self.heads, self.key_heads) < 1:
            raise ValueError(f"every size is at least 1: {self}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} does not split into {self.heads} heads of even width")
        if self.heads % self.key_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.key_heads} key heads evenly")

    @classmethod
    def of_depth(cls, depth: int, vocabulary: int, context: int = 512, share: int = 1) -> Config:
        """The one dial: `depth` layers, width 32 depth, `depth` heads, of which `share` use one key head."""
        return cls(vocabulary, context, depth, 32 * depth, depth, max(1, depth // share))

    @property
    def head_width(self) -> int:
        """Dh."""
        return self.width // self.heads


class Memory(Protocol):
    """What a layer's queries attend to beside each other; see `cache`."""

    @property
    def mask(self) -> Tensor | None:
        """Which of the S keys that `extend` returns each query sees, [B, 1, T or 1, S] bool; None for all of them."""
        ...

    def extend(self, layer: int, entries: Tensor) -> Tensor:
        """Take new keys and values [B, 2G, T, Dh] (G key heads, then G value heads); return all, [B, 2G, S, Dh]."""
        ...

    def attend(self, layer: int, q: Tensor, entries: Tensor, mask: Tensor | Sight | None, impl: Impl) -> Tensor:
        """Attend q [B, H, T, Dh] to what `extend` returns, under `mask`, or the memory's own if it is None."""
        ...


class Attention(nn.Module):
    """Multi-head attention with rotary positions."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.key_heads = layer, config.heads, config.key_heads
        self.head_width = config.head_width
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.key_heads) * config.head_width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, turn: Tensor, mask: Tensor | Sight | None, causal: bool, memory: Memory | None, impl: Impl
    ) -> Tensor:
        """x [B, T, D], turn [B, T, H + 2G, Dh/2] complex -> [B, T, D]."""
        B, T, D = x.shape
        H, G = self.heads, self.key_heads
        heads = F.linear(x, self.qkv.weight).view(B, T, H + 2 * G, self.head_width)
        q, entries = rotate(heads, turn).transpose(1, 2).split_with_sizes([H, 2 * G], 1)  # [B, H | 2G, T, Dh]
        if memory is not None:
            y = memory.attend(self.layer, q, entries, mask, impl)
        else:
            k, v = entries.split_with_sizes([G, G], 1)
            y = planned_attention(q, k, v, mask, causal, impl)
        return F.linear(y.transpose(1, 2).reshape(B, T, D), self.out.weight)


class Block(nn.Module):
    """Attention and a GELU network, each on a normalised residual stream."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.norm_attention = RMSNorm(config.width)
        self.attention = Attention(config, layer)
        self.norm_mlp = RMSNorm(config.width)
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, turn: Tensor, mask: Tensor | Sight | None, causal: bool, memory: Memory | None, impl: Impl
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        # `forward` and `F.linear` instead of calls of modules: a fifth of a token's time when decoding at batch 1.
        x = x + self.attention.forward(self.norm_attention.forward(x), turn, mask, causal, memory, impl)
        inner = F.gelu(F.linear(self.norm_mlp.forward(x), self.up.weight))  # [B, T, 4D]
        return x + F.linear(inner, self.down.weight)


class Transformer(nn.Module):
    """Tokens at positions, under a mask, to hidden states; `logits` maps those to the vocabulary."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.unembed = nn.Linear(config.width, config.vocabulary, bias=False)
        # How each head turns at each position: queries and keys by it, values not at all. Kept as pairs of real
        # numbers, because `.to(dtype)` would drop the imaginary part of complex ones.
        turn = turns(config.context, config.head_width)[:, None]  # [C, 1, Dh/2]
        table = [turn] * (config.heads + config.key_heads) + [torch.ones_like(turn)] * config.key_heads
        self.register_buffer("turns", torch.view_as_real(torch.cat(table, 1)), persistent=False)  # [C, H + 2G, Dh/2, 2]

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | Sight | None = None,
        memory: Memory | None = None,
        impl: Impl = "auto",
    ) -> Tensor:
        """Hidden states [B, T, D] of `tokens`, `positions` [B, T] int64; `mask` is a `Sight` or [B, 1, T, S] bool.

        Without a mask the forward is causal, or with a memory as the memory has it. Raises ValueError for another
        dtype or shape and, on a CPU, for tokens outside the vocabulary or positions outside the context.
        """
        return self.norm.forward(self.stream(tokens, positions, mask, memory, impl))

    def stream(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | Sight | None = None,
        memory: Memory | None = None,
        impl: Impl = "auto",
        layers: int | None = None,
    ) -> Tensor:
        """The residual stream [B, T, D] after the first `layers` (all, if None), as `forward` has it."""
        if tokens.dtype != torch.int64 or tokens.shape != positions.shape or tokens.dim() != 2:
            raise ValueError(
                f"tokens and positions are int64 [B, T], not {tokens.dtype} {[*tokens.shape]}, {[*positions.shape]}"
            )
        try:
            turn = torch.view_as_complex(self.turns[positions])  # [B, T, H + 2G, Dh/2]
            x = self.embed(tokens)  # [B, T, D]
        except IndexError:
            raise ValueError(
                f"tokens reach {int(tokens.max())} of a vocabulary of {self.config.vocabulary}, "
                f"positions {int(positions.max())} of a context of {self.config.context}"
            ) from None
        causal = mask is None and memory is None
        for block in islice(self.blocks, layers):
            x = block.forward(x, turn, mask, causal, memory, impl)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return self.unembed(hidden)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embed.weight.device

    @property
    def parameter_count(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.parameters())


def turns(context: int, head_width: int, base: float = 10_000.0) -> Tensor:
    """Rotary angles as unit complex numbers e^{i p base^{-2 j / Dh}}, [C, Dh/2] (arXiv 2104.09864, eq. 34)."""
    rates = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angles = torch.arange(context, dtype=torch.float64)[:, None] * rates
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def rotate(heads: Tensor, turn: Tensor) -> Tensor:
    """Turn pairs of features by their position: heads [B, T, H, Dh], turn [B, T, 1, Dh/2] complex."""
    pairs = torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2)
