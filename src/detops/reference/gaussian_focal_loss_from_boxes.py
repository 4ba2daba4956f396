"""The definition of `gaussian_focal_loss_from_boxes`: `draw_gaussians_`, then `gaussian_focal_loss`."""

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
        centers: (B, N, 2), x and y in cells.
        radii: (B, N), or (B, N, 2) for a radius along x and one along y; in cells.
        labels: (B, N), the class of each box, 0 .. C - 1.
        sample_sizes: (B,), how many of the N boxes of each sample are real; None for all.
        negative_weight: (B, H, W), factor of a cell's negative terms in all classes; None for 1. Where it is 0, these
            terms are 0 whatever the logit, even if that is NaN.
        scale: 0-d factor of sum and gradient; None for 1.
        diameter_to_sigma_factor: Diameter of a Gaussian over its sigma.
        alpha: Exponent that weighs down cells that are classified well already.
        gamma: Exponent that weighs down negatives near a centre.
        pos_weight: Factor of the positives.
        neg_weight: Factor of the negatives.
        with_gradient: Whether to compute the gradient; if not, an empty tensor is returned for it.

    Returns:
        0-d float64 sum, and the gradient of the sum in the shape and dtype of the logits.

    Reference:
        Law and Deng, "CornerNet", 2018, equation 1.
    """
    # In float32, as in training: a target that rounds to 1 there is a positive.
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
