"""Which implementation of an op runs: the one place that knows where each of them can.

    naive   the definition: a few lines, any device, any float dtype, gradients by PyTorch
    torch   the best that stock PyTorch offers
    triton  our kernels: on a CUDA device, or on a CPU under Triton's interpreter (TRITON_INTERPRET=1)
    auto    triton on CUDA, torch elsewhere

An explicit request never falls back.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["naive", "torch", "triton", "auto"]
Chosen = Literal["naive", "torch", "triton"]


def choose(impl: Impl, like: Tensor) -> Chosen:
    """The implementation that `impl` means for inputs like this one.

    Raises ValueError for an unknown name, and for triton where it cannot run on `like`'s device and dtype.
    """
    if impl == "auto":
        return "triton" if like.is_cuda and like.dtype in ON_GPU and triton_is_installed() else "torch"
    if impl == "triton":
        _require_triton(like)
    elif impl not in ("naive", "torch"):
        raise ValueError(f"impl is 'naive', 'torch', 'triton' or 'auto', not {impl!r}")
    return impl


ON_GPU = (torch.float32, torch.float16, torch.bfloat16)
INTERPRETED = (torch.float32, torch.float16)  # the interpreter computes bfloat16 wrongly


@cache
def triton_is_installed() -> bool:
    """Whether Triton can be imported; it is built for Linux only."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter; Triton reads this variable when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _require_triton(like: Tensor) -> None:
    if not triton_is_installed():
        raise ValueError("impl='triton' needs Triton, which is not installed here; take 'torch' or 'naive'")
    if not like.is_cuda and not interpreted():
        raise ValueError(
            f"impl='triton' runs on a CUDA device, not on {like.device}; set TRITON_INTERPRET=1 before Python starts "
            "to interpret kernels on a CPU, or take 'torch'"
        )
    allowed = INTERPRETED if interpreted() else ON_GPU
    if like.dtype not in allowed:
        where = "interpreted" if interpreted() else "compiled"
        raise ValueError(f"a kernel {where} takes {', '.join(map(str, allowed))}, not {like.dtype}")
