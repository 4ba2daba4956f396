"""Where the pixels of an image fall on a small mask that lies in a box: what all forms of the mask ops share.

Boxes come in; for each pixel of an axis, the mask's cell before it and how far it is towards the next go out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def samples(
    boxes: Tensor, mask_size: tuple[int, int], height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where every row and every column of an image falls on every mask.

    With cells of width (x2 - x1) / w, the pixel x lies at (x + 1/2 - x1) / (x2 - x1) w - 1/2 cells, in float64.

    Args:
        boxes: (N, 4) xyxy in pixels.
        mask_size: Height and width of the masks.
        height: Rows of the image.
        width: Its columns.

    Returns:
        For rows (N, height), then for columns (N, width): int64 index of the cell of the bordered mask before the
        pixel, and float32 fraction of the way to the next. Both are 0 for a pixel out of the mask's reach, and for
        all of a box that has no extent or a number that is not finite.
    """
    # Positions in float64 give every backend the same pixels; MPS has no float64.
    box = boxes.to(torch.float32 if boxes.device.type == "mps" else torch.float64)
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
    """Masks (N, h, w) in float32 with a border of zeros, (N, h + 2, w + 2)."""
    return F.pad(masks.to(torch.float32), (1, 1, 1, 1))


def between(first: Tensor, second: Tensor, fraction: Tensor) -> Tensor:
    """Linear interpolation, each operation rounded on its own."""
    return first + (second - first) * fraction
