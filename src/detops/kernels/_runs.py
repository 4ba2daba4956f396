"""Runs of ones down the columns of an image, for the kernels that make run lengths and for those that read them.

A kernel that makes them has one program per column of an image, and runs twice: the first pass counts the runs that
begin and end in each column, and the second, told how many come before, writes them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.kernels._launch import Kernel

BLOCK = 256  # rows at once


@triton.jit
def pixel_before(x, y, H):
    """Return the pixel before each, down the columns: before a first row comes the last of the column before."""
    return tl.where(y > 0, x, x - 1), tl.where(y > 0, y - 1, H - 1)


@triton.jit
def pixel_after(x, y, H):
    """Return the pixel after each, down the columns."""
    return tl.where(y < H - 1, x, x + 1), tl.where(y < H - 1, y + 1, 0)


@triton.jit
def first_places(counts, pid, WRITE: tl.constexpr):
    """Return where the runs of a column begin in `starts` and `ends`; 0 in the pass that counts."""
    begun = tl.zeros((), tl.int64)
    ended = tl.zeros((), tl.int64)
    if WRITE:
        begun = tl.load(counts + pid)
        ended = tl.load(counts + tl.num_programs(0).to(tl.int64) + pid)
    return begun, ended


@triton.jit
def take_runs(starts, ends, begun, ended, begins, stops, position, WRITE: tl.constexpr):
    """Count the runs that begin or stop at some pixels, and write them where that is the pass; return the counts."""
    begins = begins.to(tl.int64)
    stops = stops.to(tl.int64)
    if WRITE:
        tl.store(starts + begun + tl.cumsum(begins, 0) - 1, position, mask=begins > 0)
        tl.store(ends + ended + tl.cumsum(stops, 0) - 1, position + 1, mask=stops > 0)
    return begun + tl.sum(begins, 0), ended + tl.sum(stops, 0)


@triton.jit
def keep_counts(counts, pid, begun, ended, WRITE: tl.constexpr):
    """Store the counts of a column, in the pass that counts."""
    if not WRITE:
        tl.store(counts + pid, begun)
        tl.store(counts + tl.num_programs(0).to(tl.int64) + pid, ended)


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
    grid = (number * width,)
    counts = torch.zeros((2, number * width), dtype=torch.int64, device=tables[0].device)
    starts = ends = counts.new_zeros(0)
    if number:
        kernel(grid, (*tables, counts, counts, counts), numbers, (False, BLOCK))
        before = counts.cumsum(1) - counts
        starts, ends = counts.new_empty(2, int(counts[0].sum()))
        kernel(grid, (*tables, before, starts, ends), numbers, (True, BLOCK))
    return starts, ends, counts[0].view(number, width).sum(1)
