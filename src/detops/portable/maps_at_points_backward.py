"""`maps_at_points_backward` in whole-batch PyTorch: one scatter per corner."""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.geometry.map_points import axis, rows_of


def maps_at_points_backward(
    gradient: Tensor, index: Tensor | None, points: Tensor, count: int, height: int, width: int, border: bool
) -> Tensor:
    """Scatter all at once; arguments and meaning as in `detops.reference.maps_at_points_backward`."""
    batch, rows, _ = gradient.shape
    dtype = accumulate_dtype(gradient)
    size = count * height * width
    found = torch.zeros((batch, size), dtype=dtype, device=gradient.device)
    if size:
        x, y = (axis(points[..., i].to(dtype), length, False, border) for i, length in ((0, width), (1, height)))
        row, there = rows_of(index, batch, rows, count, gradient.device)
        for line, by_y in ((y.first, y.before), (y.second, y.after)):
            for column, by_x in ((x.first, x.before), (x.second, x.after)):
                weight = by_y * by_x
                value = (gradient.to(dtype) * weight).where(there & (weight != 0), 0)
                found.scatter_add_(1, ((row * height + line) * width + column).flatten(1), value.flatten(1))
    return found.view(batch, count, height, width).to(gradient.dtype)
