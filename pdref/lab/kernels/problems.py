"""A problem per op: inputs of a given size and a call that any implementation answers.

Tests, the benchmark, the counting run and the compile lane all take their problems from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pdref.ops.impl import Impl
from pdref.ops.token_nll import token_nll
from pdref.ops.unmask import most_confident, unmask


@dataclass(frozen=True)
class Problem:
    """Inputs by name and a call: `call(inputs, impl)` gives the op's outputs by name.

    Inputs in floating point are differentiable, and so are the outputs named in `smooth`. `flops` counts the
    multiplications and additions of the forward alone, as the definition does them.
    """

    op: str
    size: Mapping[str, int]
    inputs: Mapping[str, Tensor]
    call: Callable[[Mapping[str, Tensor], Impl], Mapping[str, Tensor]]
    smooth: tuple[str, ...]
    flops: int

    def to(self, device: str | torch.device, dtype: torch.dtype) -> Problem:
        """The same problem elsewhere; floating-point inputs take `dtype`."""
        moved = {k: x.to(device, dtype if x.is_floating_point() else None) for k, x in self.inputs.items()}
        return Problem(self.op, self.size, moved, self.call, self.smooth, self.flops)


def token_nll_problem(N: int = 256, D: int = 64, V: int = 1000, seed: int = 0, scale: float = 1.0) -> Problem:
    """Hidden states of unit variance and targets at random, a tenth of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "hidden": scale * torch.randn(N, D, generator=generator),
        "unembedding": torch.randn(V, D, generator=generator) / D**0.5,
        "targets": torch.randint(V, (N,), generator=generator),
    }
    inputs["targets"][torch.rand(N, generator=generator) < 0.1] = -1

    def call(x: Mapping[str, Tensor], impl: Impl) -> Mapping[str, Tensor]:
        nats, log_partition = token_nll(x["hidden"], x["unembedding"], x["targets"], impl, log_partition=True)
        return {"nats": nats, "log_partition": log_partition}

    return Problem("token_nll", {"N": N, "D": D, "V": V}, inputs, call, ("nats", "log_partition"), 2 * N * V * D)


def unmask_problem(
    N: int = 128, D: int = 64, V: int = 1000, L: int = 32, temperature: float = 1.0, seed: int = 0, scale: float = 1.0
) -> Problem:
    """N masked positions, in spans of L, a few forbidden words; then half of each span's positions are revealed."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "hidden": scale * torch.randn(N, D, generator=generator),
        "unembedding": torch.randn(V, D, generator=generator) / D**0.5,
        "seeds": torch.randint(2**31, (N,), generator=generator),
        "positions": torch.arange(N),
        "forbidden": torch.arange(0, V - 1, 7),
        "masked": torch.rand(-(-N // L), L, generator=generator) < 0.7,
        "confidence": torch.randint(8, (-(-N // L), L), generator=generator).float(),  # few values: many ties
    }

    def call(x: Mapping[str, Tensor], impl: Impl) -> Mapping[str, Tensor]:
        arguments = x["hidden"], x["unembedding"], x["seeds"], x["positions"]
        drawn = unmask(*arguments, step=3, temperature=temperature, forbidden=x["forbidden"], impl=impl)
        chosen = most_confident(x["confidence"], x["masked"], x["masked"].sum(1) // 2, impl)
        return {**drawn._asdict(), "chosen": chosen}

    return Problem("unmask", {"N": N, "D": D, "V": V, "L": L}, inputs, call, (), 2 * N * V * D)


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "token_nll": token_nll_problem,
    "unmask": unmask_problem,
}
