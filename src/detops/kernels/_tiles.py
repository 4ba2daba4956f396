"""Tiles, for several Triton kernels: runs of points of one level, which a program looks at together.

`edges` has the first point of each tile, and the number of all. The hull of a tile says whether a box can have to do
with it, so that a program passes over most of them.
"""

import triton
import triton.language as tl

from detops.kernels._launch import plain


@triton.jit
def hull_of(low_x, low_y, high_x, high_y, mask):
    """The hull of some rectangles, but for those with a NaN; infinite and turned inside out for none."""
    there = mask & (low_x == low_x) & (low_y == low_y) & (high_x == high_x) & (high_y == high_y)
    infinity = float("inf")
    return (
        tl.min(tl.where(there, low_x, infinity), 0),
        tl.min(tl.where(there, low_y, infinity), 0),
        tl.max(tl.where(there, high_x, -infinity), 0),
        tl.max(tl.where(there, high_y, -infinity), 0),
    )


@triton.jit
def points_of(edges, tile, BLOCK: tl.constexpr):
    """Return the points of a tile, and which of them exist."""
    a = tl.load(edges + tile) + tl.arange(0, BLOCK)
    return a, a < tl.load(edges + tile + 1)


@triton.jit
def range_of(tile, firsts, starts, rows, LEVELS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the first point of a tile, and the end of its level."""
    first, end = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    for level in tl.static_range(LEVELS):
        if tile >= plain(firsts[level]):
            first = plain(starts[level]) + (tile - plain(firsts[level])) * BLOCK
            end = plain(starts[level]) + plain(rows[level])
    return first, end


@triton.jit
def logits_at(levels, strides_b, strides_r, strides_c, starts, rows, b, a, column, mask, LEVELS: tl.constexpr):
    """Return one column of the rows (B, R, columns) of points of any level."""
    value = tl.zeros(a.shape, tl.float32)
    for level in tl.static_range(LEVELS):
        row = a - plain(starts[level])
        here = mask & (row >= 0) & (row < plain(rows[level]))
        logit = levels[level] + b * plain(strides_b[level]) + row.to(tl.int64) * plain(strides_r[level])
        read = tl.load(logit + column * plain(strides_c[level]), mask=here, other=0.0).to(tl.float32)
        value = tl.where(here, read, value)
    return value
