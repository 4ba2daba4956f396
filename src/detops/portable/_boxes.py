"""The IoU of boxes in whole-batch PyTorch, which several ops share."""

from typing import NamedTuple

import torch
from torch import Tensor


class Boxes(NamedTuple):
    """Boxes by their corners (..., 2) and areas (...)."""

    low: Tensor
    high: Tensor
    area: Tensor


def from_xyxy(boxes: Tensor) -> Boxes:
    """Split boxes (..., 4)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return Boxes(low, high, (high - low).prod(-1))


def from_cxcywh(boxes: Tensor) -> Boxes:
    """Split boxes (..., 4) of centre and size."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return Boxes(center - size / 2, center + size / 2, size.prod(-1))


def overlap(first: Boxes, second: Boxes) -> tuple[Tensor, Tensor]:
    """Return the areas of the intersection and the union of boxes that broadcast against each other."""
    sides = torch.minimum(first.high, second.high) - torch.maximum(first.low, second.low)
    inter = sides.clamp(min=0).prod(-1)
    return inter, first.area + second.area - inter


def iou(first: Boxes, second: Boxes) -> Tensor:
    """Return the IoU of boxes that broadcast against each other; not finite if both have no area or a number is not."""
    inter, union = overlap(first, second)
    return inter / union
