"""The benchmark times what is right and nothing else, turn by turn, and keeps what it has."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import flex_attention
from typer.testing import CliRunner

from pdref.cli import app
from pdref.lab.kernels import bench, rivals, sweeps
from pdref.lab.kernels.bench import BACKWARD, BOTH, FORWARD, Found, Order, Row, Side, gate, run, table
from pdref.lab.kernels.bench_plots import speed_and_memory
from pdref.lab.kernels.problems import PROBLEMS, Problem, token_nll_problem
from pdref.lab.kernels.rivals import RIVALS, Rival
from pdref.lab.kernels.sweeps import SWEEPS, Sweep, sizes

MIB = 2**20


def scaled(N: int = 4, seed: int = 0) -> Problem:
    """A toy op, y = 2 x for x [N] mebibytes; `torch` takes 3 MiB in its forward, 5 MiB in its backward, besides."""

    class Wasteful(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            waste = torch.empty(3 * MIB, dtype=torch.uint8)
            del waste
            return 2 * x

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            found = 2 * gradient
            waste = torch.empty(5 * MIB, dtype=torch.uint8)
            del waste
            return found

    def call(inputs: Mapping[str, Tensor], impl: str) -> Mapping[str, Tensor]:
        CALLS.append(impl)
        return {"y": 2 * inputs["x"] if impl == "naive" else Wasteful.apply(inputs["x"])}

    return Problem("scaled", {"N": N}, {"x": torch.randn(N * MIB // 4)}, call, ("y",), N)


CALLS: list[str] = []


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy beside the ops, for a test."""
    monkeypatch.setitem(PROBLEMS, "scaled", scaled)
    size = [{"N": 1}]
    monkeypatch.setitem(SWEEPS, "scaled", Sweep(size, size, [{"N": 1}, {"N": 2}], size, size))


