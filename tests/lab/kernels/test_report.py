"""The report over all shipped kernels is clean, and red on each thing that can be amiss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from typer.testing import CliRunner

from pdref.cli import app
from pdref.lab.kernels import report
from pdref.lab.kernels.compiled import Compiled
from pdref.lab.kernels.devices import TARGETS
from pdref.lab.kernels.entry import Entry
from pdref.lab.kernels.problems import PROBLEMS
from pdref.lab.kernels.report import Report, compile_entries, count, examine
from pdref.lab.kernels.traffic import counting
from pdref.ops.impl import interpreted


def test_all_shipped_kernels_are_as_they_should_be() -> None:
    """Every kernel of every op compiles and fits, spills nothing, finds the tensor cores, wastes no bytes.

    In float16 and at widths divisible by 16 for every target, the rest for one; the test below looks at all.
    """
    entries, failed = count(list(PROBLEMS), ("float16", "float32"))
    usual = [e for e in entries if e.dtype == "float16" and not any(e.size.get(x, 0) % 16 for x in ("D", "head_width"))]
    found = compile_entries(usual, list(TARGETS))
    found += compile_entries([e for e in entries if e not in usual], ["sm_90"])
    whole = Report(found, failed)
    assert not whole.faults(), "\n".join(whole.faults())
    assert {e.op for e in usual} == set(PROBLEMS)
    assert {e.kernel for e in usual} == {e.kernel for e in entries}
    assert any(code.products for e in found for code in e.code.values() if isinstance(code, Compiled))


@pytest.mark.slow
def test_the_whole_report_is_clean() -> None:
    """All sizes, dtypes and targets: what `python -m pdref kernels` looks at."""
    found = examine()
    assert not found.faults(), "\n".join(found.faults())


@triton.jit
def _product_in_float32(a, b, c, K: tl.constexpr):
    i, k = tl.arange(0, 32), tl.arange(0, K)
    x = tl.load(a + i[:, None] * K + k[None, :]).to(tl.float32)
    y = tl.load(b + k[:, None] * 32 + i[None, :]).to(tl.float32)
    tl.store(c + i[:, None] * 32 + i[None, :], tl.dot(x, y, input_precision="ieee"))


@triton.jit
def _sum_of_outer_products(a, b, c, K: tl.constexpr):
    i, k = tl.arange(0, 32), tl.arange(0, K)
    x = tl.load(a + i[:, None] * K + k[None, :]).to(tl.float32)
    y = tl.load(b + k[:, None] * 32 + i[None, :]).to(tl.float32)
    tl.store(c + i[:, None] * 32 + i[None, :], tl.sum(x[:, :, None] * y[None, :, :], 1))


@triton.jit
def _too_much_for_a_warp(a, out, M: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(a + at)
    tl.store(out + at, x - tl.max(x, 1)[:, None])


@triton.jit
def _mean_read_again_and_again(x, mean, out, N: tl.constexpr):
    i = tl.arange(0, N)
    for start in range(0, 4):
        centred = tl.load(x + start * N + i) - tl.load(mean + i)
        tl.store(out + start * N + i, centred)


def launched(name: str, kernel, dtype: str, *arguments: object, **options: int) -> Entry:
    """A launch of one of the kernels above, counted."""
    with counting() as counted:
        kernel[(1,)](*arguments, **options)
    return Entry(name, {}, dtype, counted[0].launch, counted[0].traffic)


@pytest.fixture(scope="module")
def planted() -> dict[str, Entry]:
    """Kernels with something amiss, and some without, compiled for NVIDIA's targets."""
    if not interpreted():
        pytest.skip("counting needs the interpreter")
    a, b, c, wide, mean = (
        torch.randn(32, 16),
        torch.randn(16, 32),
        torch.empty(32, 32),
        torch.randn(128, 64),
        torch.ones(32),
    )
    entries = [
        launched("widened", _product_in_float32, "float16", a.half(), b.half(), c, K=16),
        launched("exact", _product_in_float32, "float32", a, b, c, K=16),
        launched("sum", _sum_of_outer_products, "float32", a, b, c, K=16),
        launched("spilling", _too_much_for_a_warp, "float32", wide, wide, M=128, N=64, num_warps=1),
        launched("wasteful", _mean_read_again_and_again, "float32", c, mean, c, N=32),
        launched("lost", _mean_read_again_and_again, "float32", c, mean, c, N=16),
    ]
    entries[-1] = replace(entries[-1], launch=replace(entries[-1].launch, name="nowhere"))
    return {e.op: e for e in compile_entries(entries, ["sm_80", "sm_90", "sm_100"])}


