"""`gaussian_focal_loss_from_boxes` in whole-batch PyTorch: used on devices without a kernel.

Unlike the kernels it stores the targets: PyTorch expressions cannot draw them while they compute the loss.
"""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.portable.draw_gaussians import draw_gaussians_
from detops.portable.gaussian_focal_loss import gaussian_focal_loss


def gaussian_focal_loss_from_boxes(
    logits: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor,
    sample_sizes: Tensor | None,
    negative_weight: Tensor | None,
    scale: Tensor | None,
    diameter_to_sigma_factor: float,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return sum and gradient; arguments and meaning as in `detops.reference.gaussian_focal_loss_from_boxes`."""
    dtype = accumulate_dtype(logits)
    target = torch.zeros(logits.shape, dtype=dtype, device=logits.device)
    draw_gaussians_(target, centers, radii, labels, sample_sizes, diameter_to_sigma_factor, 1.0)
    weight = None if negative_weight is None else negative_weight[:, None]
    return gaussian_focal_loss(logits, target, scale, alpha, gamma, pos_weight, neg_weight, with_gradient, weight)
