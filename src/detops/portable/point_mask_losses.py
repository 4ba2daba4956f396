"""`point_mask_losses` in whole-batch PyTorch: logits and labels of all pairs at all points."""

import torch
from torch import Tensor

from detops.portable._mask_terms import dot, logits_and_labels, softplus_and_sigmoid
from detops.portable.point_mask_losses_backward import point_mask_losses_backward_


def point_mask_losses(
    maps: Tensor, index: Tensor, points: Tensor, labels: Tensor, nearest: bool, border: bool, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare all pairs at once; arguments and meaning as in `detops.reference.point_mask_losses`."""
    with torch.autocast(maps.device.type, enabled=False):
        x, y, there = logits_and_labels(maps, index, points, labels, nearest, border)
        up, p = softplus_and_sigmoid(x)
        bce = (up.sum(-1) - dot(x, y)) / max(x.shape[-1], 1)
        sums = torch.stack([2 * dot(p, y), p.sum(-1) + y.sum(-1)], -1) + 1
        losses = torch.stack([bce, 1 - sums[..., 0] / sums[..., 1]], -1)
        gradient = maps.new_empty(0)
        if with_gradient:
            gradient = torch.empty_like(maps, memory_format=torch.contiguous_format)
            point_mask_losses_backward_(
                gradient, maps, index, points, labels, sums, torch.ones_like(sums), nearest, border, False
            )
        return losses.where(there, 0), sums.where(there, 1), gradient
