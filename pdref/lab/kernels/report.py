"""The kernel report: what every shipped kernel became for every GPU, what it moves, and whether that is as it should.

Which kernels are shipped is not kept in a list that could miss one. The ops run forward and backward in a process that
interprets kernels; whatever they launch is counted there, and compiled in processes that do not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from tempfile import TemporaryFile
from typing import Any

from pdref.lab.kernels.compiled import Compiled
from pdref.lab.kernels.devices import TARGETS
from pdref.lab.kernels.entry import Entry, Finding
from pdref.lab.kernels.launch import Launch
from pdref.lab.kernels.problems import PROBLEMS
from pdref.lab.kernels.traffic import Traffic, sizes
from pdref.ops.impl import triton_is_installed

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Report:
    """All entries, and the ops whose kernels did not run, with the reason."""

    entries: Sequence[Entry]
    failed: Mapping[str, str]

    def faults(self) -> list[str]:
        """What must not be, a sentence each."""
        return [f"{op}: its kernels do not run: {why}" for op, why in self.failed.items()] + self._said(fault=True)

    def notes(self) -> list[str]:
        """What had better not be."""
        return self._said(fault=False)

    def _said(self, fault: bool) -> list[str]:
        said: dict[tuple[str, Finding], str] = {}
        for entry in self.entries:
            for finding in entry.findings():
                if finding.fault == fault:  # several ops may share machine code: what is wrong with it is said once
                    said.setdefault((entry.launch.key if finding.target else entry.op, finding), entry.say(finding))
        return list(said.values())

    def record(self) -> dict[str, Any]:
        """All that is known, as JSON takes it."""
        return {
            "kernels": [entry.record() for entry in self.entries],
            "faults": self.faults(),
            "notes": self.notes(),
        }


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def examine(
    ops: Sequence[str] = (),
    targets: Sequence[str] = (),
    dtypes: Sequence[str] = DTYPES,
    workers: int = 2,
    progress: Progress = lambda *_: None,
) -> Report:
    """Count and compile what these ops launch (all ops and all targets where none is named).

    Raises ValueError for an unknown name and where Triton is missing.
    """
    ops, targets = list(ops) or list(PROBLEMS), list(targets) or list(TARGETS)
    _require(ops, PROBLEMS, "op")
    _require(targets, TARGETS, "target")
    if not triton_is_installed():
        raise ValueError("the kernel report needs Triton, which is not installed here")
    entries, failed = count(ops, dtypes, workers, progress)
    return Report(compile_entries(entries, targets, workers, progress), failed)


def count(
    ops: Sequence[str], dtypes: Sequence[str], workers: int = 2, progress: Progress = lambda *_: None
) -> tuple[list[Entry], dict[str, str]]:
    """Run the ops' problems in interpreting processes, one a dtype; bfloat16 is taken to move as float16 does."""
    interpreted = list(dict.fromkeys("float16" if dtype == "bfloat16" else dtype for dtype in dtypes))
    total = len(interpreted) * sum(len(sizes(op)) for op in ops)
    answers: dict[str, list[dict]] = {dtype: [] for dtype in interpreted}

    def run(dtype: str) -> None:
        for found in _child("traffic", [dtype, *ops], {"TRITON_INTERPRET": "1"}):
            answers[dtype].append(found)
            progress("counting", sum(map(len, answers.values())), total)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, interpreted))
    failed = {a["op"]: a["error"] for found in answers.values() for a in found if "error" in a}
    entries = {
        dtype: [
            Entry(a["op"], a["size"], dtype, Launch(**c["launch"]), Traffic(**c["traffic"]))
            for a in found
            for c in a.get("counted", [])
        ]
        for dtype, found in answers.items()
    }
    if "bfloat16" in dtypes:
        entries["bfloat16"] = [replace(e, dtype="bfloat16", launch=e.launch.in_bfloat16()) for e in entries["float16"]]
    return sorted((e for dtype in dtypes for e in entries[dtype]), key=lambda e: ops.index(e.op)), failed


def compile_entries(
    entries: Sequence[Entry], targets: Sequence[str], workers: int = 2, progress: Progress = lambda *_: None
) -> list[Entry]:
    """The entries with their machine code; launches that share it are compiled once."""
    launches = {entry.launch.key: entry.launch for entry in entries}
    jobs = [(key, target) for target in targets for key in launches]
    code: dict[tuple[str, str], Compiled | str] = {}

    def run(share: list[tuple[str, str]]) -> None:
        lines = [json.dumps({"target": target, "launch": asdict(launches[key])}) for key, target in share]
        for job, found in zip(share, _child("compiled", [], {}, lines), strict=True):
            code[job] = found["error"] if "error" in found else Compiled(**found)
            progress("compiling", len(code), len(jobs))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, (jobs[i::workers] for i in range(workers))))
    return [replace(e, code={target: code[e.launch.key, target] for target in targets}) for e in entries]


def _child(module: str, arguments: Sequence[str], environment: Mapping[str, str], feed: Sequence[str] = ()) -> Iterator:
    """JSON that a module of this package prints line by line, as a process of its own.

    Raises RuntimeError with the end of what it says if it fails.
    """
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"{__package__}.{module}", *arguments]
    # Files, not pipes: neither side ever waits for the other to read.
    with TemporaryFile("w+") as jobs, TemporaryFile("w+") as complaints:
        jobs.writelines(f"{line}\n" for line in feed)
        jobs.seek(0)
        with subprocess.Popen(
            command, env={**inherited, "OMP_NUM_THREADS": "1", **environment}, stdin=jobs, stdout=subprocess.PIPE,
            stderr=complaints, text=True,
        ) as child:  # fmt: skip
            assert child.stdout
            yield from map(json.loads, child.stdout)
        if child.returncode:
            complaints.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed: {complaints.read()[-2000:]}")


def _require(names: Sequence[str], known: Mapping[str, Any], what: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; there are {', '.join(known)}")
