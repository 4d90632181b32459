"""A small but real Triton kernel, to see if Triton works here: the log-sum-exp of every row, tile by tile.

A row's maximum is not known before its last tile, so the sum so far is rescaled whenever a larger value turns
up: the online softmax that attention kernels rest on.

Run as a script (with `TRITON_INTERPRET=1` where there is no GPU) it holds the kernel to a float64 truth, and
exits with 1 where it misses. It is a file of its own because Triton reads a kernel's source from its file,
and reads TRITON_INTERPRET at the moment it decorates.
"""

import sys

import torch
import triton
import triton.language as tl


@triton.jit
def _row_logsumexp(x_ptr, out_ptr, columns, row_stride, TILE: tl.constexpr):
    row = tl.program_id(0)
    maximum = -float("inf")
    total = 0.0
    for start in range(0, columns, TILE):
        column = start + tl.arange(0, TILE)
        x = tl.load(x_ptr + row * row_stride + column, mask=column < columns, other=-float("inf"))
        larger = tl.maximum(maximum, tl.max(x, axis=0))
        total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(x - larger), axis=0)
        maximum = larger
    tl.store(out_ptr + row, maximum + tl.log(total))


def row_logsumexp(x: torch.Tensor, tile: int = 64) -> torch.Tensor:
    """log Σ_j exp x[i, j] of finite float32 rows: [N, M] -> [N]; M at least 1, contiguous columns."""
    out = torch.full((x.shape[0],), float("nan"), device=x.device)  # a row that is never written shows
    _row_logsumexp[(x.shape[0],)](x, out, x.shape[1], x.stride(0), TILE=tile)
    return out


def error_over_budget(device: str) -> float:
    """The kernel's largest error, in units of its budget, 2 * (torch's own error + eps * max|truth|)."""
    x = 30 * torch.randn(5, 257, generator=torch.Generator().manual_seed(0))  # ragged: 257 = 4 * 64 + 1
    x = x.to(device)
    truth = x.double().logsumexp(dim=1)
    naive_error = (x.logsumexp(dim=1) - truth).abs().max()
    budget = 2 * (naive_error + torch.finfo(torch.float32).eps * truth.abs().max())
    return ((row_logsumexp(x) - truth).abs().max() / budget).item()


if __name__ == "__main__":
    ratio = error_over_budget(sys.argv[1])
    print(f"error is {ratio:.2f} of its budget")
    sys.exit(not ratio <= 1)  # NaN fails too
