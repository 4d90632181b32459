"""Bytes and operations counted by the interpreter agree with counts by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st

from pdref.lab.doctor_kernel import row_logsumexp
from pdref.lab.kernels import traffic
from pdref.lab.kernels.launch import Launch, kernel
from pdref.lab.kernels.problems import PROBLEMS
from pdref.lab.kernels.traffic import Traffic, count, counting
from pdref.ops.impl import interpreted

pytestmark = pytest.mark.skipif(not interpreted(), reason="counting needs the interpreter")


@triton.jit
def _half(x):
    return x * 0.5


@triton.jit
def _read_twice(source, out, size, scale, TYPE: tl.constexpr, CHANGE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    once = tl.load(source + i, mask=i < size, other=0.0)
    again = tl.load(source + i, mask=i < size, other=0.0)
    tl.store(out + i, (CHANGE(once) + again * scale).to(TYPE), mask=i < size)


@triton.jit
def _add_into(source, total, histogram, size, stride, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + i * stride, mask=i < size, other=0.0)
    tl.atomic_add(total, tl.sum(x, 0))
    tl.atomic_add(histogram + i % 4, x, mask=i < size)


@triton.jit
def _product(a, b, c, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    m, k, n = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(c + m[:, None] * N + n[None, :], tl.dot(x, y, input_precision="ieee"))


def test_a_kernel_that_wastes_nothing() -> None:
    """The log-sum-exp reads every element once, through a mask at the ragged edge, and writes a number a row."""
    with counting() as counted:
        row_logsumexp(torch.randn(5, 257))
    [c] = counted
    moved = 4 * 5 * 257 + 4 * 5
    assert c.traffic == Traffic(1, 5, 4 * 5 * 257, 4 * 5, least=moved, compulsory=moved, elements=5 * 257 + 5, flops=0)
    assert c.traffic.excess == 1


def read_twice(size: int, dtype: torch.dtype = torch.float16) -> list[traffic.Counted]:
    """70 elements by two programs of 64, each element read twice and written once in float32."""
    with counting() as counted:
        x, out = torch.randn(size).to(dtype), torch.empty(size)
        _read_twice[(triton.cdiv(size, 64),)](x, out, size, 0.5, tl.float32, _half, BLOCK=64, num_warps=2)
    return counted


def test_a_tile_read_twice_is_counted_twice_and_needed_once() -> None:
    """Masked lanes move nothing."""
    [c] = read_twice(70)
    assert (c.traffic.loaded, c.traffic.stored, c.traffic.programs) == (2 * 2 * 70, 4 * 70, 2)
    assert c.traffic.least == c.traffic.compulsory == 2 * 70 + 4 * 70
    assert c.traffic.excess == pytest.approx(560 / 420)


def test_atomics_load_and_store_and_programs_share() -> None:
    """70 floats two apart; each program adds to one total and to the same four counts."""
    with counting() as counted:
        _add_into[(2,)](torch.randn(140), torch.zeros(1), torch.zeros(4), 70, 2, BLOCK=64)
    t = counted[0].traffic
    assert t.loaded == 4 * (70 + 2 + 70)
    assert t.stored == 4 * (2 + 70)
    assert t.least == 4 * (70 + 2 * 2 * (1 + 4))  # a program loads and stores each of five numbers once
    assert t.compulsory == 4 * (70 + 2 * (1 + 4))
    assert t.elements == 70 + 2 * (1 + 4)


def test_products_are_counted_in_operations() -> None:
    """2 M K N, whatever the bytes."""
    with counting() as counted:
        _product[(1,)](torch.randn(16, 32), torch.randn(32, 64), torch.empty(16, 64), 16, 32, 64)
    assert counted[0].traffic.flops == 2 * 16 * 32 * 64
    assert counted[0].traffic.moved == 4 * (16 * 32 + 32 * 64 + 16 * 64)


def test_kernels_compute_the_same_while_they_are_counted() -> None:
    """Watching changes nothing, and ends with the block."""
    x = torch.randn(3, 100)
    with counting() as counted:
        watched = row_logsumexp(x)
    assert torch.equal(watched, row_logsumexp(x))
    assert len(counted) == 1


def test_a_launch_survives_json() -> None:
    """Types, alignment, equality to 1 and constants are recorded as Triton's launcher sees them."""
    [c] = read_twice(64)
    launch = Launch(**json.loads(json.dumps(asdict(c.launch))))
    assert launch == c.launch
    assert launch.arguments["cuda"]["source"] == ["*fp16", "D"]
    assert launch.arguments["hip"]["source"] == ["*fp16", "DS"]  # AMD also asks whether 32 bits address it all
    assert launch.arguments["cuda"]["size"] == ["i32", "D"]
    assert launch.arguments["cuda"]["scale"][0] == "fp32"
    assert launch.arguments["cuda"]["TYPE"] == ["constexpr", {"dtype": "fp32"}]
    assert launch.options == {"num_warps": 2}
    assert kernel(**launch.arguments["cuda"]["CHANGE"][1]).fn.__name__ == "_half"
    brain = launch.in_bfloat16().arguments["cuda"]
    assert (brain["source"], brain["out"], brain["TYPE"]) == (
        ["*bf16", "D"],
        ["*fp32", "D"],
        launch.arguments["cuda"]["TYPE"],
    )
    [ragged], [one] = read_twice(70), read_twice(1)
    assert ragged.launch.arguments["cuda"]["size"] == ["i32", ""]
    assert one.launch.arguments["cuda"]["size"] == ["constexpr", 1]
    assert len({launch.key, ragged.launch.key, one.launch.key, c.launch.key}) == 3


@given(st.lists(st.lists(st.integers(0, 60), min_size=1), min_size=1, max_size=4), st.sampled_from([1, 2, 4, 8]))
def test_intervals_cover_every_byte_once(parts: list[list[int]], size: int) -> None:
    """Against the set of all bytes."""
    intervals = [traffic._intervals(np.array(part) * size, size) for part in parts]
    expected = {size * i + b for part in parts for i in part for b in range(size)}
    union = traffic._union(intervals)
    assert traffic._length(union) == len(expected)
    assert (union[1:, 0] > union[:-1, 1]).all()


def test_every_launch_of_an_op_is_counted_and_equal_ones_are_added() -> None:
    """The forward alone of token_nll reads hidden states and unembedding."""
    counted = count(PROBLEMS["token_nll"](N=16, D=16, V=32))
    assert len({c.launch.key for c in counted}) == len(counted)
    assert any(c.traffic.flops >= 2 * 16 * 16 * 32 for c in counted)
    assert all(c.traffic.moved >= c.traffic.least >= c.traffic.compulsory for c in counted)


def test_an_op_without_a_kernel_is_said_so_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line of JSON for each op."""

    def no_kernel(**size: int):
        raise ModuleNotFoundError("no kernel yet")

    monkeypatch.setattr(
        traffic, "PROBLEMS", {"broken": no_kernel, "token_nll": lambda **_: PROBLEMS["token_nll"](16, 16, 16)}
    )
    traffic.main("float32", ["broken", "token_nll"])
    broken, *rest = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert broken == {"op": "broken", "error": "ModuleNotFoundError: no kernel yet"}
    assert all(answer["counted"] for answer in rest)


def test_counting_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence, not zeros."""
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), counting():
        pass
