"""The kernel report on a screen: a table of machine code and a table of traffic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from pdref.lab.kernels.compiled import Compiled
from pdref.lab.kernels.devices import PEAKS
from pdref.lab.kernels.entry import EXCESS, NO_SPILLS, Entry
from pdref.lab.kernels.report import Report

WIDTH = 120


def show(report: Report, console: Console) -> None:
    """Both tables, what they mean, and what is wrong."""
    if console.width < WIDTH and not console.is_terminal:  # a pipe has no width of its own
        console = Console(file=console.file, width=WIDTH)
    console.print(code_table(report), traffic_table(report))
    for note in report.notes():
        console.print(f"[yellow]Note:[/] {note}", highlight=False, soft_wrap=True)
    faults = report.faults()
    for fault in faults:
        console.print(f"[bold red]Fault:[/] {fault}", highlight=False, soft_wrap=True)
    if not faults:
        console.print(
            f"No spills on {' and '.join(NO_SPILLS)}, every half-precision product on tensor cores, "
            f"at most {EXCESS} times the least bytes moved."
        )


def code_table(report: Report) -> Table:
    """A row for each kernel, configuration, dtype and target; the worst where alignment gives several versions."""
    table = Table(
        title="Machine code",
        caption="Registers, stack and spilled bytes of a thread, shared memory of a program. Occupancy: the share of "
        "its warps that a multiprocessor can hold, and what limits it.\nfloat32 is multiplied exactly (IEEE), which "
        "NVIDIA's tensor cores cannot: only half precision has to be found on them.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("kernel, configuration", "dtype", "target"):
        table.add_column(name)
    for name in ("registers", "stack\nbytes", "spilled\nbytes", "shared\nKiB"):
        table.add_column(name, justify="right")
    table.add_column("occupancy")
    table.add_column("tensor-core\ninstructions")
    groups = _grouped(report, lambda e: (e.kernel, e.dtype, e.launch.configuration))
    for (kernel, dtype, configuration), entries in groups.items():
        heads = [kernel, *_pairs(configuration)]
        targets = list(entries[0].code)
        for i in range(max(len(targets), len(heads))):
            cells = _code_cells(entries, targets[i]) if i < len(targets) else []
            table.add_row(heads[i] if i < len(heads) else "", "" if i else dtype, *targets[i : i + 1], *cells)
        table.add_section()
    return table


def traffic_table(report: Report) -> Table:
    """A row for each op, kernel and dtype at the op's first size; "×" is the worst of all its sizes.

    bfloat16 moves what float16 does, and is left out.
    """
    table = Table(
        title="Traffic, counted by the interpreter",
        caption="Bytes of all loads and stores, for each element that is touched. Least: if each program fetched what "
        "it uses once; compulsory: if each launch did.\nRoofline: the time that the products or the compulsory bytes "
        "take at a board's peak, whichever is longer.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("kernel", "op, size", "dtype"):
        table.add_column(name, overflow="fold")
    for name in ("bytes/\nelement", "least", "×", "compul-\nsory", "flop/\nbyte", *(f"{p.name}\nµs" for p in PEAKS)):
        table.add_column(name, justify="right")
    for entries in _grouped(report, lambda e: (e.op, e.kernel, e.dtype)).values():
        first, t = entries[0], entries[0].traffic
        if first.dtype == "bfloat16":
            continue
        excess = max(e.traffic.excess for e in entries)
        table.add_row(
            first.kernel,
            f"{first.op} {' '.join(f'{k}={v}' for k, v in first.size.items())}",
            first.dtype,
            f"{t.moved / t.elements:.2f}",
            f"{t.least / t.elements:.2f}",
            f"[red]{excess:.2f}[/]" if excess > EXCESS else f"{excess:.2f}",
            f"{t.compulsory / t.elements:.2f}",
            f"{t.flops / t.moved:.1f}",
            *(f"{1e6 * seconds:.3f}" for seconds in first.seconds().values()),
        )
    return table


def _grouped(report: Report, key: Callable[[Entry], tuple[str, ...]]) -> dict[tuple[str, ...], list[Entry]]:
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in report.entries:
        groups.setdefault(key(entry), []).append(entry)
    return groups


def _pairs(configuration: str) -> list[str]:
    """A configuration in lines that the first column holds."""
    words = configuration.split()
    return [f"  {' '.join(words[i : i + 3])}" for i in range(0, len(words), 3)]


def _code_cells(entries: Sequence[Entry], target: str) -> list[str]:
    codes = [e.code[target] for e in entries]
    compiled = [c for c in codes if isinstance(c, Compiled)]
    if len(compiled) < len(codes):
        return ["[red]does not compile[/]"]
    share, limit = min(e.occupancy(target) for e in entries)
    fewest = min(compiled, key=lambda c: sum(c.tensor_core.values()))
    spilled = max(c.spilled for c in compiled)
    return [
        str(max(c.registers for c in compiled)),
        str(max(c.stack for c in compiled)),
        f"[red]{spilled}[/]" if spilled else "0",
        f"{max(c.shared for c in compiled) / 1024:.0f}",
        f"{share:.0%} {limit}",
        " ".join(f"{n} {k}" for k, n in fewest.tensor_core.items()) or ("none" if fewest.products else "no product"),
    ]
