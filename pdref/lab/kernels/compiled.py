"""What the compiler made of a kernel, read from the machine code itself; no GPU is needed.

Triton compiles ahead of time for a named architecture. Registers, stack and instructions are then read from NVIDIA's
binary with the `cuobjdump` of the Triton wheel, spilled bytes from its `ptxas`; AMD's assembly states its own.

Run as a module without TRITON_INTERPRET, this reads jobs from stdin and prints a result for each, JSON line by line:

    {"target": "sm_90", "launch": {...}}  ->  {"registers": 103, ...}  or  {"error": "..."}
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pdref.lab.kernels.devices import TARGETS, Target
from pdref.lab.kernels.launch import Launch, source


@dataclass(frozen=True)
class Compiled:
    """A kernel's machine code in numbers; bytes are per thread for stack and spills, per program for shared memory."""

    registers: int
    stack: int
    spilled: int  # bytes stored plus bytes loaded back
    shared: int
    tensor_memory: int  # columns; sm_100 only
    num_warps: int
    products: int  # matrix products in the kernel's loops and around them
    missed: int  # of which so many run on the ordinary cores
    tensor_core: Mapping[str, int]  # instructions by kind


def compile_launch(launch: Launch, target: Target) -> Compiled:
    """Compile a launch for a target and read the result. Raises what Triton raises."""
    import triton
    from triton.backends.compiler import GPUTarget

    made = triton.compile(
        source(launch, target.backend),
        target=GPUTarget(target.backend, target.arch, target.warp_size),
        options=dict(launch.options),
    )
    metadata = made.metadata
    products, missed = matrix_products(made.asm["ttgir"])
    if target.backend == "hip":
        machine = amd(made.asm["amdgcn"])
    else:
        machine = nvidia(made.asm["cubin"], made.asm["ptx"], int(target.arch))
    return Compiled(
        shared=metadata.shared,
        tensor_memory=getattr(metadata, "tmem_size", None) or 0,
        num_warps=metadata.num_warps,
        products=products,
        missed=missed,
        **machine,
    )


PRODUCT = re.compile(r"\b(tt\.dot|ttng\.warp_group_dot|ttng\.tc_gen5_mma) (.*)")
TENSOR_CORE_LAYOUT = re.compile(r"^(#\w+) = #ttg\.(?:nvidia_mma|amd_mfma)", re.M)


def matrix_products(ttgir: str) -> tuple[int, int]:
    """How many matrix products there are in Triton's GPU dialect, and how many of them miss the tensor cores.

    Hopper's and Blackwell's products have operations of their own; a `tt.dot` is on tensor cores if the layout of
    its result is.
    """
    layouts = TENSOR_CORE_LAYOUT.findall(ttgir)
    products = PRODUCT.findall(ttgir)
    results = [rest.rpartition("-> tensor<")[2] for operation, rest in products if operation == "tt.dot"]
    return len(products), sum(not any(f"{layout}>" in result for layout in layouts) for result in results)


PTX_ON_TENSOR_CORES = re.compile(r"\b(?:mma\.sync|wgmma\.mma|tcgen05\.mma)")


def nvidia(cubin: bytes, ptx: str, capability: int) -> dict[str, Any]:
    """Registers, stack, spills and tensor-core instructions of a binary and the PTX it was made of."""
    from triton import knobs

    with TemporaryDirectory() as folder:
        (binary := Path(folder) / "kernel.cubin").write_bytes(cubin)
        found: dict[str, Any] = resources(_say(knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)))
        found |= {"spilled": 0, "tensor_core": {}}
        if PTX_ON_TENSOR_CORES.search(ptx):  # else there are none, and disassembly takes its time
            sass = _say(knobs.nvidia.cuobjdump.path, "-sass", str(binary))
            found["tensor_core"] = {k: n for k, n in instructions(sass).items() if ON_TENSOR_CORES.fullmatch(k)}
        if found["stack"]:  # where spills live
            (text := Path(folder) / "kernel.ptx").write_text(ptx)
            tool = knobs.nvidia.ptxas_blackwell if capability >= 100 else knobs.nvidia.ptxas
            arch = f"--gpu-name=sm_{capability}{'a' if capability >= 90 else ''}"
            # As Triton calls it, but to hear what it says.
            again = ("-v", "-lineinfo", "--regAllocOptLevel=2", arch, str(text), "-o", f"{binary}.again")
            found["spilled"] = spilled_bytes(_say(tool.path, *again))
    return found


def resources(dump: str) -> dict[str, int]:
    """Registers and stack from `cuobjdump -res-usage`. Raises ValueError if they are not there."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", dump)
    if not found:
        raise ValueError("cuobjdump states no registers")
    return {"registers": int(found[1]), "stack": int(found[2])}


def spilled_bytes(log: str) -> int:
    """Bytes stored and loaded by spills, from `ptxas -v`. Raises ValueError if it does not say."""
    found = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    if not found:
        raise ValueError("ptxas states no spills")
    return sum(map(int, found))


MNEMONIC = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)")
ON_TENSOR_CORES = re.compile(r"[A-Z]+MMA")  # HMMA, HGMMA on Hopper, UTCHMMA on Blackwell, and other types' like these


def instructions(sass: str) -> Counter[str]:
    """How often each mnemonic stands in `cuobjdump -sass`."""
    return Counter(MNEMONIC.findall(sass))


def amd(assembly: str) -> dict[str, Any]:
    """The same of AMD's assembly; registers are a lane's vector and accumulation registers together."""

    def stated(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        if not found:
            raise ValueError(f"the assembly states no {name}")
        return int(found[1])

    products = Counter(re.findall(r"^\s+(v_mfma)_", assembly, re.M))
    return {
        "registers": stated("vgpr_count"),
        "stack": stated("private_segment_fixed_size"),
        "spilled": 4 * stated("vgpr_spill_count"),  # scalar registers spill to vector ones, not to memory
        "tensor_core": dict(products),
    }


def _say(*command: str) -> str:
    """Output and log of a tool. Raises RuntimeError with its words where it fails."""
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {ran.stderr.strip()[-500:]}")
    return ran.stdout + ran.stderr


def answer(job: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a job as JSON takes it; a kernel that does not compile is a result too."""
    try:
        return asdict(compile_launch(Launch(**job["launch"]), TARGETS[job["target"]]))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    results = sys.stdout
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):  # Triton prints what ptxas rejects
            result = answer(json.loads(line))
        print(json.dumps(result), file=results, flush=True)
