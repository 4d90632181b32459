"""The doctor: well on this machine, and for each thing that can be amiss it says [FAIL] and what to do."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
import time
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from pdref.lab import doctor
from pdref.lab.doctor import Check, examine, report

ROOT = Path(__file__).parents[2]


def printed(checks: list[Check]) -> tuple[bool, str]:
    """What `report` returns and what it writes to a narrow terminal."""
    page = io.StringIO()
    return report(checks, Console(file=page, width=40)), page.getvalue()


def check(name: str) -> Check:
    """One check, run alone."""
    return doctor._check(name, *doctor.PROBES[name])


def test_this_machine_is_well_and_quickly_so():
    start = time.monotonic()
    checks = examine()
    well, page = printed(checks)
    assert well, page
    assert [c.name for c in checks] == ["python", "torch", "triton", "gpu", "jupyter", "fonts"]
    assert page.count("[OK]") == len(checks) and "[FAIL]" not in page
    assert time.monotonic() - start < 60, "the doctor takes seconds; this leaves room for a busy machine"


def test_checks_become_json():
    findings = [Check("python", True, "3.11.7"), Check("torch", False, "gone", "make env")]
    assert [Check(**d) for d in json.loads(json.dumps([dataclasses.asdict(c) for c in findings]))] == findings


def test_a_failure_is_printed_with_its_remedy_and_spoils_the_verdict():
    well, page = printed([Check("a", True, "fine"), Check("b", False, "[bold]broken[/bold]", "mend it")])
    assert not well
    assert page == "[OK]   a        fine\n[FAIL] b        [bold]broken[/bold]\n       What to do: mend it\n"


def old_python(monkeypatch, folder):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))


def no_torch(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "torch", None)


def other_torch(monkeypatch, folder):
    monkeypatch.setattr(torch, "__version__", "2.4.1+cpu")


def torch_that_multiplies_wrongly(monkeypatch, folder):
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: a + b if a.dtype == torch.float32 else a.mm(b))


def no_triton(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "triton", None)


def triton_that_crashes(monkeypatch, folder):
    crash = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nImportError: no libtriton\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: crash)


def triton_that_dies_in_silence(monkeypatch, folder):
    monkeypatch.setattr(
        subprocess, "run", lambda *args, **kwargs: SimpleNamespace(returncode=-11, stdout="", stderr="")
    )


def triton_that_hangs(monkeypatch, folder):
    monkeypatch.setattr(doctor, "PATIENCE", 0.01)


def gpu_without_memory(monkeypatch, folder):
    def fail(device):
        raise torch.OutOfMemoryError(f"no memory left on {device}")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "_multiply", fail)


def no_nbval(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "nbval", None)


def stray_kernel(monkeypatch, folder, first):
    """Put a kernel called python3 before all others; it runs the statement `first`, then starts as usual."""
    start = f"import sys; {first}; from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
    spec = {"argv": [sys.executable, "-c", start, "-f", "{connection_file}"], "display_name": "stray"}
    home = folder / "kernels" / "python3"
    home.mkdir(parents=True)
    (home / "kernel.json").write_text(json.dumps({**spec, "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(folder))


def kernel_that_dies(monkeypatch, folder):
    stray_kernel(monkeypatch, folder, "sys.exit(3)")


def kernel_of_another_environment(monkeypatch, folder):
    stray_kernel(monkeypatch, folder, "sys.prefix = '/elsewhere'")


def kernel_without_pdref(monkeypatch, folder):
    stray_kernel(monkeypatch, folder, "sys.modules['pdref'] = None")


def no_dejavu(monkeypatch, folder):
    def fail(family, **kwargs):
        raise ValueError(f"Failed to find font {family}")

    monkeypatch.setattr("matplotlib.font_manager.findfont", fail)


def a_glyph_no_font_has(monkeypatch, folder):
    monkeypatch.setattr(doctor, "GLYPHS", "→\ue123")


@pytest.mark.parametrize(
    ("name", "break_it", "said"),
    [
        ("python", old_python, "this is Python 3.10.4, and pdref needs 3.11"),
        ("torch", no_torch, "torch"),
        ("torch", other_torch, "torch is 2.4.1, and 2.13.0 is pinned"),
        ("torch", torch_that_multiplies_wrongly, "a matrix product on cpu came out wrong"),
        ("triton", no_triton, "triton"),
        ("triton", triton_that_crashes, "ImportError: no libtriton"),
        ("triton", triton_that_dies_in_silence, "exit code -11"),
        ("triton", triton_that_hangs, "TimeoutExpired"),
        ("gpu", gpu_without_memory, "no memory left on cuda"),
        ("jupyter", no_nbval, "nbval"),
        ("jupyter", kernel_that_dies, "Kernel died"),
        ("jupyter", kernel_of_another_environment, "belongs to /elsewhere"),
        ("jupyter", kernel_without_pdref, "says ModuleNotFoundError"),
        ("fonts", no_dejavu, "Failed to find font DejaVu Sans"),
        ("fonts", a_glyph_no_font_has, "missing from font"),
    ],
)
def test_each_ailment_fails_with_its_reason_and_its_remedy(monkeypatch, tmp_path, name, break_it, said):
    with monkeypatch.context() as patch:
        break_it(patch, tmp_path)
        found = check(name)
    well, page = printed([found])
    assert not well and page.startswith(f"[FAIL] {name}"), page
    assert said in found.detail
    assert found.remedy and f"What to do: {found.remedy}" in page


def test_no_gpu_is_no_failure_but_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check("gpu") == Check("gpu", True, "none: CPU is enough")


def test_a_torch_that_is_tried_but_not_pinned_passes_with_a_note(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    found = check("torch")
    assert found.ok and "2.13.0 is pinned" in found.detail


def test_a_platform_without_triton_passes_with_a_note(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = check("triton")
    assert found.ok and "not built for darwin" in found.detail


def test_a_kernel_that_forgets_to_rescale_is_caught(monkeypatch, tmp_path):
    source = doctor.KERNEL.read_text()
    planted = tmp_path / "doctor_kernel.py"
    planted.write_text(source.replace("total * tl.exp(maximum - larger) +", "total +"))
    assert planted.read_text() != source
    monkeypatch.setattr(doctor, "KERNEL", planted)
    found = check("triton")
    assert not found.ok and "of its budget" in found.detail


def test_the_font_probe_leaves_warnings_as_they_were():
    before = list(warnings.filters)
    check("fonts")
    assert warnings.filters == before


def test_every_direct_dependency_is_locked_and_torch_is_one_version_everywhere():
    lock = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    locked = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lock.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in direct:
        name, pin = re.match(r"([\w.-]+)(?:==([^\s;]+))?", requirement).groups()
        assert name in locked, f"{name} is in pyproject.toml but not in requirements.lock"
        assert pin in (None, locked[name]), f"pyproject.toml pins {requirement}, requirements.lock {locked[name]}"
    assert locked["torch"] == doctor.TORCH_PIN
