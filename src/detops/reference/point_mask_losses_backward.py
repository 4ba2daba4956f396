"""What `point_mask_losses_backward` means: the slopes of both losses at points go to the cells that were read."""

import torch
from torch import Tensor

from detops.reference.maps_at_points_backward import maps_at_points_backward
from detops.reference.point_mask_losses import pairs


def point_mask_losses_backward(
    maps: Tensor,
    index: Tensor,
    points: Tensor,
    labels: Tensor,
    sums: Tensor,
    factors: Tensor,
    nearest: bool,
    border: bool,
) -> Tensor:
    """Return the gradient by maps of the losses of `point_mask_losses`, times factors.

    With f and g the factors of a pair's two losses, the slope of their sum by a logit is

        f (p - y) / P + g (s / t^2 - 2 y / t) p (1 - p)

    Args:
        maps: (B, Q, h, w) logits.
        index: (B, M) integers; several pairs may have one map.
        points: (B, M, P, 2).
        labels: (B, N, H, W) or (B, M, P), as for the losses.
        sums: (B, M, 2) s and t, as the losses return them.
        factors: (B, M, 2) f and g.
        nearest: As for the losses.
        border: As for the losses.

    Returns:
        (B, Q, h, w) of the maps' dtype; sums in float32, in float64 for maps of that.
    """
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    slopes = torch.zeros(points.shape[:3], dtype=dtype)
    for b, m, x, y in pairs(maps, index, points, labels, nearest, border):
        p = x.sigmoid() + x * 0
        f, g = factors[b, m].to(dtype)
        s, t = sums[b, m].to(dtype)
        slopes[b, m] = f * (p - y) / max(len(x), 1) + g * (s / t**2 - 2 * y / t) * p * (1 - p)
    count, height, width = maps.shape[1:]
    return maps_at_points_backward(slopes, index, points, count, height, width, border).to(maps.dtype)
