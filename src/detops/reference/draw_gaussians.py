"""The definition of `draw_gaussians_`: Gaussians drawn into maps one box at a time, by element-wise maximum."""

import math

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps


def draw_gaussians_(
    heatmap: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor | None,
    sample_sizes: Tensor | None,
    diameter_to_sigma_factor: float,
    k_scale: float,
) -> None:
    """Draw one Gaussian for each box, in place.

    A box with centre (x, y) and radii (rx, ry) covers the pixels whose centre is within rx + 1/2 and ry + 1/2
    of it, which is a diameter of 2 r + 1. There, with sigma = (2 r + 1) / diameter_to_sigma_factor,

        value = exp(-(dx^2 / sigma_x^2 + dy^2 / sigma_y^2) / 2),  0 where that is below float32's epsilon,

    and the map becomes max(map, k_scale * value). A box is skipped if its label is no class, a radius is
    negative, or a number is not finite. Computed in float64.

    Args:
        heatmap: (B, C, H, W), floating point.
        centers: (B, N, 2), x and y in pixels of the map.
        radii: (B, N), or (B, N, 2) for a radius along x and one along y; in pixels.
        labels: (B, N), the map of each box, 0 .. C - 1; None if C is 1.
        sample_sizes: (B,), how many of the N boxes of each sample are real; None for all.
        diameter_to_sigma_factor: Diameter of a Gaussian over its sigma.
        k_scale: Value at the centre.

    Reference:
        Law and Deng, "CornerNet", 2018; Zhou et al., "Objects as Points", 2019. With integer
        centres and radii it equals MMDetection's `gen_gaussian_target` and ACCV-Lab's `draw_heatmap`.
    """
    batch, classes, height, width = heatmap.shape
    for b in range(batch):
        size = centers.shape[1] if sample_sizes is None else min(int(sample_sizes[b]), centers.shape[1])
        for n in range(size):
            label = 0 if labels is None else int(labels[b, n])
            x, y = centers[b, n].tolist()
            rx, ry = radii[b, n].expand(2).tolist()
            if not (0 <= label < classes and all(map(math.isfinite, (x, y, rx, ry))) and rx >= 0 and ry >= 0):
                continue
            left, right = max(0, math.ceil(x - rx - 0.5)), min(width - 1, math.floor(x + rx + 0.5))
            top, bottom = max(0, math.ceil(y - ry - 0.5)), min(height - 1, math.floor(y + ry + 0.5))
            if left > right or top > bottom:
                continue
            dx = torch.arange(left, right + 1, dtype=torch.float64) - x  # (w,)
            dy = torch.arange(top, bottom + 1, dtype=torch.float64)[:, None] - y  # (h, 1)
            sigma_x = (2 * rx + 1) / diameter_to_sigma_factor
            sigma_y = (2 * ry + 1) / diameter_to_sigma_factor
            gaussian = torch.exp(-((dx / sigma_x) ** 2 + (dy / sigma_y) ** 2) / 2)  # (h, w)
            gaussian[gaussian < EPS] = 0
            window = heatmap[b, label, top : bottom + 1, left : right + 1]
            torch.maximum(window, (k_scale * gaussian).to(window), out=window)
