"""`maps_to_rle` in Triton: one program per 32 columns of an image finds where runs of ones begin and end in them.

As in `masks_to_rle`, no pixel is stored, a first pass counts and a second writes, and the strings are made on the
device. A first resize (`via_y`, `via_x`) is made by PyTorch, for a bounded number of maps at once.
"""

from ctypes import c_float

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from detops.geometry.resizing import enlarge, reached_columns, weights
from detops.kernels._encode import encode
from detops.kernels._launch import kernel
from detops.kernels._runs import find_runs, first_places, keep_counts, take_begins, take_ends

CHUNK_VALUES = 1 << 26  # values of a first resize at once


@triton.jit
def between(first, second, weight):
    """Interpolate linearly; compiled without fused multiply-add."""
    return first * (1 - weight) + second * weight


@triton.jit
def is_above(maps, row, fy, column, fx, stride, threshold, asked):
    """Return whether the pixels of one row are above the threshold; false where not asked."""
    corner = maps + column + row * stride
    below = corner + stride
    above = between(tl.load(corner, mask=asked, other=0), tl.load(corner + 1, mask=asked, other=0), fx)
    under = between(tl.load(below, mask=asked, other=0), tl.load(below + 1, mask=asked, other=0), fx)
    return asked & (between(above, under, fy) > threshold)


@triton.jit
def is_above_beside(maps, rows, along_y, columns, along_x, x, y, left, right, stride, threshold, asked):
    """The same for the pixels (x, y), whose cells are looked up; false outside the window."""
    asked = asked & (x >= left) & (x < right)
    column = tl.load(columns + x, mask=asked, other=0)
    fx = tl.load(along_x + x, mask=asked, other=0)
    return is_above(maps, tl.load(rows + y), tl.load(along_y + y), column, fx, stride, threshold, asked)


@kernel(tensors=10, num_warps=1, enable_fp_fusion=False)
def map_runs_kernel(
    maps,  # (N, h + 1, w + 1) float32, the last row and the last column twice
    rows,  # (H,) int32: the cell before each row of the image
    along_y,  # (H,) float32: the weight of the next
    columns,  # (W,) int32
    along_x,  # (W,) float32
    reached,  # (N, W) uint8: whether any cell of the column is above the threshold
    windows,  # (N, 4) int32
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
    left = tl.maximum(tl.load(windows + 4 * n), 0)
    low = tl.maximum(tl.load(windows + 4 * n + 1), 0)
    right = tl.minimum(tl.load(windows + 4 * n + 2), W)
    high = tl.minimum(tl.load(windows + 4 * n + 3), H)
    place = n * W + x
    there = (x >= left) & (x < right)
    there = there & (tl.load(reached + place, mask=there, other=0) > 0)
    if tl.max(there.to(tl.int32), 0) > 0:
        maps += n * cells
        total = (tl.num_programs(0) // tiles).to(tl.int64) * W
        begun, ended = first_places(counts, place, there, total, WRITE)
        column = tl.load(columns + x, mask=there, other=0)
        fx = tl.load(along_x + x, mask=there, other=0)
        # Only where the window has the first row and the last does a column go on from the one before it.
        over = there & (x < tl.where((low == 0) & (high == H), W, 0))
        peek = is_above_beside(
            maps, rows, along_y, columns, along_x, x - 1, H - 1, left, right, stride, threshold, over
        )
        before = x < 0  # nowhere
        for top in range(low, high, ROWS):
            for r in tl.static_range(ROWS):
                y = top + r
                row = tl.load(rows + y, mask=y < high, other=0)
                fy = tl.load(along_y + y, mask=y < high, other=0)
                inside = is_above(maps, row, fy, column, fx, stride, threshold, there)
                inside = tl.where(y < high, inside, before)
                begins = inside & (tl.where(y > low, before, peek) == 0)
                begun = take_begins(starts, begun, begins, x * H + y, WRITE)
                ended = take_ends(ends, ended, before, inside, x * H + y, WRITE)
                before = inside
        after = is_above_beside(maps, rows, along_y, columns, along_x, x + 1, 0, left, right, stride, threshold, over)
        ended = take_ends(ends, ended, before, after, x * H + high, WRITE)
        keep_counts(counts, place, there, total, begun, ended, WRITE)


def maps_to_rle(
    maps: Tensor,
    y: Tensor,
    x: Tensor,
    via_y: Tensor | None,
    via_x: Tensor | None,
    windows: Tensor | None,
    threshold: float,
    compress: bool,
) -> tuple[Tensor, Tensor]:
    """Find all runs and encode them; arguments and meaning as in `detops.reference.maps_to_rle`."""
    number, height, width = len(maps), len(y), len(x)
    if windows is None:
        windows = torch.tensor([0, 0, width, height], device=maps.device).expand(number, 4)
    windows = windows.to(torch.int32).contiguous()
    step, via = max(1, number), via_y is not None and via_x is not None
    if via:
        step = max(1, CHUNK_VALUES // (len(via_y) * len(via_x)))
    parts = []
    for begin in range(0, number, step):
        some = maps[begin : begin + step].to(torch.float32)
        some = enlarge(some, via_y, via_x) if via else some
        parts.append(_runs(some, y, x, windows[begin : begin + step], threshold))
    if not parts:
        return encode(*(windows.new_zeros(0, dtype=torch.int64) for _ in range(3)), height * width, compress)
    return encode(*(torch.cat(part) for part in zip(*parts, strict=True)), height * width, compress)


def _runs(maps: Tensor, y: Tensor, x: Tensor, windows: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the runs of some maps: where they begin and end, and how many each has."""
    number, height, width = len(maps), len(y), len(x)
    row, _, along_y = weights(y, maps.shape[1])
    column, _, along_x = weights(x, maps.shape[2])
    reached = reached_columns(maps, column, threshold).to(torch.uint8)
    padded = F.pad(maps, (0, 1, 0, 1), mode="replicate").contiguous()
    tables = (padded, row.to(torch.int32), along_y, column.to(torch.int32), along_x, reached, windows)
    cut = c_float(threshold).value
    numbers = (height, width, padded.shape[2], padded.shape[1] * padded.shape[2], cut)
    return find_runs(map_runs_kernel, tables, numbers, number, width)
