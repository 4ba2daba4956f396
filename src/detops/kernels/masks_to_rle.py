"""`masks_to_rle` in Triton: one program per column of an image finds where runs of ones begin and end in it.

No pixel is stored: a run begins at a pixel above the threshold whose predecessor, down the columns, is not, and both
are sampled anew. A first pass counts, a cumulative sum over the columns gives the place where each writes, and a second
pass writes. The strings are made from the runs on the device too, so that only they are copied to the host. The host
waits twice: for the number of runs and for the number of counts; and once more for the number of characters.
"""

from ctypes import c_float

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.geometry.mask_sampling import bordered, samples
from detops.geometry.run_lengths import encode
from detops.kernels._launch import kernel
from detops.kernels.paste_masks import value_at

BLOCK = 256  # rows at once


@triton.jit
def is_inside(mask, rows, along_y, columns, along_x, x, y, H, W, stride, threshold, asked):
    """Return whether the pixels (x, y) of one image are at least the threshold; false outside the image."""
    asked = asked & (x >= 0) & (x < W)
    column = tl.load(columns + x, mask=asked, other=0)
    fx = tl.load(along_x + x, mask=asked, other=0)
    row = tl.load(rows + y, mask=asked, other=0)
    fy = tl.load(along_y + y, mask=asked, other=0)
    asked = asked & ((column > 0) | (fx > 0)) & ((row > 0) | (fy > 0))
    return asked & (value_at(mask, row, fy, column, fx, stride, asked) >= threshold)


@kernel(tensors=8, num_warps=2, enable_fp_fusion=False)
def runs_kernel(
    masks,  # (N, h + 2, w + 2) float32 with a border of zeros
    rows,  # (N, H) int32
    along_y,  # (N, H)
    columns,  # (N, W) int32
    along_x,  # (N, W)
    counts,  # (2, N * W) int64: runs that begin and end in each column; with WRITE, those before it
    starts,  # (R,) int64: position of each run's first pixel, down the columns of its image
    ends,  # (R,) int64: position of the pixel after its last
    H,
    W,
    stride,
    cells,
    threshold,
    WRITE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count, or write, the runs that begin and end in one column."""
    pid = tl.program_id(0).to(tl.int64)
    n, x = pid // W, pid % W
    total = tl.num_programs(0).to(tl.int64)
    if (tl.load(columns + pid) > 0) | (tl.load(along_x + pid) > 0):
        masks += n * cells
        rows += n * H
        along_y += n * H
        columns += n * W
        along_x += n * W
        begun = tl.zeros((), tl.int64)
        ended = tl.zeros((), tl.int64)
        if WRITE:
            begun = tl.load(counts + pid)
            ended = tl.load(counts + total + pid)
        for top in range(0, H, BLOCK):
            y = top + tl.arange(0, BLOCK)
            xs = x + tl.zeros((BLOCK,), tl.int64)
            there = y < H
            inside = is_inside(masks, rows, along_y, columns, along_x, xs, y, H, W, stride, threshold, there)
            before = is_inside(
                masks, rows, along_y, columns, along_x, tl.where(y > 0, xs, xs - 1), tl.where(y > 0, y - 1, H - 1),
                H, W, stride, threshold, inside,
            )  # fmt: skip
            after = is_inside(
                masks, rows, along_y, columns, along_x, tl.where(y < H - 1, xs, xs + 1),
                tl.where(y < H - 1, y + 1, 0), H, W, stride, threshold, inside,
            )  # fmt: skip
            begins = (inside & (before == 0)).to(tl.int64)
            stops = (inside & (after == 0)).to(tl.int64)
            if WRITE:
                position = xs * H + y
                tl.store(starts + begun + tl.cumsum(begins, 0) - 1, position, mask=begins > 0)
                tl.store(ends + ended + tl.cumsum(stops, 0) - 1, position + 1, mask=stops > 0)
            begun += tl.sum(begins, 0)
            ended += tl.sum(stops, 0)
        if not WRITE:
            tl.store(counts + pid, begun)
            tl.store(counts + total + pid, ended)


def masks_to_rle(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, compress: bool
) -> tuple[Tensor, Tensor]:
    """Find all runs and encode them; arguments and meaning as in `detops.reference.masks_to_rle`."""
    number = len(masks)
    mask = bordered(masks).contiguous()
    rows, along_y, columns, along_x = samples(boxes, (masks.shape[1], masks.shape[2]), height, width)
    tables = (mask, rows.to(torch.int32), along_y, columns.to(torch.int32), along_x)
    cut = c_float(threshold).value  # rounded as the masks are
    numbers = (height, width, mask.shape[2], mask.shape[1] * mask.shape[2], cut)
    counts = torch.zeros((2, number * width), dtype=torch.int64, device=masks.device)
    starts = ends = counts.new_zeros(0)
    if number:
        runs_kernel((number * width,), (*tables, counts, counts, counts), numbers, (False, BLOCK))
        before = counts.cumsum(1) - counts
        starts, ends = counts.new_empty(2, int(counts[0].sum()))
        runs_kernel((number * width,), (*tables, before, starts, ends), numbers, (True, BLOCK))
    return encode(starts, ends, counts[0].view(number, width).sum(1), height * width, compress)
