"""Where a dense head predicts: the points of a feature pyramid, and the anchors at them."""

from collections.abc import Sequence

import torch
from torch import Tensor


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


def grid_anchors(
    feature_shapes: Sequence[tuple[int, int]],
    strides: Sequence[int] = (8, 16, 32, 64, 128),
    scale: float = 8.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the anchors of GFL: one square a cell, level by level, row by row.

    Args:
        feature_shapes: Height and width of each level in cells.
        strides: Pixels a cell of each level.
        scale: Sides are this many cells.
        device: Where to.

    Returns:
        (A, 4) float32 xyxy in pixels, centred at (x * stride, y * stride): the corner of the cell, not its middle.

    Raises:
        ValueError: There is not one stride a level.

    Example:
        >>> grid_anchors([(1, 2)], [8])
        tensor([[-32., -32.,  32.,  32.],
                [-24., -32.,  40.,  32.]])

    Reference:
        MMDetection's configuration of ATSS, GFL and LD.
    """
    if len(feature_shapes) != len(strides):
        raise ValueError(f"strides: expected {len(feature_shapes)}, one a level, got {len(strides)}")
    levels = []
    for (height, width), stride in zip(feature_shapes, strides, strict=True):
        y, x = (torch.arange(side, device=device, dtype=torch.float32) * stride for side in (height, width))
        center = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)
        levels.append(torch.cat([center - scale * stride / 2, center + scale * stride / 2], 1))
    return torch.cat(levels)
