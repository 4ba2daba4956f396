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
from detops.kernels._runs import find_runs, first_places, keep_counts, pixel_after, pixel_before, take_runs
from detops.kernels.paste_masks import value_at


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
    if (tl.load(columns + pid) > 0) | (tl.load(along_x + pid) > 0):
        masks += n * cells
        rows += n * H
        along_y += n * H
        columns += n * W
        along_x += n * W
        begun, ended = first_places(counts, pid, WRITE)
        for top in range(0, H, BLOCK):
            y = top + tl.arange(0, BLOCK)
            xs = x + tl.zeros((BLOCK,), tl.int64)
            inside = is_inside(masks, rows, along_y, columns, along_x, xs, y, H, W, stride, threshold, y < H)
            px, py = pixel_before(xs, y, H)
            before = is_inside(masks, rows, along_y, columns, along_x, px, py, H, W, stride, threshold, inside)
            px, py = pixel_after(xs, y, H)
            after = is_inside(masks, rows, along_y, columns, along_x, px, py, H, W, stride, threshold, inside)
            begins = inside & (before == 0)
            stops = inside & (after == 0)
            begun, ended = take_runs(starts, ends, begun, ended, begins, stops, xs * H + y, WRITE)
        keep_counts(counts, pid, begun, ended, WRITE)


def masks_to_rle(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, compress: bool
) -> tuple[Tensor, Tensor]:
    """Find all runs and encode them; arguments and meaning as in `detops.reference.masks_to_rle`."""
    mask = bordered(masks).contiguous()
    rows, along_y, columns, along_x = samples(boxes, (masks.shape[1], masks.shape[2]), height, width)
    tables = (mask, rows.to(torch.int32), along_y, columns.to(torch.int32), along_x)
    cut = c_float(threshold).value  # rounded as the masks are
    numbers = (height, width, mask.shape[2], mask.shape[1] * mask.shape[2], cut)
    return encode(*find_runs(runs_kernel, tables, numbers, len(masks), width), height * width, compress)
