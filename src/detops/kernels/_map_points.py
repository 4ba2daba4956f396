"""Where points lie on maps, for the kernels that read maps at points and that hand gradients back."""

import triton
import triton.language as tl


@triton.jit
def position_of(point, size, BORDER: tl.constexpr):
    """Return where points lie along an axis of `size` cells, counted from the centre of the first.

    Without `BORDER` it is -2 where a point is not near any cell. Products and sums are rounded apart.
    """
    position = point * size - 0.5
    if BORDER:
        last = (size - 1).to(position.dtype)
        return tl.where(position > 0, tl.where(position < last, position, last), 0.0)  # 0 for NaN
    return tl.where((position > -1) & (position < size), position, -2.0)


@triton.jit
def weights_at(position, size, NEAREST: tl.constexpr):
    """Return the cell before each position, and the weights of it and of the next; 0 for a cell that is not there."""
    floor = tl.floor(position)
    cell = floor.to(tl.int64)
    after = position - floor
    if NEAREST:
        after = ((after > 0.5) | ((after == 0.5) & (cell % 2 != 0))).to(position.dtype)
    before = tl.where((cell >= 0) & (cell < size), 1 - after, 0.0)
    after = tl.where((cell >= -1) & (cell + 1 < size), after, 0.0)
    return cell, before, after


@triton.jit
def corner(map_, y, x, weight, by_row, by_column):
    """Return what a cell adds; it is not read where its weight is 0."""
    value = tl.load(map_ + y * by_row + x * by_column, mask=weight != 0, other=0)
    return value.to(weight.dtype) * weight


@triton.jit
def value_at(map_, x, y, there, h, w, by_row, by_column, NEAREST: tl.constexpr, BORDER: tl.constexpr):
    """Return the values of a map at points, 0 where there is none."""
    column, left, right = weights_at(position_of(x, w, BORDER), w, NEAREST)
    line, top, bottom = weights_at(position_of(y, h, BORDER), h, NEAREST)
    top, bottom = tl.where(there, top, 0.0), tl.where(there, bottom, 0.0)
    value = corner(map_, line, column, top * left, by_row, by_column)
    value += corner(map_, line, column + 1, top * right, by_row, by_column)
    value += corner(map_, line + 1, column, bottom * left, by_row, by_column)
    value += corner(map_, line + 1, column + 1, bottom * right, by_row, by_column)
    return value
