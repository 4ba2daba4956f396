"""`masks_to_rle` in Triton: one program per 32 columns of an image finds where runs of ones begin and end in them.

No pixel is stored: a lane goes down the rows that the box covers of its column, and remembers the pixel before. A first
pass counts, a cumulative sum over the columns gives the place where each writes, and a second pass writes. The strings
are made from the runs on the device too, so that only they are copied to the host. The host waits twice: for the number
of runs and for the number of counts; and once more for the number of characters.
"""

from ctypes import c_float

import triton
import triton.language as tl
from torch import Tensor

from detops.geometry.mask_sampling import bordered
from detops.kernels._encode import characters_kernel, counts_kernel, encode, groups_kernel, sizes_kernel
from detops.kernels._launch import kernel
from detops.kernels._runs import find_runs, first_places, keep_counts, take_begins, take_ends
from detops.kernels.paste_masks import positions, value_at

__all__ = ["characters_kernel", "counts_kernel", "groups_kernel", "masks_to_rle", "runs_kernel", "sizes_kernel"]


@triton.jit
def covered_rows(rows, along_y, H, BLOCK: tl.constexpr):
    """Return the first of the rows that the mask reaches, which lie together, and the row after; H and 0 if none is."""
    lanes = tl.arange(0, BLOCK)
    low = tl.full((BLOCK,), H, tl.int32)
    high = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, H, BLOCK):
        y = first + lanes
        row = tl.load(rows + y, mask=y < H, other=0)
        covered = (row > 0) | (tl.load(along_y + y, mask=y < H, other=0) > 0)
        low = tl.where(covered, tl.minimum(low, y), low)
        high = tl.where(covered, y + 1, high)
    return tl.min(low, 0), tl.max(high, 0)


@triton.jit
def is_inside(mask, row, fy, column, fx, stride, threshold, asked):
    """Return whether the pixels of a row that the mask reaches are at least the threshold; false outside the mask."""
    asked = asked & ((column > 0) | (fx > 0))
    return asked & (value_at(mask, row, fy, column, fx, stride, asked) >= threshold)


@triton.jit
def is_inside_beside(mask, rows, along_y, columns, along_x, x, y, W, stride, threshold, asked):
    """The same for the pixels (x, y), whose cells are looked up; false outside the image."""
    asked = asked & (x >= 0) & (x < W)
    column = tl.load(columns + x, mask=asked, other=0)
    fx = tl.load(along_x + x, mask=asked, other=0)
    return is_inside(mask, tl.load(rows + y), tl.load(along_y + y), column, fx, stride, threshold, asked)


@kernel(tensors=8, num_warps=1, enable_fp_fusion=False)
def runs_kernel(
    masks,  # (N, h + 2, w + 2) float32 with a border of zeros
    rows,  # (N, H) int32
    along_y,  # (N, H)
    columns,  # (N, W) int32
    along_x,  # (N, W)
    counts,  # (2, N * W) int64: runs that begin and end in each column; with WRITE, those up to it
    starts,  # (R,) int64: position of each run's first pixel, down the columns of its image
    ends,  # (R,) int64: position of the pixel after its last
    H,
    W,
    stride,
    cells,
    threshold,
    WRITE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Count, or write, the runs that begin and end in some columns."""
    tiles = tl.cdiv(W, COLUMNS)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    x = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    there = x < W
    columns += n * W
    along_x += n * W
    column = tl.load(columns + x, mask=there, other=0)
    fx = tl.load(along_x + x, mask=there, other=0)
    if tl.max(((column > 0) | (fx > 0)).to(tl.int32), 0) > 0:
        masks += n * cells
        rows += n * H
        along_y += n * H
        place, total = n * W + x, (tl.num_programs(0) // tiles).to(tl.int64) * W
        begun, ended = first_places(counts, place, there, total, WRITE)
        low, high = covered_rows(rows, along_y, H, COLUMNS * ROWS)
        # Only where the mask reaches the first row and the last does a column go on from the one before it.
        over = there & (x < tl.where((low == 0) & (high == H), W, 0))
        peek = is_inside_beside(masks, rows, along_y, columns, along_x, x - 1, H - 1, W, stride, threshold, over)
        before = x < 0  # nowhere
        for top in range(low, high, ROWS):
            for r in tl.static_range(ROWS):
                y = top + r
                row = tl.load(rows + y, mask=y < high, other=0)
                fy = tl.load(along_y + y, mask=y < high, other=0)
                inside = is_inside(masks, row, fy, column, fx, stride, threshold, there)
                inside = tl.where(y < high, inside, before)
                begins = inside & (tl.where(y > low, before, peek) == 0)
                begun = take_begins(starts, begun, begins, x * H + y, WRITE)
                ended = take_ends(ends, ended, before, inside, x * H + y, WRITE)
                before = inside
        after = is_inside_beside(masks, rows, along_y, columns, along_x, x + 1, 0, W, stride, threshold, over)
        ended = take_ends(ends, ended, before, after, x * H + high, WRITE)
        keep_counts(counts, place, there, total, begun, ended, WRITE)


def masks_to_rle(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, compress: bool
) -> tuple[Tensor, Tensor]:
    """Find all runs and encode them; arguments and meaning as in `detops.reference.masks_to_rle`."""
    mask = bordered(masks).contiguous()
    tables = (mask, *positions(boxes, (masks.shape[1], masks.shape[2]), height, width))
    cut = c_float(threshold).value  # rounded as the masks are
    numbers = (height, width, mask.shape[2], mask.shape[1] * mask.shape[2], cut)
    return encode(*find_runs(runs_kernel, tables, numbers, len(masks), width), height * width, compress)