def command(*words: object) -> tuple[int, str]:
    """Exit status and output of `python -m pdref bench WORDS`."""
    result = CliRunner().invoke(app, ["bench", *map(str, words)], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_writes_rows_a_table_and_figures(tmp_path: Path) -> None:
    """Every column, every part, and the same rows as JSON."""
    words = ("--op", "token_nll", "--size", "small", "--repeats", 3, "--out", tmp_path, "--json", tmp_path / "b.json")
    status, output = command(*words)
    assert status == 0, output
    with (tmp_path / "bench.csv").open(newline="") as page:
        rows = list(csv.DictReader(page))
    assert list(rows[0]) == [f.name for f in fields(Row)]
    assert {(r["part"], r["impl"]) for r in rows} == {(p, i) for p in (FORWARD, BACKWARD, BOTH) for i in bench.OURS[:2]}
    assert {r["size"] for r in rows} == {"N=64,D=32,V=512", "N=128,D=32,V=512"}
    for row in rows:
        assert 0 < float(row["fastest_ms"]) <= float(row["median_ms"]) <= float(row["slowest_ms"])
        assert float(row["peak_mib"]) >= float(row["extra_mib"]) >= 0
        assert float(row["worst"]) <= 1
        assert row["rounds"] == "3" and row["dtype"] == "float32" and row["device"] == "cpu"
        assert row["torch"] == torch.__version__ and row["threads"] == "1"
        assert all(row[k] for k in ("device_name", "date", "python", "pdref"))
    found = json.loads((tmp_path / "b.json").read_text())
    assert len(found["rows"]) == len(rows) and found["refused"] == found["left_out"] == []
    assert "token_nll, D=32 V=512: forward and backward, float32, medians" in output
    assert (tmp_path / "token_nll.png").stat().st_size > 5000


def test_an_op_without_gradients_is_timed_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no backward row, and its figure has two panels."""
    monkeypatch.setitem(SWEEPS, "unmask", replace(SWEEPS["unmask"], check=SWEEPS["unmask"].check[:1]))
    run(Order(["unmask"], sizes=["small"], rounds=1), tmp_path / "bench.csv", found := Found(), progress=False)
    assert {row.part for row in found.rows} == {FORWARD}
    assert len(speed_and_memory(found.rows, "unmask").axes) == 2


def test_what_is_wrong_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right losses, a wrong gradient: it is named, nothing of the op is timed, others are; the exit status is 1."""
    module = importlib.import_module("pdref.ops.token_nll")
    right = module.token_nll_torch

    def one_percent_too_large(hidden: Tensor, unembedding: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        return right(hidden, 1.01 * unembedding - (0.01 * unembedding).detach(), *others)

    monkeypatch.setattr(module, "token_nll_torch", one_percent_too_large)
    status, output = command("--op", "token_nll", "--op", "scaled", "--size", "small", "--out", tmp_path)
    assert status == 1, output
    assert "Not timed: token_nll N=67,D=24,V=257: torch: gradient of unembedding errs by" in output
    assert "gradient of hidden" not in output
    lines = (tmp_path / "bench.csv").read_text().splitlines()
    assert len(lines) > 1 and all(line.startswith("scaled,") for line in lines[1:])
    assert not (tmp_path / "token_nll.png").exists()


def test_the_gate_reaches_both_paths_of_the_token_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept scores and chunks: a bug in the latter alone is found."""
    chunked = importlib.import_module("pdref.ops.token_nll.chunked")
    right = chunked._gradient
    monkeypatch.setattr(chunked, "_gradient", lambda *arguments: 1.01 * right(*arguments))
    worst, red = gate("token_nll", "torch", "cpu", torch.float32)
    assert worst > 1 and {sentence.split(":")[0] for sentence in red} == {"token_nll N=1031,D=24,V=8209"}


def test_seconds_become_medians_and_extremes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward are added turn by turn, before the median is taken."""
    seconds = iter([0.1, 0.5, 9.0, 9.0, 0.2, 0.1, 9.0, 9.0, 0.6, 0.3, 9.0, 9.0])  # naive and torch in turn
    monkeypatch.setattr(bench, "_timed", lambda step, device: (step(), next(seconds)))
    run(Order(["scaled"], sizes=["small"], rounds=3), tmp_path / "bench.csv", found := Found(), progress=False)
    mine = {r.part: (r.median_ms, r.fastest_ms, r.slowest_ms) for r in found.rows if r.impl == "naive"}
    assert mine[FORWARD] == pytest.approx((200, 100, 600))
    assert mine[BACKWARD] == pytest.approx((300, 100, 500))
    assert mine[BOTH] == pytest.approx((600, 300, 900))


def test_memory_is_told_with_and_without_results(tmp_path: Path) -> None:
    """1 MiB in, 1 MiB out, 1 MiB of gradient; the upstream gradient counts as neither."""
    run(Order(["scaled"], sizes=["small"], rounds=1), tmp_path / "bench.csv", found := Found(), progress=False)
    extra = {(row.impl, row.part): (row.peak_mib, row.extra_mib) for row in found.rows}
    assert extra["torch", FORWARD] == pytest.approx((3, 2), abs=1e-3)  # gone before the output was made
    assert extra["torch", BACKWARD] == pytest.approx((7, 5), abs=1e-3)
    assert extra["torch", BOTH] == pytest.approx((7, 5), abs=1e-3)
    assert extra["naive", FORWARD] == pytest.approx((1, 0), abs=1e-3)
    assert extra["naive", BOTH] == pytest.approx((2, 0), abs=1e-3)


def test_sides_take_turns(tmp_path: Path) -> None:
    """After the check: once to warm up, once for memory, and the timed rounds."""
    CALLS.clear()
    run(Order(["scaled"], sizes=["small"], rounds=3), tmp_path / "bench.csv", Found(), progress=False)
    assert CALLS[-10:] == ["naive", "torch"] * 5


def test_an_interrupted_run_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of whole sizes and those of the rounds so far, in the file, too."""
    time, turns = Side.time, []

    def interrupted(side: Side) -> None:
        turns.append(side)
        if len(turns) == 2 * 4 + 3:  # four rounds of the first size, one and a half of the second
            raise KeyboardInterrupt
        time(side)

    monkeypatch.setattr(Side, "time", interrupted)
    status, output = command("--op", "scaled", "--repeats", 4, "--out", tmp_path)
    assert status == 130, output
    assert "keeps the 12 rows so far" in output
    with (tmp_path / "bench.csv").open(newline="") as page:
        rows = list(csv.DictReader(page))
    assert {(r["size"], r["impl"]): r["rounds"] for r in rows} == {
        ("N=1", "naive"): "4", ("N=1", "torch"): "4", ("N=2", "naive"): "1", ("N=2", "torch"): "1",
    }  # fmt: skip


def test_who_runs_out_of_memory_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on."""
    forward = Side.forward

    def hungry(side: Side) -> Mapping[str, Tensor]:
        if side.impl == "naive" and len(side.inputs["x"]) == MIB // 2:
            raise torch.OutOfMemoryError("too much")
        return forward(side)

    monkeypatch.setattr(Side, "forward", hungry)
    run(Order(["scaled"], rounds=1), tmp_path / "bench.csv", found := Found(), progress=False)
    assert found.left_out == ["scaled N=2: naive runs out of memory"] and not found.refused
    assert {row.impl for row in found.rows if row.size == "N=2"} == {"torch"}
    table(found.rows, "scaled")


def test_a_rival_is_asked_for_what_it_has_and_held_to_the_same_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its problem has its outputs alone; errors of others are their own affair: it is left out, we are not refused."""

    def like_ours(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"nats": token_nll_problem().call(inputs, "torch")["nats"]}

    def too_small(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"nats": 0.99 * like_ours(inputs)["nats"]}

    for name, call in (("good", like_ours), ("bad", too_small)):
        monkeypatch.setitem(RIVALS, name, Rival("token_nll", "torch", call, ("nats",)))
    posed = RIVALS["good"].pose(token_nll_problem())
    assert posed.smooth == ("nats",) and set(posed.call(posed.inputs, "naive")) == {"nats"}
    monkeypatch.setattr(Order, "sides", lambda order, op: ["naive", "good", "bad"])
    passed = bench._passed("token_nll", Order(["token_nll"]), found := Found())
    assert list(passed) == ["naive", "good"] and not found.refused
    assert "token_nll N=67,D=24,V=257: bad: nats errs by" in found.left_out[0]


def test_rivals_name_ops_and_outputs_that_there_are() -> None:
    """They cannot run here, but they can be asked for the right thing."""
    for rival in RIVALS.values():
        problem = PROBLEMS[rival.op](**SWEEPS[rival.op].small[0])
        assert set(rival.outputs) <= set(problem.call(problem.inputs, "naive"))
        assert isinstance(rival.installed, bool)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_is_asked_for_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not compiled, it runs forward on a CPU: the one rival that can be tried here."""
    monkeypatch.setattr(rivals, "_compiled_flex", lambda: flex_attention)
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    problem = PROBLEMS["planned_attention"](**SWEEPS["planned_attention"].check[0])
    expected = problem.call(problem.inputs, "naive")["out"]
    torch.testing.assert_close(RIVALS["flex"].call(problem.inputs)["out"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"ops": ["sorting"]}, "no op 'sorting'; there are token_nll"),
        ({"impls": ["fast"]}, "no implementation 'fast'; there are naive, torch, triton"),
        ({"impls": ["triton"]}, "'triton' is timed on CUDA only"),
        ({"impls": ["auto"]}, "no implementation 'auto'"),
        ({"device": "tpu"}, "no device 'tpu'; there are cpu, cuda"),
        ({"dtype": "int8"}, "no dtype 'int8'"),
        ({"ops": ["token_nll"], "sizes": ["tiny"]}, "size 'tiny': 'tiny' is not one; write sweep, small, headline or"),
        ({"ops": ["token_nll"], "sizes": ["N=4,W=2"]}, "'W=2' is not one"),
        ({"ops": ["token_nll"], "sizes": ["N=0"]}, "'N=0' is not one"),
    ],
)
def test_a_wrong_order_is_answered_with_a_sentence(words: dict, says: str) -> None:
    """Before anything runs."""
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        Order(**words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_an_absent_device_is_named() -> None:
    """With what to take instead."""
    with pytest.raises(ValueError, match="no CUDA device here; take --device cpu"):
        Order(device="cuda")


def test_sizes_are_named_or_written() -> None:
    """What is left out of a written size is the problem's own."""
    assert sizes("token_nll", ["headline"], "cpu") == [{"N": 4096, "D": 512, "V": 49152}]
    assert sizes("token_nll", ["sweep"], "cuda") == SWEEPS["token_nll"].cuda
    assert sizes("token_nll", ["N=3, V=5", "small"], "cpu") == [{"N": 3, "D": 64, "V": 5}, *SWEEPS["token_nll"].small]


def test_every_op_has_its_sweep() -> None:
    """Whose sizes its problem takes."""
    assert set(SWEEPS) == set(PROBLEMS)
    for op, sweep in SWEEPS.items():
        takes = set(inspect.signature(PROBLEMS[op]).parameters) - {"seed"}
        for part in fields(Sweep):
            assert getattr(sweep, part.name), f"{op} has no size for {part.name}"
            assert all(set(size) <= takes for size in getattr(sweep, part.name)), f"{op}, {part.name}"
    assert {"sweep", *(f.name for f in fields(Sweep))} >= set(sweeps.NAMES)


def test_figures_have_a_line_for_each_side(tmp_path: Path) -> None:
    """On logarithmic axes, at the sizes that were timed."""
    run(Order(["scaled"], rounds=1), tmp_path / "bench.csv", found := Found(), progress=False)
    figure = speed_and_memory(found.rows, "scaled")
    titles = ["forward", "backward", "forward and backward", "memory beyond inputs and results"]
    assert [axes.get_title() for axes in figure.axes] == titles
    for axes in figure.axes:
        assert axes.get_xscale() == axes.get_yscale() == "log"
        assert axes.get_xlabel() == "N" and list(axes.get_xticks()) == [1, 2]
    lines = {line.get_gid(): line for line in figure.axes[2].lines}
    assert list(lines) == ["naive", "torch"]
    expected = [row.median_ms for row in found.rows if row.part == BOTH and row.impl == "torch"]
    assert list(lines["torch"].get_ydata()) == expected
    with pytest.raises(ValueError, match="no rows of 'unmask'"):
        speed_and_memory(found.rows, "unmask")
