"""What `maps_at_points_backward` means: each value's gradient goes to the cells that it was read from."""

import torch
from torch import Tensor

from detops.reference.maps_at_points import cells


def maps_at_points_backward(
    gradient: Tensor, index: Tensor | None, points: Tensor, count: int, height: int, width: int, border: bool
) -> Tensor:
    """Return the gradient by maps of that by their interpolated values at points.

    Args:
        gradient: (B, M, P) floating point.
        index: (B, M) integers, map of each row of points, as in `maps_at_points`; several rows may have one map.
        points: (B, M, P, 2) x and y.
        count: Number of maps per image, Q.
        height: Rows of a map, h.
        width: Columns of a map, w.
        border: Whether borders go on.

    Returns:
        (B, Q, h, w) of the gradient's dtype; sums in float32, in float64 for that.
    """
    dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    batch, rows, number = gradient.shape
    found = torch.zeros(batch, count, height, width, dtype=torch.float64)
    for b in range(batch):
        for m in range(rows):
            q = m if index is None else int(index[b, m])
            if 0 <= q < count:
                for p in range(number):
                    for y, x, weight in cells(points[b, m, p].to(dtype), (height, width), False, border):
                        found[b, q, y, x] += gradient[b, m, p].double() * weight
    return found.to(gradient.dtype)
