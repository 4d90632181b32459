"""The ops timed: the definition against stock PyTorch against our kernels, and on CUDA against what others offer.

An implementation that errs by more than its budget (`check`) is not timed, nor is anything beside it. The
implementations take turns on one problem, so that a noisy machine is noisy to all of them; a turn is a forward and a
backward, timed apart, so that `both` is their sum turn by turn. Memory is measured in a turn that is not timed
(`memory`). Rows are written as they are found, so an interrupted run keeps what it has.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from rich import box
from rich.table import Table
from torch import Tensor
from tqdm.auto import tqdm

from pdref.lab.kernels.check import errors
from pdref.lab.kernels.memory import Meter
from pdref.lab.kernels.problems import PROBLEMS, Problem
from pdref.lab.kernels.rivals import RIVALS
from pdref.lab.kernels.sweeps import SWEEPS, Size, sizes
from pdref.lab.report import circumstances
from pdref.ops.impl import triton_is_installed

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
OURS = ("naive", "torch", "triton")
FORWARD, BACKWARD, BOTH = "forward", "backward", "both"
MIB = 2**20
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One implementation's forward, backward or both at one size.

    `peak_mib` is what was allocated at once beyond the inputs (in a backward: with what the forward saved), `extra_mib`
    the same without outputs and gradients. `worst` is the largest error that the check found, in units of its budget.
    """

    op: str
    size: str
    part: str
    impl: str
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    rounds: int
    peak_mib: float
    extra_mib: float
    worst: float
    device: str
    device_name: str
    dtype: str
    threads: int
    date: str
    python: str
    torch: str
    triton: str
    pdref: str


@dataclass(frozen=True)
class Order:
    """What to time. Raises ValueError for an unknown op, implementation or size, and for a device that is not here.

    No `ops` are all ops, no `impls` all that run on the device, no `dtype` float32 on a CPU and bfloat16 on CUDA.
    """

    ops: Sequence[str] = ()
    impls: Sequence[str] = ()
    device: str = "cpu"
    dtype: str = ""
    sizes: Sequence[str] = ("sweep",)
    rounds: int = 5
    work: Mapping[str, list[Size]] = field(init=False)
    """The sizes of each op."""

    def __post_init__(self) -> None:
        _require("device", [self.device], ("cpu", "cuda"))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda': PyTorch sees no CUDA device here; take --device cpu")
        _require("op", self.ops, SWEEPS)
        _require("implementation", self.impls, (*OURS, *RIVALS))
        there = {*OURS, *RIVALS} if self.device == "cuda" else {"naive", "torch"}
        if away := [impl for impl in self.impls if impl not in there]:
            raise ValueError(f"implementation {away[0]!r} is timed on CUDA only; --device cpu has naive and torch")
        dtype = self.dtype or ("bfloat16" if self.device == "cuda" else "float32")
        _require("dtype", [dtype], DTYPES)
        object.__setattr__(self, "dtype", dtype)
        asked = self.ops or tuple(SWEEPS)
        object.__setattr__(self, "work", {op: sizes(op, self.sizes, self.device) for op in asked})

    def sides(self, op: str) -> list[str]:
        """The implementations that take turns on an op."""
        mine = [name for name, rival in RIVALS.items() if rival.op == op]
        if self.impls:
            return [impl for impl in self.impls if impl in (*OURS, *mine)]
        if self.device == "cpu":
            return ["naive", "torch"]
        ours = OURS if triton_is_installed() else OURS[:2]
        return [*ours, *(name for name in mine if RIVALS[name].installed)]


def _require(what: str, found: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> None:
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"no {what} {unknown[0]!r}; there are {', '.join(known)}")


@dataclass
class Found:
    """The rows of a run, and what was not timed, a sentence each: `refused` are ours, `left_out` the rivals."""

    rows: list[Row] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def timed(self) -> list[str]:
        """The ops that have rows."""
        return list(dict.fromkeys(row.op for row in self.rows))


def run(order: Order, file: Path, found: Found, progress: bool = True) -> None:
    """Check and time what was ordered; rows go to `found` and, line by line, to a CSV `file`, which is begun anew."""
    file.parent.mkdir(parents=True, exist_ok=True)
    turns = sum((order.rounds + 2) * len(order.sides(op)) * len(work) for op, work in order.work.items())
    with file.open("w", newline="") as page, tqdm(total=turns, disable=not progress, leave=False, unit="turn") as bar:
        lines = csv.writer(page)
        lines.writerow([f.name for f in fields(Row)])
        for op, work in order.work.items():
            bar.set_description(f"{op}: check")
            passed = _passed(op, order, found)
            for size in work if passed else ():
                bar.set_description(f"{op} {written(size)}")
                for row in measure(op, size, passed, order, found, bar.update):
                    found.rows.append(row)
                    lines.writerow(f"{x:.6g}" if isinstance(x, float) else x for x in astuple(row))
                page.flush()