def test_red_on_a_half_precision_product_outside_the_tensor_cores(planted: dict[str, Entry]) -> None:
    """Widened to float32 and multiplied exactly, halves gain nothing; of float32 nothing else is asked."""
    faults = Report([planted["widened"]], {}).faults()
    assert len(faults) == 3
    for fault, target in zip(faults, ("sm_80", "sm_90", "sm_100"), strict=True):
        assert "_product_in_float32 (K=16), float16" in fault
        assert f"{target}, in widened: 1 of 1 matrix products miss the tensor cores" in fault
    assert not list(planted["exact"].findings())


def test_red_on_float32_that_is_rounded(planted: dict[str, Entry]) -> None:
    """Triton makes a product of a sum of outer products, by itself, and rounds its factors to 11 bits."""
    assert planted["sum"].traffic.flops == 0
    faults = Report([planted["sum"]], {}).faults()
    assert faults
    assert all("float32 products run on tensor cores, as TF32" in fault for fault in faults)


def test_red_on_a_spill(planted: dict[str, Entry]) -> None:
    """128 x 64 numbers are 256 for each thread of a warp, one too many."""
    found = Report([planted["spilling"]], {})
    assert len(found.faults()) == 2
    assert len(found.notes()) == 1  # on sm_80
    for said, (target, code) in zip(found.notes() + found.faults(), planted["spilling"].code.items(), strict=True):
        assert isinstance(code, Compiled)
        assert f"{target}, in spilling: spills {code.spilled} bytes at {code.registers} registers" in said


def test_red_on_traffic(planted: dict[str, Entry]) -> None:
    """The mean is fetched four times instead of once: 12 rows move where 9 would do."""
    [fault] = Report([planted["wasteful"]], {}).faults()
    assert f"moves {12 * 128} bytes, 1.33 times the least, {9 * 128}" in fault


def test_red_on_a_kernel_that_does_not_compile(planted: dict[str, Entry]) -> None:
    """With the reason."""
    [_, *faults] = Report([planted["lost"]], {}).faults()
    assert len(faults) == 3
    assert all("does not compile: AttributeError" in fault for fault in faults)


def test_red_on_a_kernel_that_does_not_fit(planted: dict[str, Entry]) -> None:
    """200 KiB of shared memory are more than a program may have on sm_80."""
    wide = Compiled(64, 0, 0, 200 * 1024, 0, 4, 0, 0, {})
    [finding] = replace(planted["exact"], code={"sm_80": wide, "sm_90": wide}).findings()
    assert finding == ("sm_80", "does not fit: shared", True)


def test_red_on_an_op_whose_kernels_do_not_run() -> None:
    """Which is no reason to be silent about the others."""
    assert Report([], {"unmask": "ImportError: no kernel"}).faults() == [
        "unmask: its kernels do not run: ImportError: no kernel"
    ]


@pytest.mark.parametrize("wrong", [{"ops": ["nothing"]}, {"targets": ["sm_20"]}])
def test_unknown_names_are_answered_with_the_known_ones(wrong: dict) -> None:
    """Before anything runs."""
    with pytest.raises(
        ValueError, match=r"unknown (op 'nothing'; there are token_nll|target 'sm_20'; there are sm_80)"
    ):
        examine(**wrong)


def test_the_command_prints_every_column_and_exits_by_the_findings(
    planted: dict[str, Entry], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """0 when all is well, 1 when not, and JSON with everything."""
    for name, status in (("exact", 0), ("spilling", 1)):
        monkeypatch.setattr(report, "examine", lambda *_, found=planted[name], **__: Report([found], {}))
        target = tmp_path / "kernels.json"
        result = CliRunner().invoke(app, ["kernels", "--json", str(target)], env={"COLUMNS": "160"})
        assert result.exit_code == status, result.output
        for word in ("registers", "stack", "spilled", "shared", "occupancy", "tensor-core", "element", "A100", "H100"):
            assert word in result.output, word
        written = json.loads(target.read_text())
        assert set(written["kernels"][0]["targets"]) == {"sm_80", "sm_90", "sm_100"}
        assert bool(written["faults"]) == bool(status)
    assert "sm_90, in spilling: spills" in result.output
