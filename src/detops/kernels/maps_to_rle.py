"""`maps_to_rle` in Triton: one program per column of an image finds where runs of ones begin and end in it.

As in `masks_to_rle`, no pixel is stored, a first pass counts and a second writes, and the strings are made on the
device. A first resize (`via_y`, `via_x`) is made by PyTorch, for a bounded number of maps at once.
"""

from ctypes import c_float

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from detops.geometry.resizing import enlarge, weights
from detops.geometry.run_lengths import encode
from detops.kernels._launch import kernel

BLOCK = 256  # rows at once
CHUNK_VALUES = 1 << 26  # values of a first resize at once
ULPS = 2.0**-20  # 16 ulps of float32: more than rounding adds to a value


@triton.jit
def between(first, second, weight):
    """Interpolate linearly; compiled without fused multiply-add."""
    return first * (1 - weight) + second * weight


@triton.jit
def is_above(cell, rows, along_y, along_x, y, stride, threshold, asked):
    """Return whether the pixels `y` of the column whose upper cells begin at `cell` are above the threshold."""
    row = tl.load(rows + y, mask=asked, other=0)
    weight = tl.load(along_y + y, mask=asked, other=0)
    corner = cell + row * stride
    below = corner + stride
    above = between(tl.load(corner, mask=asked, other=0), tl.load(corner + 1, mask=asked, other=0), along_x)
    under = between(tl.load(below, mask=asked, other=0), tl.load(below + 1, mask=asked, other=0), along_x)
    return asked & (between(above, under, weight) > threshold)


@kernel(tensors=10, num_warps=2, enable_fp_fusion=False)
def map_runs_kernel(
    maps,  # (N, h + 1, w + 1) float32, the last row and the last column twice
    rows,  # (H,) int32: the cell before each row of the image
    along_y,  # (H,) float32: the weight of the next
    columns,  # (W,) int32
    along_x,  # (W,) float32
    reached,  # (N, W) uint8: whether any cell of the column is above the threshold
    windows,  # (N, 4) int32
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
    left = tl.load(windows + 4 * n)
    top = tl.load(windows + 4 * n + 1)
    right = tl.load(windows + 4 * n + 2)
    bottom = tl.load(windows + 4 * n + 3)
    if (tl.load(reached + pid) > 0) & (x >= left) & (x < right):
        maps += n * cells
        begun = tl.zeros((), tl.int64)
        ended = tl.zeros((), tl.int64)
        if WRITE:
            begun = tl.load(counts + pid)
            ended = tl.load(counts + total + pid)
        for line in range(0, H, BLOCK):
            y = line + tl.arange(0, BLOCK)
            there = (y < H) & (y >= top) & (y < bottom)
            own = x + tl.zeros((BLOCK,), tl.int64)
            inside = is_above(
                maps + tl.load(columns + own), rows, along_y, tl.load(along_x + own), y, stride, threshold, there
            )
            # The pixel before the first row is the last of the column before; the one after the last, likewise.
            xs = tl.where(y > 0, own, own - 1)
            ys = tl.where(y > 0, y - 1, H - 1)
            asked = inside & (xs >= left) & (ys >= top) & (ys < bottom) & (xs >= 0)
            before = is_above(
                maps + tl.load(columns + xs, mask=asked, other=0), rows, along_y,
                tl.load(along_x + xs, mask=asked, other=0), ys, stride, threshold, asked,
            )  # fmt: skip
            xs = tl.where(y < H - 1, own, own + 1)
            ys = tl.where(y < H - 1, y + 1, 0)
            asked = inside & (xs < right) & (ys >= top) & (ys < bottom) & (xs < W)
            after = is_above(
                maps + tl.load(columns + xs, mask=asked, other=0), rows, along_y,
                tl.load(along_x + xs, mask=asked, other=0), ys, stride, threshold, asked,
            )  # fmt: skip
            begins = (inside & (before == 0)).to(tl.int64)
            stops = (inside & (after == 0)).to(tl.int64)
            if WRITE:
                position = own * H + y
                tl.store(starts + begun + tl.cumsum(begins, 0) - 1, position, mask=begins > 0)
                tl.store(ends + ended + tl.cumsum(stops, 0) - 1, position + 1, mask=stops > 0)
            begun += tl.sum(begins, 0)
            ended += tl.sum(stops, 0)
        if not WRITE:
            tl.store(counts + pid, begun)
            tl.store(counts + total + pid, ended)


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
    starts, ends, runs = (torch.cat(part) for part in zip(*parts, strict=True))
    return encode(starts, ends, runs, height * width, compress)


def _runs(maps: Tensor, y: Tensor, x: Tensor, windows: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the runs of some maps: where they begin and end, and how many each has."""
    number, height, width = len(maps), len(y), len(x)
    row, _, along_y = weights(y, maps.shape[1])
    column, _, along_x = weights(x, maps.shape[2])
    above = F.pad((maps > threshold - abs(threshold) * ULPS).any(1), (0, 1))  # (n, w + 1)
    reached = (above[:, column] | above[:, column + 1]).to(torch.uint8)
    padded = F.pad(maps, (0, 1, 0, 1), mode="replicate").contiguous()
    tables = (padded, row.to(torch.int32), along_y, column.to(torch.int32), along_x, reached, windows)
    cut = c_float(threshold).value
    numbers = (height, width, padded.shape[2], padded.shape[1] * padded.shape[2], cut)
    counts = torch.zeros((2, number * width), dtype=torch.int64, device=maps.device)
    map_runs_kernel((number * width,), (*tables, counts, counts, counts), numbers, (False, BLOCK))
    before = counts.cumsum(1) - counts
    starts, ends = counts.new_empty(2, int(counts[0].sum()))
    map_runs_kernel((number * width,), (*tables, before, starts, ends), numbers, (True, BLOCK))
    return starts, ends, counts[0].view(number, width).sum(1)
