"""Where the pixels of an image fall on a low-resolution map of it, in the arithmetic of `F.interpolate`.

A position counts cells from the centre of the first; ascending, from 0 on, float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.geometry.positions import position_dtype

ULPS = 2.0**-20  # 16 ulps of float32: more than rounding adds to a value


def bilinear_positions(low: float, high: float, pixels: int, device: torch.device) -> Tensor:
    """Compute the positions of the pixels of an axis, as `F.interpolate(mode="bilinear", align_corners=False)` does.

    Args:
        low: Where the image begins on the map, in cells; 0 for the first.
        high: Where it ends.
        pixels: Length of the axis of the image.
        device: Where to make them.

    Returns:
        (pixels,) float32, on the cells from floor(low) to ceil(high): with whole numbers, that is what the resize of a
        slice computes.
    """
    whole = low == math.floor(low) and high == math.floor(high)
    kind = position_dtype(device)
    step = torch.full((pixels,), (high - low) / pixels, dtype=torch.float32 if whole else kind, device=device).to(kind)
    return (step * (torch.arange(pixels, device=device) + 0.5) - 0.5 + (low - math.floor(low))).clamp(min=0).float()


def nearest_positions(low: int, high: int, pixels: int, device: torch.device) -> Tensor:
    """Compute them as `F.interpolate(mode="nearest")` does: the first pixel of a cell takes it."""
    step = torch.full((pixels,), (high - low) / pixels, dtype=torch.float32, device=device)
    return (torch.arange(pixels, device=device) * step).floor().clamp(max=high - low - 1)


def weights(positions: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the cells around positions.

    Args:
        positions: (P,) ascending from 0 on.
        cells: Number of cells; the last is repeated.

    Returns:
        (P,) int64 cell before each, float32 weight of that cell, and of the next.
    """
    at = positions.to(torch.float32)
    before = at.floor().clamp(0, cells - 1)
    after = (at - before).clamp(0, 1)
    return before.to(torch.int64), 1 - after, after


def reached_columns(maps: Tensor, column: Tensor, threshold: float) -> Tensor:
    """Find the columns of the image in which a pixel can be above a threshold: those beside a cell that is.

    Args:
        maps: (N, h, w) float32.
        column: (W,) int64, the cell before each column of the image.
        threshold: What a pixel must be above.

    Returns:
        (N, W) bool.
    """
    above = F.pad((maps > threshold - abs(threshold) * ULPS).any(1), (0, 1))  # (N, w + 1)
    return above[:, column] | above[:, column + 1]


def enlarge(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Resize maps (N, h, w) to the rows `y` and the columns `x`, along x first, every operation rounded on its own."""
    maps = maps.to(torch.float32)
    column, near, far = weights(x, maps.shape[2])
    wide = maps[:, :, column] * near + maps[:, :, (column + 1).clamp(max=maps.shape[2] - 1)] * far
    row, near, far = weights(y, maps.shape[1])
    return wide[:, row] * near[:, None] + wide[:, (row + 1).clamp(max=maps.shape[1] - 1)] * far[:, None]
