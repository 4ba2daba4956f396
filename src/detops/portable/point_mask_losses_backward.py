"""`point_mask_losses_backward_` in whole-batch PyTorch: the slopes at all points, and one scatter per corner."""

import torch
from torch import Tensor

from detops.portable._mask_terms import logits_and_labels, softplus_and_sigmoid
from detops.portable.maps_at_points_backward import maps_at_points_backward


def point_mask_losses_backward_(
    gradient: Tensor,
    maps: Tensor,
    index: Tensor,
    points: Tensor,
    labels: Tensor,
    sums: Tensor,
    factors: Tensor,
    nearest: bool,
    border: bool,
    known: bool,
) -> None:
    """Compute all slopes at once; arguments and meaning as in `detops.reference.point_mask_losses_backward`."""
    with torch.autocast(maps.device.type, enabled=False):
        x, y, _ = logits_and_labels(maps, index, points, labels, nearest, border)
        p = softplus_and_sigmoid(x)[1]
        of_bce, of_dice = (factor[..., None] for factor in factors.to(x.dtype).unbind(-1))
        s, t = (one[..., None] for one in sums.to(x.dtype).unbind(-1))
        by_dice = of_dice * (s / t**2 - 2 * y / t)
        slopes = of_bce * (p - y) / max(x.shape[-1], 1) + by_dice * p * (1 - p)
        count, height, width = maps.shape[1:]
        gradient.copy_(maps_at_points_backward(slopes, index, points, count, height, width, border))
