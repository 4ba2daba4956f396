"""What an assigner returns, and the cells that it assigns boxes to."""

from collections.abc import Sequence
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


def grid_cells(
    feature_shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """The cells of a feature pyramid, level by level, row by row.

    Args:
        feature_shapes: Height and width of each level in cells.
        strides: Pixels a cell of each level.
        device: Where to.

    Returns:
        (A, 3) float32: x and y of the cell's centre, and its side, in pixels.

    Raises:
        ValueError: There is not one stride a level.

    Example:
        >>> grid_cells([(1, 2)], [8])
        tensor([[ 4.,  4.,  8.],
                [12.,  4.,  8.]])
    """
    if len(feature_shapes) != len(strides):
        raise ValueError(f"strides: expected {len(feature_shapes)}, one a level, got {len(strides)}")
    levels = []
    for (height, width), stride in zip(feature_shapes, strides, strict=True):
        y, x = ((torch.arange(side, device=device, dtype=torch.float32) + 0.5) * stride for side in (height, width))
        rows = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)
        levels.append(torch.cat([rows, torch.full_like(rows[:, :1], stride)], 1))
    return torch.cat(levels)


def labels_of(index: Tensor, labels: Tensor) -> Tensor:
    """Labels (B, A) int64 of the boxes with these indices, -1 where there is none."""
    if labels.shape[1] == 0:
        return torch.full_like(index, -1)
    return labels.to(torch.int64).gather(1, index.clamp(min=0)).where(index >= 0, -1)
