"""Reading what compilers say: their real words, and their real binaries."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from pdref.lab.kernels.compiled import Compiled, amd, instructions, matrix_products, resources, spilled_bytes
from pdref.lab.kernels.devices import PEAKS, TARGETS
from pdref.lab.kernels.entry import Entry
from pdref.lab.kernels.report import compile_entries
from pdref.lab.kernels.traffic import counting
from pdref.ops.impl import interpreted

needs_interpreter = pytest.mark.skipif(not interpreted(), reason="counting needs the interpreter")

RESOURCES = """
Resource usage:
 Common:
  GLOBAL:0
 Function _tile_forward:
  REG:255 STACK:72 SHARED:0 LOCAL:0 CONSTANT[0]:416 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_tile_forward' for 'sm_80'
ptxas info    : Function properties for _tile_forward
    72 bytes stack frame, 76 bytes spill stores, 68 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 72 bytes cumulative stack size, 416 bytes cmem[0]
"""

SASS = """\
	code for sm_80
		Function : mm
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;              /* 0x00000a00ff017624 */
                                                                                        /* 0x000fe200078e00ff */
        /*0010*/                   STL [R1+0x8], R4 ;                                   /* 0x0000080401007387 */
                                                                                        /* 0x0001e20000100800 */
        /*0020*/                   HMMA.16816.F32 R12, R4, R8, R12 ;                    /* 0x000000080404723c */
                                                                                        /* 0x004fe2000000180c */
        /*0030*/               @P0 HMMA.16816.F32 R16, R4, R10, R16 ;                   /* 0x0000000a0410723c */
                                                                                        /* 0x000fe20000001810 */
        /*0040*/              @!P1 LDL R4, [R1+0x8] ;                                   /* 0x0000080001049983 */
                                                                                        /* 0x000ea20000100800 */
        /*0050*/              @UP0 UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8] ;          /* 0x0000000604007dea */
"""

TTGIR = """\
#blocked = #ttg.blocked<{sizePerThread = [4, 4], threadsPerWarp = [2, 16], warpsPerCTA = [8, 1], order = [1, 0]}>
#mma = #ttg.nvidia_mma<{versionMajor = 2, versionMinor = 0, warpsPerCTA = [4, 2], instrShape = [16, 8]}>
  %a = tt.dot %x, %y, %z : tensor<64x32xf16, #ttg.dot_op<{opIdx = 0, parent = #mma, kWidth = 2}>> * \
tensor<32x64xf16, #ttg.dot_op<{opIdx = 1, parent = #mma, kWidth = 2}>> -> tensor<64x64xf32, #mma> loc(#loc78)
  %b = tt.dot %x, %y, %z : tensor<64x32xf32, #ttg.dot_op<{opIdx = 0, parent = #blocked}>> * \
tensor<32x64xf32, #ttg.dot_op<{opIdx = 1, parent = #blocked}>> -> tensor<64x64xf32, #blocked>
  %c = ttng.warp_group_dot %x, %y, %z {isAsync = true} : !ttg.memdesc<64x64xf16, #shared> -> tensor<64x64xf32, #mma>
  %d:3 = ttng.warp_group_dot_wait %c, %x, %y {pendings = 1 : i32} : tensor<64x64xf32, #mma>
  ttng.tc_gen5_mma %x, %y, %acc, %true, %true : !ttg.memdesc<64x64xf16, #shared>, !ttg.memdesc<64x64xf32, #tmem>
"""

AMDGCN = """\
\tv_mfma_f32_32x32x8_f16 a[0:15], v[2:3], v[4:5], a[0:15]
\tv_mfma_f32_32x32x8_f16 a[0:15], v[6:7], v[8:9], a[0:15]
    .private_segment_fixed_size: 36
    .sgpr_count:     106
    .sgpr_spill_count: 36
    .vgpr_count:     118
    .vgpr_spill_count: 9
