"""`rle_measures` in Triton: one program per mask walks its run lengths, a block at a time."""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._launch import kernel

BLOCK = 256  # run lengths at once


@kernel(tensors=4, num_warps=2)
def measure_kernel(
    counts,  # (T,) int32
    offsets,  # (N + 1,) int64
    areas,  # (N,) int64
    extents,  # (N, 4) int64 xyxy
    H,
    W,
    BLOCK: tl.constexpr,
):
    """Sum the runs of ones of one mask, and find the box around them."""
    n = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + n), tl.load(offsets + n + 1)
    position = tl.zeros((), tl.int64)
    area = tl.zeros((), tl.int64)
    left, top = W + tl.zeros((), tl.int64), H + tl.zeros((), tl.int64)
    right, bottom = tl.zeros((), tl.int64), tl.zeros((), tl.int64)
    for first in range(begin, end, BLOCK):
        run = first + tl.arange(0, BLOCK)
        length = tl.load(counts + run, mask=run < end, other=0).to(tl.int64)
        after = position + tl.cumsum(length, 0)
        one = ((run - begin) % 2 == 1) & (length > 0)
        start, last = after - length, after - 1
        area += tl.sum(tl.where(one, length, 0), 0)
        left = tl.minimum(left, tl.min(tl.where(one, start // H, W), 0))
        right = tl.maximum(right, tl.max(tl.where(one, last // H + 1, 0), 0))
        wraps = start // H != last // H  # into another column, so that it touches the first row and the last
        top = tl.minimum(top, tl.min(tl.where(one, tl.where(wraps, 0, start % H), H), 0))
        bottom = tl.maximum(bottom, tl.max(tl.where(one, tl.where(wraps, H, last % H + 1), 0), 0))
        position += tl.sum(length, 0)
    tl.store(areas + n, area)
    tl.store(extents + 4 * n, tl.where(area > 0, left, 0))
    tl.store(extents + 4 * n + 1, tl.where(area > 0, top, 0))
    tl.store(extents + 4 * n + 2, right)
    tl.store(extents + 4 * n + 3, bottom)


def rle_measures(counts: Tensor, offsets: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Measure all masks; arguments and meaning as in `detops.reference.rle_measures`."""
    number = len(offsets) - 1
    areas = torch.empty(number, dtype=torch.int64, device=counts.device)
    extents = torch.empty((number, 4), dtype=torch.int64, device=counts.device)
    if number:
        tensors = (counts.contiguous(), offsets.contiguous(), areas, extents)
        measure_kernel((number,), tensors, (height, width), (BLOCK,))
    return areas, extents
