"""What `maps_at_points` means: maps are read at points, one point and one cell at a time."""

import math

import torch
from torch import Tensor


def maps_at_points(maps: Tensor, index: Tensor | None, points: Tensor, nearest: bool, border: bool) -> Tensor:
    """Read maps at points.

    The point p of an axis of n cells lies at p n - 1/2 cells from the centre of the first, every operation rounded. Its
    value is interpolated between the cells around it, or that of the nearest cell, the even one of two. With `border` a
    point beyond the outermost centres has the value of the nearest border, otherwise cells beyond the map are 0. A cell
    whose weight is 0 is not read. A coordinate that is NaN counts as 0 with `border`; else the value is 0.

    Args:
        maps: (B, Q, h, w) numbers, or bool.
        index: (B, M) integers, map of each row of points; where it is none of them, the values are 0. None for the
            maps in order, M = Q.
        points: (B, M, P, 2) x and y, 0 .. 1 within the map.
        nearest: Whether not to interpolate.
        border: Whether borders go on.

    Returns:
        (B, M, P), float32; float64 for maps of that.

    Reference:
        `F.grid_sample(maps, 2 * points - 1, align_corners=False)`, and `point_sample` of PointRend.
    """
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    batch, rows, count, _ = points.shape
    found = torch.zeros(batch, rows, count, dtype=dtype)
    for b in range(batch):
        for m in range(rows):
            q = m if index is None else int(index[b, m])
            if 0 <= q < maps.shape[1]:
                for p in range(count):
                    for y, x, weight in cells(points[b, m, p].to(dtype), maps.shape[2:], nearest, border):
                        found[b, m, p] += maps[b, q, y, x].to(dtype) * weight
    return found


def cells(point: Tensor, size: tuple[int, ...], nearest: bool, border: bool) -> list[tuple[int, int, float]]:
    """Return the row, column and weight of each cell that a point (x, y) reads."""
    along_x, along_y = (_axis(point[i], size[1 - i], nearest, border) for i in range(2))
    return [(y, x, g * f) for y, g in along_y for x, f in along_x if g * f != 0]


def _axis(point: Tensor, count: int, nearest: bool, border: bool) -> list[tuple[int, float]]:
    """Cells of an axis, and their weights."""
    position = (point * count - 0.5).item()
    if border:
        position = 0.0 if math.isnan(position) else min(max(position, 0.0), count - 1.0)
    elif not -1 < position < count:
        return []
    first = math.floor(position)
    after = position - first
    if nearest:
        after = float(after > 0.5 or (after == 0.5 and first % 2 == 1))
    return [(cell, weight) for cell, weight in ((first, 1 - after), (first + 1, after)) if 0 <= cell < count]
