"""How much memory a computation takes, by the allocator's own account.

On CUDA the caching allocator keeps the peak. On a CPU every block that PyTorch allocates or frees is reported to its
profiler; the running sum of these reports has a peak, exact to the byte and the same in every run. The process's
resident memory would not do: the C library keeps freed blocks and cuts new ones from them, so one computation shows
now more, now less than it holds. Told to return freed blocks at once (which slows everything down), resident memory
agrees with the sum; tests/lab/kernels/test_memory.py compares the two.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler else says on stderr that it starts and stops

T = TypeVar("T")


class Meter:
    """Runs the steps of a computation; `peak` is the most bytes that the last one saw above what was there at first.

    What a step leaves allocated counts in the next: after a forward, the backward starts at what was saved for it.
    Between two steps nothing of theirs may be freed.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.peak = 0
        self._held = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def __call__(self, step: Callable[[], T]) -> T:
        """Run a step and return its result."""
        return self._on_cuda(step) if self.device.type == "cuda" else self._on_cpu(step)

    def _on_cuda(self, step: Callable[[], T]) -> T:
        torch.cuda.reset_peak_memory_stats(self.device)
        result = step()
        torch.cuda.synchronize(self.device)
        self.peak = torch.cuda.max_memory_allocated(self.device) - self._held
        return result

    def _on_cpu(self, step: Callable[[], T]) -> T:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
            result = step()
        events = record.profiler.kineto_results.events()  # type: ignore[union-attr]
        self.peak = self._held
        for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
            self._held += event.nbytes()
            self.peak = max(self.peak, self._held)
        return result
