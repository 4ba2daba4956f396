"""What `point_mask_losses` means: a matched map and its mask are compared at points, one pair at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.reference.maps_at_points import maps_at_points
from detops.reference.maps_at_points_backward import maps_at_points_backward


def point_mask_losses(
    maps: Tensor, index: Tensor, points: Tensor, labels: Tensor, nearest: bool, border: bool, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return two losses of each pair, the two sums that their gradient is made of, and the gradient of their sum.

    With x the logit of a pair's map at a point, p its sigmoid and y the label there:

        cross entropy  mean of softplus(x) - x y
        dice           1 - s / t,  s = 2 sum(p y) + 1,  t = sum p + sum y + 1

    Args:
        maps: (B, Q, h, w) logits.
        index: (B, M) integers, map of each pair; where it is none of them, the losses are 0 and nothing is read.
        points: (B, M, P, 2) x and y, 0 .. 1 within the image; `maps_at_points` says how maps are read.
        labels: (B, N, H, W) numbers or bool, masks that are read at the points, mask m % N for pair m; or (B, M, P),
            the labels there.
        nearest: Whether masks are not interpolated.
        border: Whether borders go on, of maps and of masks.
        with_gradient: Whether to compute the gradient; if not, it is empty.

    Returns:
        losses: (B, M, 2) cross entropy and dice, float32; float64 for maps of that. NaN where a logit is not finite.
        sums: (B, M, 2) of the same dtype: s and t.
        gradient: (B, Q, h, w) of the maps' dtype, of the sum of all losses.

    Reference:
        Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", 2022.
    """
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    losses, sums = torch.zeros(*points.shape[:2], 2, dtype=dtype), torch.ones(*points.shape[:2], 2, dtype=dtype)
    for b, m, x, y in pairs(maps, index, points, labels, nearest, border):
        p = x.sigmoid() + x * 0
        s, t = 2 * (p * y).sum() + 1, p.sum() + y.sum() + 1
        losses[b, m, 0] = (F.softplus(x) + x * 0 - x * y).sum() / max(len(x), 1)
        losses[b, m, 1] = 1 - s / t
        sums[b, m] = torch.stack([s, t])
    gradient = maps.new_empty(0)
    if with_gradient:
        factors = torch.ones_like(losses)
        gradient = gradient_of(maps, index, points, labels, sums, factors, nearest, border)
    return losses, sums, gradient


def gradient_of(
    maps: Tensor,
    index: Tensor,
    points: Tensor,
    labels: Tensor,
    sums: Tensor,
    factors: Tensor,
    nearest: bool,
    border: bool,
) -> Tensor:
    """Return the gradient of all losses, times their factors (B, M, 2), as `point_mask_losses_backward_` has it."""
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    slopes = torch.zeros(points.shape[:3], dtype=dtype)
    for b, m, x, y in pairs(maps, index, points, labels, nearest, border):
        p = x.sigmoid() + x * 0
        f, g = factors[b, m].to(dtype)
        s, t = sums[b, m].to(dtype)
        slopes[b, m] = f * (p - y) / max(len(x), 1) + g * (s / t**2 - 2 * y / t) * p * (1 - p)
    count, height, width = maps.shape[1:]
    return maps_at_points_backward(slopes, index, points, count, height, width, border).to(maps.dtype)


def pairs(
    maps: Tensor, index: Tensor, points: Tensor, labels: Tensor, nearest: bool, border: bool
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield image, number, logits (P,) and labels (P,) of each pair that has a map."""
    batch, rows = index.shape
    if 0 in maps.shape[1:]:
        return
    for b in range(batch):
        for m in range(rows):
            if 0 <= index[b, m] < maps.shape[1]:
                at = points[b : b + 1, m : m + 1]
                x = maps_at_points(maps[b : b + 1], index[b : b + 1, m : m + 1], at, False, border)[0, 0]
                if labels.dim() == 3:
                    y = labels[b, m]
                else:
                    which = torch.tensor([[m % labels.shape[1]]])
                    y = maps_at_points(labels[b : b + 1], which, at, nearest, border)[0, 0]
                yield b, m, x, y.to(x.dtype)
