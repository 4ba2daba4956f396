"""`point_mask_losses` in whole-batch PyTorch: logits and labels of all pairs at all points."""

import torch
from torch import Tensor

from detops.portable._mask_terms import dot, logits_and_labels, softplus_and_sigmoid


def point_mask_losses(
    maps: Tensor, index: Tensor, points: Tensor, labels: Tensor, nearest: bool, border: bool
) -> tuple[Tensor, Tensor]:
    """Compare all pairs at once; arguments and meaning as in `detops.reference.point_mask_losses`."""
    with torch.autocast(maps.device.type, enabled=False):
        x, y, there = logits_and_labels(maps, index, points, labels, nearest, border)
        up, p = softplus_and_sigmoid(x)
        bce = (up.sum(-1) - dot(x, y)) / max(x.shape[-1], 1)
        sums = torch.stack([2 * dot(p, y), p.sum(-1) + y.sum(-1)], -1) + 1
        losses = torch.stack([bce, 1 - sums[..., 0] / sums[..., 1]], -1)
        return losses.where(there, 0), sums.where(there, 1)
