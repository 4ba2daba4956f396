"""What an assigner returns, and the cells that it assigns boxes to."""

from typing import NamedTuple

import torch
from torch import Tensor


class Assignment(NamedTuple):
    """Which box each cell (or anchor) is trained on.

    Attributes:
        box_index: (B, A) int64, index of the box in its image, or -1.
        labels: (B, A) int64, its label, or -1.
        iou: (B, A), its IoU with the prediction (or anchor) there, or 0.
        num_positives: 0-d int64, how many cells of the batch have a box.
    """

    box_index: Tensor
    labels: Tensor
    iou: Tensor
    num_positives: Tensor


def labels_of(index: Tensor, labels: Tensor) -> Tensor:
    """Labels (B, A) int64 of the boxes with these indices, -1 where there is none."""
    if labels.shape[1] == 0:
        return torch.full_like(index, -1)
    return labels.to(torch.int64).gather(1, index.clamp(min=0)).where(index >= 0, -1)
