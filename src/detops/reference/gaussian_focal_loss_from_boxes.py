"""What `gaussian_focal_loss_from_boxes` means: the two definitions that it joins, one after the other."""

import itertools

import torch
from torch import Tensor

from detops.reference.draw_gaussians import draw_gaussians_
from detops.reference.gaussian_focal_loss import gaussian_focal_loss


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
    """Draw the targets of all boxes, then return the sum of the focal loss over them, and its gradient.

    Args:
        logits: (B, C, H, W).
        centers: (B, N, 2), x and y in cells; this and the next three as in `draw_gaussians_`.
        radii: (B, N) or (B, N, 2), in cells.
        labels: (B, N).
        sample_sizes: (B,), or None.
        negative_weight: (B, H, W), factor of the negative terms of a cell in all classes; None for 1. With 0, such a
            term is 0 whatever the logit, be it NaN.
        scale: 0-d factor of sum and gradient; None for 1.
        diameter_to_sigma_factor: Diameter of a Gaussian over its sigma.
        alpha: This and the rest as in `gaussian_focal_loss`.
        gamma: See there.
        pos_weight: See there.
        neg_weight: See there.
        with_gradient: See there.

    Returns:
        0-d float64 sum, and the gradient of the sum in the shape and dtype of the logits.
    """
    # In float32 as the targets of a training are: what rounds to 1 there is a positive.
    target = torch.zeros(logits.shape, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    draw_gaussians_(target, centers, radii, labels, sample_sizes, diameter_to_sigma_factor, 1.0)
    total, gradient = torch.zeros((), dtype=torch.float64), torch.empty_like(logits)
    for b, y, x in itertools.product(range(logits.shape[0]), range(logits.shape[2]), range(logits.shape[3])):
        weight = 1.0 if negative_weight is None else float(negative_weight[b, y, x])
        cell = (b, slice(None), y, x)  # in all classes
        read = logits[cell] if weight != 0 else logits[cell].where(target[cell] == 1, 0)
        loss, gradient[cell] = gaussian_focal_loss(
            read, target[cell], scale, alpha, gamma, pos_weight, neg_weight * weight, True
        )
        total += loss
    return total, gradient if with_gradient else logits.new_empty(0)