"""


def test_the_tools_words_are_understood() -> None:
    """As cuobjdump, ptxas and LLVM print them."""
    assert resources(RESOURCES) == {"registers": 255, "stack": 72}
    assert spilled_bytes(PTXAS) == 76 + 68
    counts = instructions(SASS)
    assert {name: counts[name] for name in ("HMMA", "UTCHMMA", "STL", "LDL", "IMAD")} == {
        "HMMA": 2,
        "UTCHMMA": 1,
        "STL": 1,
        "LDL": 1,
        "IMAD": 1,
    }
    assert amd(AMDGCN) == {"registers": 118, "stack": 36, "spilled": 4 * 9, "tensor_core": {"v_mfma": 2}}


@pytest.mark.parametrize("read", [resources, spilled_bytes, amd])
def test_silence_is_no_zero(read) -> None:
    """A tool that changes its words is noticed."""
    with pytest.raises(ValueError, match="states no"):
        read("nothing of the kind")


def test_a_product_on_ordinary_cores_is_told_from_the_others() -> None:
    """By the layout of its result; waiting for a product is none."""
    assert matrix_products(TTGIR) == (4, 1)


def test_occupancy_is_what_the_calculators_say() -> None:
    """NVIDIA's occupancy calculator for sm_80; AMD's table of vector registers for gfx942."""
    a100, b200, mi300 = TARGETS["sm_80"], TARGETS["sm_100"], TARGETS["gfx942"]
    assert a100.occupancy(4, 32, 0) == (1.0, "warps")
    assert a100.occupancy(8, 255, 0) == (8 / 64, "registers")
    assert a100.occupancy(8, 168, 0) == (8 / 64, "registers")
    assert a100.occupancy(8, 64, 48 * 1024) == (24 / 64, "shared")
    assert a100.occupancy(1, 32, 0) == (32 / 64, "programs")
    assert a100.occupancy(8, 64, 164 * 1024) == (0.0, "shared")
    assert b200.occupancy(4, 32, 0, tensor_memory=256) == (8 / 64, "tensor memory")
    assert mi300.occupancy(4, 128, 0) == (16 / 32, "registers")


def test_the_roofline_is_the_longer_of_two_times() -> None:
    """A large product waits for arithmetic, a copy for memory."""
    a100 = PEAKS[0]
    assert a100.seconds(312 * 10**12, 1, half=True) == 1
    assert a100.seconds(195 * 10**11, 1, half=False) == 1
    assert a100.seconds(1, 2_039 * 10**9, half=True) == 1


@triton.jit
def _product(a, b, c, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    m, k, n = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(c + m[:, None] * N + n[None, :], tl.dot(x, y, input_precision="ieee"))


def compiled_product(dtype: str) -> Entry:
    """A product of 64 x 64 matrices, all of it in one `tl.dot`, for every target."""
    a, b = torch.randn(2, 64, 64).to(getattr(torch, dtype))
    with counting() as counted:
        _product[(1,)](a, b, torch.empty(64, 64), 64, 64, 64)
    [compiled] = compile_entries([Entry("", {}, dtype, counted[0].launch, counted[0].traffic)], list(TARGETS), 1)
    return compiled


@needs_interpreter
def test_half_precision_finds_the_tensor_cores_of_every_target() -> None:
    """HMMA on sm_80, HGMMA on sm_90, UTCHMMA on sm_100, MFMA on gfx942."""
    found = compiled_product("float16")
    kinds = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}
    for target, code in found.code.items():
        assert isinstance(code, Compiled), code
        assert list(code.tensor_core) == [kinds[target]]
        assert (code.products, code.missed, code.spilled, code.stack) == (1, 0, 0, 0), target
        assert 16 <= code.registers <= 255
    assert not list(found.findings())


@needs_interpreter
def test_float32_is_multiplied_on_ordinary_cores_and_64_terms_at_once_spill() -> None:
    """Unrolled, so many operands find no registers on NVIDIA; AMD has float32 products in hardware."""
    found = compiled_product("float32")
    for target, code in found.code.items():
        assert isinstance(code, Compiled), code
        if target == "gfx942":
            assert (code.missed, code.spilled, list(code.tensor_core)) == (0, 0, ["v_mfma"])
        else:
            assert (code.products, code.missed, code.tensor_core) == (1, 1, {})
            assert 0 < code.stack < code.spilled  # what is stored is loaded, some of it more than once
    assert [(f.target, f.what.split()[0], f.fault) for f in found.findings()] == [
        ("sm_80", "spills", False),
        ("sm_90", "spills", True),
        ("sm_100", "spills", True),
    ]
