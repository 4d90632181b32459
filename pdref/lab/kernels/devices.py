"""What the report knows of hardware: limits of a multiprocessor, from which occupancy follows, and peaks.

NVIDIA's limits are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; its
peaks are the data sheets' for the SXM boards, dense. gfx942 (MI300) is as LLVM's AMDGPU guide describes it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A GPU architecture to compile for; "multiprocessor" is a compute unit on AMD, "warp" a wavefront."""

    name: str
    backend: str
    arch: int | str
    warp_size: int
    registers: int  # of 32 bits in each of the four partitions of a multiprocessor
    register_step: int  # a warp's registers are rounded up to it
    warps: int  # per multiprocessor
    programs: int  # per multiprocessor
    shared: int  # bytes per multiprocessor
    shared_most: int  # bytes that one program may have
    shared_extra: int  # bytes that the system keeps for each program
    tensor_memory: int = 0  # columns per multiprocessor

    def occupancy(self, num_warps: int, registers: int, shared: int, tensor_memory: int = 0) -> tuple[float, str]:
        """The share of its warps that a multiprocessor can hold at once, and what limits it; 0 where nothing fits."""
        by = {"programs": self.programs, "warps": self.warps // num_warps}
        if registers:
            per_warp = -(-registers * self.warp_size // self.register_step) * self.register_step
            by["registers"] = 4 * (self.registers // per_warp) // num_warps
        if shared:
            by["shared"] = self.shared // (shared + self.shared_extra) if shared <= self.shared_most else 0
        if tensor_memory:
            by["tensor memory"] = self.tensor_memory // tensor_memory
        limit = min(by, key=lambda name: (by[name], name != "warps"))
        return min(1.0, by[limit] * num_warps / self.warps), limit


KIB = 1024
TARGETS = {
    t.name: t
    for t in (
        Target("sm_80", "cuda", 80, 32, 16384, 256, 64, 32, 164 * KIB, 163 * KIB, KIB),
        Target("sm_90", "cuda", 90, 32, 16384, 256, 64, 32, 228 * KIB, 227 * KIB, KIB),
        Target("sm_100", "cuda", 100, 32, 16384, 256, 64, 32, 228 * KIB, 227 * KIB, KIB, 512),
        Target("gfx942", "hip", "gfx942", 64, 512 * 64, 8 * 64, 32, 16, 64 * KIB, 64 * KIB, 0),
    )
}


@dataclass(frozen=True)
class Peak:
    """A board's roofline: operations and bytes a second."""

    name: str
    half: float  # on tensor cores, summed in float32
    single: float  # float32 without tensor cores
    bandwidth: float

    def seconds(self, flops: int, moved: int, half: bool) -> float:
        """The least time for this much arithmetic and memory traffic: whichever of the two takes longer."""
        return max(flops / (self.half if half else self.single), moved / self.bandwidth)


PEAKS = (
    Peak("A100", 312e12, 19.5e12, 2.039e12),  # 80 GB
    Peak("H100", 989e12, 67e12, 3.35e12),
)
