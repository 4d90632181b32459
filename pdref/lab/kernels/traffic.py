"""What a kernel moves, counted: every load, store and matrix product, while Triton's interpreter runs it.

Three sums stand beside one another, in bytes:

    moved       of all loads and stores that are issued and not masked
    least       each program fetches what it uses once, and writes once: the least for this cut into programs
    compulsory  each launch fetches what it uses once: the least for any cut, with a cache that never forgets

An atomic both loads and stores. What is counted is what the kernel asks for, not what caches and coalescing make of
it. Run as a module, this poses the problems of `SIZES` to the kernels and prints a JSON line per problem:

    TRITON_INTERPRET=1 python -m pdref.lab.kernels.traffic float16 token_nll unmask
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from pdref.lab.kernels.check import results
from pdref.lab.kernels.launch import Launch, describe
from pdref.lab.kernels.problems import PROBLEMS, Problem
from pdref.ops.impl import interpreted

SIZES: Mapping[str, list[Mapping[str, float]]] = {
    "token_nll": [{"N": 256, "D": 128, "V": 1024}, {"N": 131, "D": 72, "V": 257}],
    "multi_token_nll": [{"D": 128, "V": 1024}],
    "planned_nll": [{"D": 128, "V": 1024}],
    "plan_marginal": [{"D": 128, "V": 1024}],
    "unmask": [
        {"N": 256, "D": 128, "V": 1024},
        {"N": 64, "D": 128, "V": 512, "temperature": 0.0},
        {"N": 70, "D": 72, "V": 257},
        {"N": 70, "D": 72, "V": 257, "temperature": 0.0},
    ],
    "planned_attention": [{"B": 1, "T": 100, "heads": 2, "key_heads": 1, "head_width": w} for w in (64, 32, 128, 80)],
    "span_attention": [{"B": 2, "heads": 2, "key_heads": 1, "head_width": w} for w in (64, 32, 128, 80)],
}
"""The sizes at which an op is counted and what it launches is compiled: small, since a CPU interprets them. Trained
models' widths are divisible by 16; a ragged size compiles to other code. What is not listed comes in its own size.
"""


@dataclass(frozen=True)
class Traffic:
    """Bytes, and operations of matrix products, of one launch or of several that share their machine code."""

    launches: int = 0
    programs: int = 0
    loaded: int = 0
    stored: int = 0
    least: int = 0
    compulsory: int = 0
    elements: int = 0  # that are touched at all, counted once a launch
    flops: int = 0

    @property
    def moved(self) -> int:
        """Bytes of all loads and stores."""
        return self.loaded + self.stored

    @property
    def excess(self) -> float:
        """Bytes moved in units of the least; above 1 a program fetches or writes something twice."""
        return self.moved / self.least if self.least else 1.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(**{k: v + getattr(other, k) for k, v in asdict(self).items()})


@dataclass(frozen=True)
class Counted:
    """A launch and its traffic."""

    launch: Launch
    traffic: Traffic


@contextmanager
def counting() -> Iterator[list[Counted]]:
    """Counts every interpreted launch within the block; the list fills as kernels finish.

    Raises RuntimeError where kernels are not interpreted.
    """
    if not interpreted():
        raise RuntimeError("traffic is counted by Triton's interpreter: set TRITON_INTERPRET=1 before Python starts")
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

    counted: list[Counted] = []
    tally = _Tally()

    def run(original, kernel, *args, grid, warmup, **kwargs):
        launch = describe(kernel, args, kwargs)
        tally.start()
        original(kernel, *args, grid=grid, warmup=warmup, **kwargs)
        counted.append(Counted(launch, tally.finish()))

    def set_grid_idx(original, builder, *index):
        tally.next_program()
        return original(builder, *index)

    def create_masked_load(original, builder, pointers, mask, *rest):
        tally.access("loaded", pointers, mask)
        return original(builder, pointers, mask, *rest)

    def create_masked_store(original, builder, pointers, value, mask, *rest):
        tally.access("stored", pointers, mask)
        return original(builder, pointers, value, mask, *rest)

    def create_atomic_rmw(original, builder, operation, pointers, value, mask, *rest):
        tally.access("loaded", pointers, mask)
        tally.access("stored", pointers, mask)
        return original(builder, operation, pointers, value, mask, *rest)

    def create_atomic_cas(original, builder, pointers, *rest):
        tally.access("loaded", pointers)
        tally.access("stored", pointers)
        return original(builder, pointers, *rest)

    def create_dot(original, builder, a, b, *rest):
        product = original(builder, a, b, *rest)
        tally.flops += 2 * product.data.size * a.data.shape[-1]
        return product

    with ExitStack() as patches:
        watched = [set_grid_idx, create_masked_load, create_masked_store, create_atomic_rmw, create_atomic_cas]
        for owner, watch in [(InterpretedFunction, run)] + [(InterpreterBuilder, f) for f in [*watched, create_dot]]:
            patches.enter_context(patch.object(owner, watch.__name__, _around(getattr(owner, watch.__name__), watch)))
        yield counted


def _around(original, watch):
    """A method that hands the original it replaces to `watch`."""
    return lambda *args, **kwargs: watch(original, *args, **kwargs)


class _Tally:
    """Running sums of one launch. Bytes are kept as sorted, disjoint intervals, of which tiles need few."""

    def start(self) -> None:
        self.sums = Traffic(launches=1)
        self.flops = 0
        self.moved = {"loaded": 0, "stored": 0}
        self.program: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
        self.whole: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)

    def access(self, direction: str, pointers: Any, mask: Any = None) -> None:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        address = pointers.data.astype(np.int64)
        if mask is not None:
            address = address[np.broadcast_to(np.asarray(mask.data, dtype=bool), address.shape)]
        self.moved[direction] += size * address.size
        if address.size:
            self.program[direction, size].append(_intervals(address.ravel(), size))

    def next_program(self) -> None:
        """Close the books of the program before, if there was one."""
        least = 0
        for key, parts in self.program.items():
            touched = _union(parts)
            least += _length(touched)
            self.whole[key].append(touched)
            if len(self.whole[key]) > 256:
                self.whole[key] = [_union(self.whole[key])]
        self.program.clear()
        self.sums = replace(self.sums, programs=self.sums.programs + 1, least=self.sums.least + least)

    def finish(self) -> Traffic:
        self.next_program()
        lengths = {key: _length(_union(parts)) for key, parts in self.whole.items()}
        return replace(
            self.sums,
            programs=self.sums.programs - 1,  # the first call of next_program closed no program
            **self.moved,
            compulsory=sum(lengths.values()),
            elements=sum(length // size for (_, size), length in lengths.items()),
            flops=self.flops,
        )


def _intervals(address: np.ndarray, size: int) -> np.ndarray:
    """The bytes of elements at these addresses as sorted disjoint [start, end), [n, 2]."""
    address = np.unique(address)
    gaps = np.flatnonzero(np.diff(address) > size)
    return np.stack([address[np.r_[0, gaps + 1]], address[np.r_[gaps, -1]] + size], 1)


def _union(parts: list[np.ndarray]) -> np.ndarray:
    """Sorted disjoint intervals that cover what the parts cover."""
    if len(parts) == 1:
        return parts[0]
    both = np.concatenate(parts)
    both = both[np.argsort(both[:, 0])]
    reach = np.maximum.accumulate(both[:, 1])
    first = np.r_[True, both[1:, 0] > reach[:-1]]
    return np.stack([both[first, 0], reach[np.r_[first[1:], True]]], 1)


def _length(intervals: np.ndarray) -> int:
    return int((intervals[:, 1] - intervals[:, 0]).sum())


def count(problem: Problem) -> list[Counted]:
    """Forward and backward of a problem by the kernels: what they launch, equal machine code taken together."""
    with counting() as counted:
        results(problem, "triton")
    merged: dict[str, Counted] = {}
    for c in counted:
        before = merged.get(c.launch.key)
        merged[c.launch.key] = Counted(c.launch, before.traffic + c.traffic) if before else c
    return list(merged.values())


def sizes(op: str) -> list[Mapping[str, float]]:
    """Where the op is counted."""
    return SIZES.get(op, [{}])


def main(dtype: str, ops: list[str]) -> None:
    """A JSON line for each op and size: what was counted, or why the op's kernels do not run."""
    answers = sys.stdout
    for op in ops:
        for size in sizes(op):
            answer: dict[str, Any] = {"op": op}
            try:
                with redirect_stdout(sys.stderr):
                    problem = PROBLEMS[op](**size).to("cpu", getattr(torch, dtype))
                    answer |= {"size": dict(problem.size), "counted": [asdict(c) for c in count(problem)]}
            except Exception as error:  # the other ops still have something to say
                answer["error"] = f"{type(error).__name__}: {error}"
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
