"""A line of the kernel report: what one kernel became and moves, and what is to be said against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from pdref.lab.kernels.compiled import Compiled
from pdref.lab.kernels.devices import PEAKS, TARGETS
from pdref.lab.kernels.launch import Launch
from pdref.lab.kernels.traffic import Traffic

EXCESS = 1.25
"""Bytes moved may be this many times the least."""

NO_SPILLS = ("sm_90", "sm_100")
"""Where a spill is a fault. The other targets are older or less known: there it is noted."""


class Finding(NamedTuple):
    """Something amiss with a kernel, on one target or (with none) in what it moves; a fault turns the report red."""

    target: str
    what: str
    fault: bool = True


@dataclass(frozen=True)
class Entry:
    """A kernel as an op launched it: its traffic, and by target what it compiled to or why it did not."""

    op: str
    size: Mapping[str, float]
    dtype: str
    launch: Launch
    traffic: Traffic
    code: Mapping[str, Compiled | str] = field(default_factory=dict)

    @property
    def kernel(self) -> str:
        """As in "token_nll._merge"."""
        return f"{self.launch.module.removeprefix('pdref.ops.').removesuffix('.triton')}.{self.launch.name}"

    def occupancy(self, target: str) -> tuple[float, str]:
        """The share of its warps a multiprocessor can hold, and what limits it."""
        code = self.code[target]
        assert isinstance(code, Compiled)
        return TARGETS[target].occupancy(code.num_warps, code.registers, code.shared, code.tensor_memory)

    def seconds(self) -> dict[str, float]:
        """The roofline time of the launches on each board, with a cache that never forgets."""
        t = self.traffic
        return {peak.name: peak.seconds(t.flops, t.compulsory, self.dtype != "float32") for peak in PEAKS}

    def findings(self) -> Iterator[Finding]:
        """What is amiss."""
        t = self.traffic
        if t.excess > EXCESS:
            yield Finding("", f"moves {t.moved} bytes, {t.excess:.2f} times the least, {t.least}")
        for target, code in self.code.items():
            if isinstance(code, str):
                yield Finding(target, f"does not compile: {code}")
                continue
            if code.spilled:
                what = f"spills {code.spilled} bytes at {code.registers} registers"
                yield Finding(target, what, target in NO_SPILLS)
            if self.dtype != "float32" and code.products and (code.missed or not code.tensor_core):
                missed = code.missed or code.products
                yield Finding(target, f"{missed} of {code.products} matrix products miss the tensor cores")
            if self.dtype == "float32" and code.tensor_core and TARGETS[target].backend == "cuda":
                yield Finding(target, "float32 products run on tensor cores, as TF32")
            share, limit = self.occupancy(target)
            if not share:
                yield Finding(target, f"does not fit: {limit}")

    def say(self, finding: Finding) -> str:
        """A finding as a sentence that names the offender."""
        size = " ".join(f"{name}={value}" for name, value in self.size.items())
        where = ", ".join(filter(None, (self.dtype, finding.target, f"in {self.op} {size}".rstrip())))
        return f"{self.kernel} ({self.launch.configuration}), {where}: {finding.what}"

    def record(self) -> dict[str, Any]:
        """All that is known, as JSON takes it."""
        return {
            "op": self.op,
            "size": dict(self.size),
            "dtype": self.dtype,
            "kernel": self.kernel,
            "configuration": self.launch.configuration,
            "traffic": {**asdict(self.traffic), "moved": self.traffic.moved, "excess": self.traffic.excess},
            "roofline_seconds": self.seconds(),
            "targets": {target: self._code_record(target) for target in self.code},
            "findings": [finding._asdict() for finding in self.findings()],
        }

    def _code_record(self, target: str) -> dict[str, Any]:
        code = self.code[target]
        if isinstance(code, str):
            return {"error": code}
        share, limit = self.occupancy(target)
        return {**asdict(code), "occupancy": share, "occupancy_limit": limit}
