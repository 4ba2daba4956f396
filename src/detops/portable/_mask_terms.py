"""Logits and labels of pairs at points, for the mask losses and their gradient."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.arguments import accumulate_dtype
from detops.portable.maps_at_points import maps_at_points


def logits_and_labels(
    maps: Tensor, index: Tensor, points: Tensor, labels: Tensor, nearest: bool, border: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and labels (B, M, P), and which pairs have a map (B, M, 1); 0 where there is none."""
    dtype, rows = accumulate_dtype(maps), points.shape[1]
    there = ((index >= 0) & (index < maps.shape[1]))[..., None]
    if 0 in maps.shape[1:]:
        there = torch.zeros_like(there)
    x = maps_at_points(maps, index, points, False, border)
    if labels.dim() == 4:
        order = torch.arange(rows, device=maps.device).expand(len(points), -1)
        labels = maps_at_points(labels, order % max(labels.shape[1], 1), points, nearest, border)
    return x, labels.to(dtype).where(there, 0), there


def softplus_and_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return both; NaN where a logit is not finite."""
    poison = x * 0
    return F.softplus(x) + poison, x.sigmoid() + poison


def dot(first: Tensor, second: Tensor) -> Tensor:
    """Sum the products along the last dimension, without storing them."""
    return (first[..., None, :] @ second[..., None])[..., 0, 0]
