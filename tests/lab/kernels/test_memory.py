"""The meter counts what is allocated: to the byte where that is known, and as the operating system sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pdref.lab.kernels.memory import Meter

KIB = 1024


def bytes_of(kib: int) -> Tensor:
    return torch.ones(kib * KIB, dtype=torch.uint8)


def test_the_peak_is_the_most_that_was_held_at_once() -> None:
    """8 and 4, then 4 and 6."""

    def work() -> Tensor:
        first, second = bytes_of(8), bytes_of(4)
        del first
        third = bytes_of(6)
        del third
        return second

    meter = Meter("cpu")
    assert len(meter(work)) == 4 * KIB
    assert 12 * KIB <= meter.peak < 12 * KIB + 64  # ones() fills from a scalar, of a few bytes


def test_a_step_starts_from_what_the_last_one_left() -> None:
    """And frees of it count."""
    meter = Meter("cpu")
    kept = [meter(lambda: bytes_of(32))]
    assert 32 * KIB <= meter.peak < 32 * KIB + 64
    meter(lambda: kept.append(bytes_of(8)))
    assert 40 * KIB <= meter.peak < 40 * KIB + 64
    meter(lambda: kept.clear() or bytes_of(16))
    assert 40 * KIB <= meter.peak < 40 * KIB + 64
    meter(lambda: bytes_of(1))
    assert 17 * KIB <= meter.peak < 17 * KIB + 256


def test_what_was_there_before_does_not_count() -> None:
    """Inputs are not extra."""
    before = bytes_of(64)
    meter = Meter("cpu")
    meter(lambda: before.add_(1))
    assert meter.peak < 64


RESIDENT = """
import ctypes, sys, torch
from pdref.lab.kernels.memory import Meter
from pdref.ops.token_nll import token_nll

def status(key):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

torch.set_num_threads(1)
hidden, unembedding = torch.randn(512, 64, requires_grad=True), torch.randn(16384, 64, requires_grad=True)
targets = torch.randint(16384, (512,))

def work():
    return torch.autograd.grad(token_nll(hidden, unembedding, targets, sys.argv[1]).sum(), (hidden, unembedding))

meter = Meter("cpu")
meter(work)
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
before = status("VmRSS")
work()
print(meter.peak, status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")
@pytest.mark.parametrize("impl", ["naive", "torch"])
def test_the_operating_system_agrees(impl: str) -> None:
    """In a process whose C library returns every freed block of a quarter MiB or more at once."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    ran = subprocess.run(
        [sys.executable, "-c", RESIDENT, impl], env=environment, capture_output=True, text=True, check=True
    )
    counted, resident = map(int, ran.stdout.split())
    assert counted == pytest.approx(resident, rel=0.05)