def measure(
    op: str,
    size: Size,
    passed: Mapping[str, float],
    order: Order,
    found: Found,
    done: Callable[[], Any] = lambda: None,
) -> Iterator[Row]:
    """Rows of the implementations `passed` (their worst errors), which take turns; `done` is called after each turn.

    One that runs out of memory is left out. Interrupted, it first gives the rows of the rounds so far.
    """
    problem = PROBLEMS[op](**size).to(order.device, DTYPES[order.dtype])
    sides = [Side(_posed(problem, impl), impl) for impl in passed]
    interruption = None
    try:
        for turn in [Side.warm_up, Side.weigh, *order.rounds * [Side.time]]:
            for side in list(sides):
                try:
                    turn(side)
                except torch.OutOfMemoryError:
                    sides.remove(side)
                    found.left_out.append(f"{op} {written(size)}: {side.impl} runs out of memory")
                done()
    except KeyboardInterrupt as error:
        interruption = error
    machine = _machine(order)
    for part in (FORWARD, BACKWARD, BOTH):
        for side in sides:
            if ms := [1e3 * s for s in side.seconds.get(part, [])]:
                peak, extra = (n / MIB for n in side.memory[part])
                times = median(ms), min(ms), max(ms), len(ms)
                yield Row(op, written(size), part, side.impl, *times, peak, extra, passed[side.impl], **machine)
    if interruption:
        raise interruption


class Side:
    """One implementation at work on a problem: seconds and bytes of its parts."""

    def __init__(self, problem: Problem, impl: str) -> None:
        self.problem, self.impl = problem, impl
        self.inputs = {
            k: x.detach().requires_grad_() if problem.smooth and x.is_floating_point() else x
            for k, x in problem.inputs.items()
        }
        self.leaves = [x for x in self.inputs.values() if x.requires_grad]
        self.device = next(iter(problem.inputs.values())).device
        self.upstream: list[Tensor] = []
        self.seconds: dict[str, list[float]] = {}
        self.memory: dict[str, tuple[int, int]] = {}
        """Bytes at the peak, and without results, by part."""

    def forward(self) -> Mapping[str, Tensor]:
        """The op's outputs."""
        return self.problem.call(self.inputs, self.impl)  # type: ignore[arg-type]

    def backward(self, outputs: Mapping[str, Tensor]) -> Sequence[Tensor | None]:
        """The gradients of the inputs."""
        ends = [outputs[name] for name in self.problem.smooth]
        return torch.autograd.grad(ends, self.leaves, self.upstream, allow_unused=True)

    def warm_up(self) -> None:
        """A first turn, whose compilation and caches are not measured."""
        outputs = self.forward()
        self.upstream = [torch.randn_like(outputs[name]) for name in self.problem.smooth]
        if self.leaves:
            self.backward(outputs)

    def weigh(self) -> None:
        """A turn for memory."""
        meter = Meter(self.device)
        outputs = meter(self.forward)
        results = _bytes(outputs.values())
        self.memory[FORWARD] = meter.peak, meter.peak - results
        if self.leaves:
            gradients = meter(lambda: self.backward(outputs))
            results += _bytes(gradients)
            self.memory[BACKWARD] = meter.peak, meter.peak - results
            pairs = zip(self.memory[FORWARD], self.memory[BACKWARD], strict=True)
            self.memory[BOTH] = tuple(max(pair) for pair in pairs)  # type: ignore[assignment]

    def time(self) -> None:
        """A turn for time."""
        outputs, forward = _timed(self.forward, self.device)
        self.seconds.setdefault(FORWARD, []).append(forward)
        if self.leaves:
            _, backward = _timed(lambda: self.backward(outputs), self.device)
            self.seconds.setdefault(BACKWARD, []).append(backward)
            self.seconds.setdefault(BOTH, []).append(forward + backward)


STOCK = 2
"""How many times its budget an implementation may err by that rounds as others chose: in float32 on a CPU, PyTorch's
attention errs by twice as much in its gradients as the same products and softmax called one by one."""


