"""Tables for people and JSON for programs, with the versions and the machine they were measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

import pdref
from pdref.lab.evaluate import HeldOut, Row


def circumstances() -> dict[str, Any]:
    """Versions, machine and date: what a measurement needs beside it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "pdref": pdref.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "tokenizers": version("tokenizers"),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def write_json(path: Path | str, results: dict[str, Any]) -> None:
    """Write `results` beside their circumstances; folders are made as needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"circumstances": circumstances(), **results}, indent=2) + "\n")


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON takes them."""
    return [asdict(row) for row in rows]


def comparison_table(rows: Sequence[Row], title: str) -> Table:
    """Quality, forwards and speed of each method; speed-ups are over the first row."""
    table = Table(
        title=title,
        caption="right: in percent; path: forwards that wait for one another; ×: better than the first row by",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("method", no_wrap=True)
    batches = list(rows[0].seconds)
    for name in ("docs\nright", "spans\nright", "nfe", "path", "×"):
        table.add_column(name, justify="right")
    for batch in batches:
        table.add_column(f"ms/doc\nat {batch}", justify="right")
        table.add_column("×", justify="right")
    for row in rows:
        cells = [
            row.label.replace(" drafted", "\n drafted"),
            f"{100 * row.documents_right:.1f}",
            f"{100 * row.spans_right:.1f}",
            f"{row.nfe:.0f}",
            f"{row.critical_path:.1f}",
            f"{row.shorter_path:.2f}",
        ]
        for batch in batches:
            cells += [f"{1e3 * row.seconds[batch]:.1f}", f"{(row.speedup or {}).get(batch, 1.0):.2f}"]
        table.add_row(*cells)
    return table


def drafting_table(rows: Sequence[Row]) -> Table:
    """What became of the drafts of those rows that have any."""
    table = Table(title="Drafts that came true, in percent, by their place after the next token", box=box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for name in ("tokens\nper forward", "predicted\n1 + Σ Π a", "acceptance"):
        table.add_column(name, justify="right")
    for row in (row for row in rows if row.acceptance):
        shares = " ".join(f"{100 * share:.0f}" for share in row.acceptance)
        table.add_row(row.label, f"{row.tokens_per_forward:.2f}", f"{row.predicted_tokens_per_forward:.2f}", shares)
    return table


def held_out_table(found: HeldOut, title: str) -> Table:
    """Nats per document, the source's own beside them where the source is known."""
    table = Table(title=title)
    for name in ("nats per document", "model", "source", "excess"):
        table.add_column(name, justify="left" if name == "nats per document" else "right")

    def add(name: str, value: str, model: float, floor: float | None) -> None:
        known = floor is not None
        table.add_row(name, value, f"{floor:.2f}" if known else "–", f"{model / floor - 1:+.1%}" if floor else "–")

    both = None if found.floor_plan is None or found.floor_content is None else found.floor_plan + found.floor_content
    add("plan", f"{found.plan:.2f}", found.plan, found.floor_plan)
    add("content and tags, by token", f"{found.content:.2f}", found.content, found.floor_content)
    add(
        "content, by diffusion (ELBO)",
        f"{found.bound:.2f} ± {found.bound_error:.2f}",
        found.bound,
        found.floor_content,
    )
    add("document, autoregressive", f"{found.plan + found.content:.2f}", found.plan + found.content, both)
    add("document, planned diffusion", f"{found.plan + found.bound:.2f}", found.plan + found.bound, both)
    return table


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
