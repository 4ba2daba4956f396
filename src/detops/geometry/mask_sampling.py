"""Where the pixels of an image fall on a small mask that lies in a box; shared by the portable forms of the mask ops.

boxes -> for each pixel of an axis, the cell of the mask before it and the fraction of the way to the next
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.geometry.positions import position_dtype


def samples(
    boxes: Tensor, mask_size: tuple[int, int], height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute where every row and every column of an image falls on every mask.

    With cells of width (x2 - x1) / w, pixel x lies at (x + 1/2 - x1) / (x2 - x1) w - 1/2 cells, in float64.

    Args:
        boxes: (N, 4) xyxy in pixels.
        mask_size: Height and width of the masks.
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        For rows (N, height), then for columns (N, width): int64 index of the cell of the bordered mask before the
        pixel, and float32 fraction of the way to the next. Both are 0 for a pixel that the mask does not reach, and
        for all pixels of a box without area or with a number that is not finite.
    """
    box = boxes.to(position_dtype(boxes.device))
    side = box[:, 2:] - box[:, :2]
    usable = (box.isfinite().all(1) & (side.isfinite() & (side > 0)).all(1))[:, None]
    rows = _axis(box[:, 1:2], side[:, 1:2], usable, mask_size[0], height)
    return *rows, *_axis(box[:, 0:1], side[:, 0:1], usable, mask_size[1], width)


def _axis(low: Tensor, side: Tensor, usable: Tensor, cells: int, length: int) -> tuple[Tensor, Tensor]:
    pixels = torch.arange(length, device=low.device, dtype=low.dtype) + 0.5
    position = (pixels - low) / side.where(usable, 1) * cells - 0.5  # (N, length)
    position = position.where(usable & (position >= -1) & (position < cells), -1)
    cell = position.floor()
    return cell.to(torch.int64) + 1, (position - cell).to(torch.float32)


def bordered(masks: Tensor) -> Tensor:
    """Pad masks (N, h, w) with a border of zeros: (N, h + 2, w + 2) float32."""
    return F.pad(masks.to(torch.float32), (1, 1, 1, 1))


def between(first: Tensor, second: Tensor, fraction: Tensor) -> Tensor:
    """Interpolate linearly, each operation rounded separately."""
    return first + (second - first) * fraction
