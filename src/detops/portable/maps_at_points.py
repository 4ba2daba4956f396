"""`maps_at_points` in whole-batch PyTorch: one gather per corner."""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.geometry.map_points import axis, rows_of


def maps_at_points(maps: Tensor, index: Tensor | None, points: Tensor, nearest: bool, border: bool) -> Tensor:
    """Read all points at once; arguments and meaning as in `detops.reference.maps_at_points`."""
    batch, count, height, width = maps.shape
    dtype = accumulate_dtype(maps)
    found = torch.zeros(points.shape[:3], dtype=dtype, device=maps.device)
    if 0 in maps.shape:
        return found
    x, y = (axis(points[..., i].to(dtype), size, nearest, border) for i, size in ((0, width), (1, height)))
    row, there = rows_of(index, batch, points.shape[1], count, maps.device)
    image = torch.arange(batch, device=maps.device)[:, None, None]
    for line, by_y in ((y.first, y.before), (y.second, y.after)):
        for column, by_x in ((x.first, x.before), (x.second, x.after)):
            weight = by_y * by_x
            value = maps[image, row, line, column].to(dtype) * weight
            found = found + value.where(there & (weight != 0), 0)
    return found
