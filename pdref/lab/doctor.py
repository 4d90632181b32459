"""Is this machine fit for pdref? One check for each thing that can be amiss, and for each failure what to do.

A probe looks at one thing for real: it multiplies, launches, starts or draws, and says in a few words what it
saw. A probe that raises has failed. `examine` turns probes into checks and `report` prints them; the exit
code is the command line's business.
"""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from rich.console import Console
from rich.text import Text

PYTHON_OLDEST = (3, 11)
TORCH_PIN = "2.13.0"  # as in requirements.lock
TORCH_TRIED = ("2.11.",)  # not pinned, but the code runs on these too
KERNEL = Path(__file__).with_name("doctor_kernel.py")
GLYPHS = "→·×−≤∑∏∈αβθ█▓░▁▏●■"  # what figures, players and progress bars draw with
PATIENCE = 60.0  # seconds that a launch or the start of a Jupyter kernel may take before it counts as hung


@dataclass(frozen=True)
class Check:
    """One finding; `dataclasses.asdict` makes it JSON. The remedy is empty where all is well."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine() -> list[Check]:
    """Run every probe, in the order in which one would repair things. Takes seconds, raises nothing."""
    return [_check(name, probe, remedy) for name, (probe, remedy) in PROBES.items()]


def report(checks: Sequence[Check], console: Console) -> bool:
    """Print a line for each check, and the remedy under each that failed. True when all are well."""
    for check in checks:
        mark = Text("[OK]  ", style="green") if check.ok else Text("[FAIL]", style="bold red")
        console.print(mark, Text(f"{check.name:<8}"), Text(check.detail), soft_wrap=True)
        if not check.ok:
            console.print(Text(f"       What to do: {check.remedy}"), soft_wrap=True)
    return all(check.ok for check in checks)


def _check(name: str, probe: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name, True, probe())
    except Exception as error:  # whatever is broken, the other checks still have something to say
        return Check(name, False, " ".join(f"{type(error).__name__}: {error}".split()), remedy)


def probe_python() -> str:
    """Raises RuntimeError below Python 3.11."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON_OLDEST:
        raise RuntimeError(f"this is Python {version}, and pdref needs 3.11 or newer")
    return version


def probe_torch() -> str:
    """Import torch, compare its version with the pin, multiply. Raises RuntimeError on an untried version."""
    import torch

    version = str(torch.__version__).split("+")[0]
    if version != TORCH_PIN and not version.startswith(TORCH_TRIED):
        raise RuntimeError(f"torch is {version}, and {TORCH_PIN} is pinned")
    _multiply("cpu")
    note = "" if version == TORCH_PIN else f" (runs too; {TORCH_PIN} is pinned)"
    return f"{version}{note}, {torch.get_num_threads()} CPU threads"


def probe_triton() -> str:
    """Launch a kernel under Triton's interpreter. Raises ImportError, or RuntimeError with its words."""
    if sys.platform != "linux" and importlib.util.find_spec("triton") is None:
        return f"none: it is not built for {sys.platform}; the naive and torch version of every op run"
    import triton

    return f"{triton.__version__}, interpreted kernel: {_launch('cpu')}"


def probe_gpu() -> str:
    """Multiply and launch a compiled kernel on the GPU, if there is one. Its absence is no failure."""
    import torch

    if not torch.cuda.is_available():
        return "none: CPU is enough"
    _multiply("cuda")
    return f"{torch.cuda.get_device_name()}, compiled kernel: {_launch('cuda')}"


def probe_jupyter() -> str:
    """Start the notebooks' kernel, away from the repository, and ask where it lives and if it finds pdref.

    Raises ImportError where a package is missing, RuntimeError or TimeoutError where the kernel does not
    start, belongs to another environment or cannot import pdref.
    """
    import jupyterlab
    import nbval  # noqa: F401
    from jupyter_client.manager import start_new_kernel

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    manager, client = start_new_kernel(PATIENCE, "python3", cwd=gettempdir(), **quiet)
    try:
        question = {"prefix": "__import__('sys').prefix"}
        answer = client.execute("import pdref", user_expressions=question, reply=True, timeout=PATIENCE)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    content = answer["content"]
    if content["status"] != "ok":
        raise RuntimeError(f"the kernel python3 starts, then says {content['ename']}: {content['evalue']}")
    prefix = content["user_expressions"]["prefix"]["data"]["text/plain"].strip("'\"")
    if Path(prefix).resolve() != Path(sys.prefix).resolve():
        raise RuntimeError(f"the kernel python3 belongs to {prefix}, and this is {sys.prefix}")
    return f"JupyterLab {jupyterlab.__version__}, the kernel python3 starts and imports pdref"


def probe_fonts() -> str:
    """Draw our glyphs in DejaVu Sans. Raises ValueError without the font, UserWarning without a glyph."""
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont

    findfont("DejaVu Sans", fallback_to_default=False)
    with warnings.catch_warnings():
        # For a missing glyph matplotlib only warns, and draws a box.
        warnings.simplefilter("error", UserWarning)
        figure = Figure()
        figure.text(0, 0, GLYPHS, family="DejaVu Sans")
        figure.savefig(io.BytesIO(), format="png")
    return f"DejaVu Sans draws {GLYPHS}"


def _multiply(device: str) -> None:
    """Multiply two float32 matrices on the device. Raises RuntimeError where the product is wrong."""
    import torch

    a, b = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    if not torch.allclose((a @ b).double(), a.double() @ b.double(), atol=1e-3):
        raise RuntimeError(f"a matrix product on {device} came out wrong")


def _launch(device: str) -> str:
    """Run doctor_kernel.py on the device, in a process of its own since TRITON_INTERPRET is read at import.

    Raises RuntimeError where the kernel fails or computes wrongly, subprocess.TimeoutExpired where it hangs.
    """
    # -P keeps the script's folder, with its files called train, plots and the like, off the import path.
    command = [sys.executable, "-P", str(KERNEL), device]
    environment = {**os.environ, "TRITON_INTERPRET": "1" if device == "cpu" else "0"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    said = (ran.stdout + ran.stderr).strip().splitlines() or [f"exit code {ran.returncode}"]
    if ran.returncode:
        raise RuntimeError(said[-1])
    return said[-1]


PROBES: dict[str, tuple[Callable[[], str], str]] = {
    "python": (probe_python, "install Python 3.11 or newer, then run `make clean env`"),
    "torch": (
        probe_torch,
        "run `make clean env`, which builds .venv from requirements.lock, and use .venv/bin/python",
    ),
    "triton": (probe_triton, "run `make clean env`, which installs the Triton that belongs to torch"),
    "gpu": (
        probe_gpu,
        "see that `nvidia-smi` works and a C compiler is installed, which Triton needs on a GPU; "
        "or do without: CUDA_VISIBLE_DEVICES='' hides the GPU",
    ),
    "jupyter": (
        probe_jupyter,
        "run `make clean env`, and open notebooks with `make lab`; if the kernel is another environment's, "
        "`jupyter kernelspec list` shows where it lives and `jupyter kernelspec remove python3` removes it",
    ),
    "fonts": (
        probe_fonts,
        "run `make clean env`, which reinstalls matplotlib with its DejaVu Sans, and delete the folder that "
        "`.venv/bin/python -c 'import matplotlib; print(matplotlib.get_cachedir())'` names",
    ),
}
