"""The definition of `centernet_losses`: the focal loss of the heatmap, and L1 losses at the boxes' cells."""

import torch
from torch import Tensor

from detops.reference.gaussian_focal_loss_from_boxes import gaussian_focal_loss_from_boxes

EPS = torch.finfo(torch.float32).eps  # added to a divisor


def centernet_losses(
    logits: Tensor,
    wh: Tensor,
    offset: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor,
    negative_weight: Tensor | None,
    gt_wh: Tensor,
    gt_offset: Tensor,
    index: Tensor,
    used: Tensor,
    count: Tensor,
    least: float,
    diameter_to_sigma_factor: float,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    wh_weight: float,
    offset_weight: float,
    kept: list[float],
    with_gradient: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the losses of the heatmap, of size and of offset, and the gradients of the maps.

    With c = max(count, least):

        heatmap = 1 / (c + EPS) * the sum of `gaussian_focal_loss_from_boxes`
        size = wh_weight / (2 c + EPS) * the sum over boxes that are used of |wh - gt_wh| at their cells
        offset = offset_weight / (2 c + EPS) * the same of offset

    A factor before a sum is also that of the gradient. In its place `kept` can name a number, for a gradient in
    float16, which the factor would make too small; what is left of the factor is returned beside the losses.

    Args:
        logits: (B, C, H, W), the heatmap's.
        wh: (B, 2, H, W).
        offset: (B, 2, H, W).
        centers: (B, N, 2), x and y in cells.
        radii: (B, N), or (B, N, 2) for a radius along x and one along y; in cells.
        labels: (B, N), the class of each box, 0 .. C - 1; others are skipped.
        negative_weight: (B, H, W), factor of a cell's negative terms in all classes; None for 1.
        gt_wh: (B, N, 2), what `wh` is trained towards.
        gt_offset: (B, N, 2), what `offset` is trained towards.
        index: (B, N) integers, cells as y * W + x.
        used: (B, N) bool, whose size and offset count; each image uses a cell at most once, and none beyond the map.
        count: 0-d number of centres.
        least: Lowest number to divide by.
        diameter_to_sigma_factor: Diameter of a Gaussian over its sigma.
        alpha: Exponent of the focal loss that weighs down cells that are classified well already.
        gamma: Exponent of the focal loss that weighs down negatives near a centre.
        pos_weight: Factor of the heatmap's positives.
        neg_weight: Factor of the heatmap's negatives.
        wh_weight: Factor of the size's loss.
        offset_weight: Factor of the offset's loss.
        kept: Factor of each map's gradient; 0 for that of its loss.
        with_gradient: Whether to compute the gradients; if not, empty tensors are returned for them.

    Returns:
        (3,) losses; (3,) what is left of the factor of each gradient, 1 where it is that of the loss; and the gradients
        in the shapes and dtypes of the maps. Where a map equals its target, or one is NaN, the L1 loss has gradient 0.

    Reference:
        Zhou et al., "Objects as Points", 2019; values as in MMDetection's `CenterNetHead`.
    """
    divisor = max(count.double().item(), least)
    scales = [1 / (divisor + EPS), wh_weight / (2 * divisor + EPS), offset_weight / (2 * divisor + EPS)]
    factors = [one or scale for one, scale in zip(kept, scales, strict=True)]
    rest = torch.tensor([s / f if k else 1.0 for s, f, k in zip(scales, factors, kept, strict=True)]).double()
    heatmap, slope = gaussian_focal_loss_from_boxes(
        logits, centers, radii, labels, None, negative_weight, torch.tensor(factors[0]), diameter_to_sigma_factor,
        alpha, gamma, pos_weight, neg_weight, with_gradient,
    )  # fmt: skip
    losses, gradients = [heatmap], [slope]
    for preds, target, factor in ((wh, gt_wh, factors[1]), (offset, gt_offset, factors[2])):
        maps = preds.flatten(2)
        loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros(maps.shape, dtype=torch.float64)
        for b in range(len(index)):
            for n, cell in enumerate(index[b].tolist()):
                if used[b, n] and 0 <= cell < maps.shape[2]:
                    difference = maps[b, :, cell].double() - target[b, n].double()
                    loss += factor * difference.abs().sum()
                    gradient[b, :, cell] = factor * difference.sign()
        losses.append(loss)
        gradients.append(gradient.view(preds.shape).to(preds.dtype) if with_gradient else preds.new_empty(0))
    return torch.stack(losses) * rest, rest, gradients
