"""`point_mask_costs` in whole-batch PyTorch: logits at all points, and two products of matrices."""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.portable._mask_terms import softplus_and_sigmoid
from detops.portable.maps_at_points import maps_at_points


def point_mask_costs(logits: Tensor, points: Tensor | None, labels: Tensor, border: bool) -> tuple[Tensor, Tensor]:
    """Compare all pairs at once; arguments and meaning as in `detops.reference.point_mask_costs`."""
    dtype = accumulate_dtype(logits)
    with torch.autocast(logits.device.type, enabled=False):
        if points is None:
            x = logits.to(dtype)
        else:
            x = maps_at_points(logits, None, points.expand(-1, logits.shape[1], -1, -1), False, border)
        y = labels.to(dtype).mT  # (B, P, N)
        up, p = softplus_and_sigmoid(x)
        bce = (up.sum(2, keepdim=True) - x @ y) / max(x.shape[2], 1)
        return bce, 1 - (2 * (p @ y) + 1) / (p.sum(2, keepdim=True) + y.sum(1, keepdim=True) + 1)