def gate(op: str, impl: str, device: str, dtype: torch.dtype) -> tuple[float, list[str]]:
    """The largest error of an implementation in units of its budget, and a sentence for each that is too large."""
    worst, red = 0.0, []
    times = 1 if impl in ("naive", "triton") else STOCK
    for size in SWEEPS[op].check:
        for error in errors(_posed(PROBLEMS[op](**size), impl), impl, device, dtype):  # type: ignore[arg-type]
            allowed = times * error.budget
            if not error.error <= allowed:  # nor is NaN
                what = f"gradient of {error.name[2:]}" if error.name.startswith("d ") else error.name
                red.append(f"{op} {written(size)}: {impl}: {what} errs by {error.error:.3g}, allowed {allowed:.3g}")
            worst = max(worst, error.share)
    return worst, red


def _passed(op: str, order: Order, found: Found) -> dict[str, float]:
    """The implementations that may be timed, with their worst errors; none if one of ours may not."""
    passed, refused = {}, []
    for impl in order.sides(op):
        passed[impl], red = gate(op, impl, order.device, DTYPES[order.dtype])
        refused += red if impl in OURS else []
        if red and impl not in OURS:
            found.left_out += red
            del passed[impl]
    found.refused += refused
    return {} if refused else passed


def _posed(problem: Problem, impl: str) -> Problem:
    return RIVALS[impl].pose(problem) if impl in RIVALS else problem


def _timed(step: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """The step's result and seconds. On CUDA the second-level cache is emptied first, as other work would."""
    if device.type != "cuda":
        start = time.perf_counter()
        result = step()
        return result, time.perf_counter() - start
    _evictor(device).zero_()
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    result = step()
    after.record()
    after.synchronize()
    return result, before.elapsed_time(after) / 1e3


@cache
def _evictor(device: torch.device) -> Tensor:
    return torch.empty(256 * MIB, dtype=torch.int8, device=device)


def _bytes(tensors: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def _machine(order: Order) -> dict[str, Any]:
    here = circumstances()
    return {
        "device": order.device,
        "device_name": here["machine"]["gpu"] if order.device == "cuda" else here["machine"]["processor"],
        "dtype": order.dtype,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": here["python"],
        "torch": here["torch"],
        "triton": version("triton") if triton_is_installed() else "",
        "pdref": here["pdref"],
    }


def written(size: Size) -> str:
    """A size as people write it."""
    return ",".join(f"{k}={v}" for k, v in size.items())


def size_of(row: Row) -> dict[str, int]:
    """A row's size, read back."""
    return {name: int(value) for name, _, value in (word.partition("=") for word in row.size.split(","))}


def split_sizes(rows: Sequence[Row]) -> tuple[list[str], str]:
    """The sizes that vary between rows (the first, if none does), and the others as people write them."""
    found = [size_of(row) for row in rows]
    varying = [name for name in found[0] if len({size[name] for size in found}) > 1] or list(found[0])[:1]
    return varying, " ".join(f"{name}={value}" for name, value in found[0].items() if name not in varying)


def table(rows: Sequence[Row], op: str) -> Table:
    """An op's whole turns: forward and backward, where it has one."""
    rows = [row for row in rows if row.op == op]
    part = BOTH if any(row.part == BOTH for row in rows) else FORWARD
    varying, fixed = split_sizes(rows)
    title = f"{op}, {fixed}: {'forward and backward' if part == BOTH else 'forward'}, {rows[0].dtype}, medians"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in (" ".join(varying), "impl"):
        shown.add_column(name, no_wrap=True)
    for name in ("ms", "least", "most", "of naive", "peak MiB", "extra MiB", "of naive"):
        shown.add_column(name, justify="right")
    rows = [row for row in rows if row.part == part]
    naive = {row.size: row for row in rows if row.impl == "naive"}
    for i, row in enumerate(rows):
        base = naive.get(row.size)
        shown.add_row(
            " ".join(f"{size_of(row)[k]}" for k in varying) if i == 0 or rows[i - 1].size != row.size else "",
            row.impl,
            *(f"{ms:,.0f}" if ms >= 100 else f"{ms:.2f}" for ms in (row.median_ms, row.fastest_ms, row.slowest_ms)),
            _share(row.median_ms, base and base.median_ms),
            f"{row.peak_mib:,.1f}",
            f"{row.extra_mib:,.1f}",
            _share(row.extra_mib, base and base.extra_mib),
        )
    return shown


def _share(value: float, base: float | None) -> str:
    return f"{value / base:.1%}" if base else "–"


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON takes them."""
    return [asdict(row) for row in rows]
