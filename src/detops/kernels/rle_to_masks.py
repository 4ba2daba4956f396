"""`rle_to_masks` in Triton: each pixel finds its run by halving, and is one if the run's index is odd."""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._launch import cdiv, kernel
from detops.kernels._run_search import run_at, search_steps

BLOCK = 256  # values of the result per program


@kernel(tensors=3, num_warps=4)
def decode_kernel(
    ends,  # (T,) int64: where each run ends, counted through all masks
    offsets,  # (N + 1,) int64
    out,  # (N, rows, columns) uint8; with EACH = 8, (N, rows, ceil(columns / 8))
    H,
    x,
    y,
    rows,
    columns,
    wide,
    steps,
    EACH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Make `BLOCK` values of one mask, each of `EACH` pixels of a row, the first in the highest bit."""
    n = tl.program_id(1).to(tl.int64)
    begin, end = tl.load(offsets + n), tl.load(offsets + n + 1)
    base = tl.load(ends + begin - 1, mask=begin > 0, other=0)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < rows * wide
    row, first = i // wide, i % wide * EACH
    value = tl.zeros((BLOCK,), tl.int32)
    for each in tl.static_range(EACH):
        column = first + each
        asked = there & (column < columns)
        run = run_at(ends, base + (x + column) * H + y + row, begin, end, steps, asked)
        one = asked & (run < end) & ((run - begin) % 2 == 1)
        value = value * 2 + one.to(tl.int32)
    tl.store(out + n * rows * wide + i, value.to(tl.uint8), mask=there)


def rle_to_masks(
    counts: Tensor,
    offsets: Tensor,
    height: int,
    width: int,
    x: int,
    y: int,
    rows: int,
    columns: int,
    packed: bool,
) -> Tensor:
    """Make pixels of all masks; arguments and meaning as in `detops.reference.rle_to_masks`."""
    number, each = len(offsets) - 1, 8 if packed else 1
    wide = cdiv(columns, each)
    out = torch.empty((number, rows, wide), dtype=torch.uint8, device=counts.device)
    if out.numel():
        ends = counts.cumsum(0, dtype=torch.int64)
        numbers = (height, x, y, rows, columns, wide, search_steps(counts))
        decode_kernel((cdiv(rows * wide, BLOCK), number), (ends, offsets.contiguous(), out), numbers, (each, BLOCK))
    return out if packed else out.view(torch.bool)
