"""What others offer for two of our ops, timed beside ours on CUDA: each a few lines around a library's own call.

None of these has been run by us: they were written from the libraries' sources, for a machine with a GPU. A rival that
cannot be imported is left out, and so is one that errs by more than ours may.

    flex    FlexAttention (PyTorch) under the same rule, its block mask made once      planned_attention
    liger   Liger-Kernel, `liger_fused_linear_cross_entropy`                           token_nll
    cut     Cut Cross-Entropy (Apple), without its filter of small gradients           token_nll
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from pdref.lab.kernels.problems import Problem
from pdref.ops.token_nll import IGNORE

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rival:
    """A call that gives some of an op's outputs, and the package that it takes."""

    op: str
    package: str
    call: Callable[[Inputs], Mapping[str, Tensor]]
    outputs: tuple[str, ...]

    @property
    def installed(self) -> bool:
        """Whether its package can be found."""
        return importlib.util.find_spec(self.package) is not None

    def pose(self, problem: Problem) -> Problem:
        """The problem cut to the rival's outputs; asked for `naive`, it answers as ours does."""

        def call(x: Inputs, impl: str) -> Mapping[str, Tensor]:
            found = problem.call(x, "naive") if impl == "naive" else self.call(x)
            return {name: found[name] for name in self.outputs}

        return replace(problem, call=call, smooth=self.outputs)


def _liger(x: Inputs) -> Mapping[str, Tensor]:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as loss

    return {"nats": loss(x["hidden"], x["unembedding"], x["targets"], ignore_index=IGNORE, reduction="none")}


def _cut(x: Inputs) -> Mapping[str, Tensor]:
    from cut_cross_entropy import linear_cross_entropy as loss

    arguments = x["hidden"], x["unembedding"], x["targets"]
    return {"nats": loss(*arguments, ignore_index=IGNORE, reduction="none", impl="cce_exact")}


def _flex(x: Inputs) -> Mapping[str, Tensor]:
    mask = _block_mask(x["query"], x["key"])
    return {"out": _compiled_flex()(x["q"], x["k"], x["v"], block_mask=mask, enable_gqa=True)}


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@lru_cache(maxsize=1)
def _block_mask(query: Tensor, key: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    of_query, of_key = query.unbind(), key.unbind()  # [B, T] each

    def rule(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        position, block, region = (numbers[b, i] for numbers in of_query)
        key_position, key_block, key_region = (numbers[b, j] for numbers in of_key)
        return (key_position <= position) & (key_block != block) | (key_region == region)

    (_, B, T), S = query.shape, key.shape[2]
    return create_block_mask(rule, B, None, T, S, device=query.device)


RIVALS = {
    "flex": Rival("planned_attention", "torch", _flex, ("out",)),
    "liger": Rival("token_nll", "liger_kernel", _liger, ("nats",)),
    "cut": Rival("token_nll", "cut_cross_entropy", _cut, ("nats",)),
}
