"""`Assignment`, the result of every assigner."""

from typing import NamedTuple

import torch
from torch import Tensor

BACKGROUND, IGNORED = -1, -2  # in `Assignment.box_index`


class Assignment(NamedTuple):
    """Which box each point (or anchor) is trained on.

    Attributes:
        box_index: (B, A) int64, index of the box in its image; -1 for background, -2 for ignored points, which lie in
            an ignored region and have no box.
        labels: (B, A) int64, label of the box; -1 without a box.
        quality: (B, A), the IoU of the box with the prediction (SimOTA) or the anchor (ATSS), or the family's score
            target; 0 without a box.
        num_positives: 0-d int64, number of points of the batch that have a box.
    """

    box_index: Tensor
    labels: Tensor
    quality: Tensor
    num_positives: Tensor

    @classmethod
    def of(cls, index: Tensor, quality: Tensor, labels: Tensor, ignored: Tensor | None = None) -> "Assignment":
        """Make an assignment from the results of an op.

        Args:
            index: (B, A) int64, the box of each point, or -1.
            quality: (B, A), quality of the match; 0 without a box.
            labels: (B, N) integers, labels of the boxes.
            ignored: (B, A) bool, points that are ignored if they have no box; None for none.
        """
        taken = index >= 0
        box_index = index if ignored is None else index.where(taken | ~ignored, IGNORED)
        return cls(box_index, _labels_of(index, labels), quality, taken.sum())


def _labels_of(index: Tensor, labels: Tensor) -> Tensor:
    """Return the labels (B, A) int64 of the boxes with these indices, -1 for none."""
    if labels.shape[1] == 0:
        return torch.full_like(index, -1)
    return labels.to(torch.int64).gather(1, index.clamp(min=0)).where(index >= 0, -1)
