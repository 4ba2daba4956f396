"""Runs of ones down the columns of an image, for the kernels that make run lengths and for those that read them.

A kernel that makes them has one program per mask and COLUMNS columns of the image, a column per lane, which goes down
the rows: each pixel is sampled once, and compared with the one before it. It runs twice: the first pass counts the runs
that begin and end in each column, and the second, told how many come before, writes them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.kernels._launch import Kernel, cdiv

COLUMNS = 32  # per program
ROWS = 8  # whose loads are under way together


@triton.jit
def first_places(counts, place, there, total, WRITE: tl.constexpr):
    """Return where the runs of some columns begin in `starts` and `ends`; 0 in the pass that counts.

    `place` is where the columns lie among the `total` columns of all masks, `there` which of them exist.
    """
    if WRITE:
        begun = tl.load(counts + place - 1, mask=there & (place > 0), other=0)
        ended = tl.load(counts + total + place - 1, mask=there & (place > 0), other=0)
    else:
        begun = tl.zeros(place.shape, tl.int32)
        ended = tl.zeros(place.shape, tl.int32)
    return begun, ended


@triton.jit
def take_begins(starts, begun, begins, position, WRITE: tl.constexpr):
    """Count the runs that begin at a pixel of each column, and write them in that pass; return the counts."""
    if WRITE:
        tl.store(starts + begun, position, mask=begins)
    return begun + begins.to(begun.dtype)


@triton.jit
def take_ends(ends, ended, before, inside, position, WRITE: tl.constexpr):
    """The same for the runs that end between the pixel before and this one."""
    stops = before & (inside == 0)
    if WRITE:
        tl.store(ends + ended, position, mask=stops)
    return ended + stops.to(ended.dtype)


@triton.jit
def keep_counts(counts, place, there, total, begun, ended, WRITE: tl.constexpr):
    """Store the counts of some columns, in the pass that counts."""
    if not WRITE:
        tl.store(counts + place, begun, mask=there)
        tl.store(counts + total + place, ended, mask=there)


def find_runs(
    kernel: Kernel, tables: tuple[Tensor, ...], numbers: tuple[Any, ...], number: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch both passes of a kernel; the host waits once, for the number of runs.

    Args:
        kernel: Its tensors are `tables`, then counts (2, N * W), starts (R,) and ends (R,), all int64.
        tables: What the pixels are sampled from.
        numbers: The kernel's numbers.
        number: Number of masks, N.
        width: Columns of the image, W.

    Returns:
        (R,) int64 first position of each run; (R,) the position after its last; (N,) number of runs per mask.
    """
    grid = (number * cdiv(width, COLUMNS),)
    counts = torch.zeros((2, number * width), dtype=torch.int64, device=tables[0].device)
    if counts.numel() == 0:
        return counts[0], counts[1], counts.new_zeros(number)
    kernel(grid, (*tables, counts, counts, counts), numbers, (False, COLUMNS, ROWS))
    through = counts.cumsum(1)
    starts, ends = counts.new_empty(2, int(through[0, -1]))
    kernel(grid, (*tables, through, starts, ends), numbers, (True, COLUMNS, ROWS))
    return starts, ends, counts[0].view(number, width).sum(1)
