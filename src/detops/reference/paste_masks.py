"""The definition of `paste_masks`: each mask sampled at the pixels of an image, one mask at a time."""

import math

import torch
from torch import Tensor


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Enlarge each mask to its box by bilinear interpolation, and cut at a threshold.

    The centre of pixel x lies

        u = (x + 1/2 - x1) / (x2 - x1) * w - 1/2

    cells to the right of the centre of the mask's first cell, computed in float64; v along y is defined likewise. The
    value of a pixel with -1 <= u < w and -1 <= v < h is interpolated between the four cells around it, along x, then
    along y; cells outside the mask are 0. Fractions and values are float32, and each operation is rounded separately:

        along_x(row) = m[row, i] + (m[row, i + 1] - m[row, i]) * (u - i),            i = floor(u)
        value        = along_x(j) + (along_x(j + 1) - along_x(j)) * (v - j),         j = floor(v)

    All other pixels are 0. All pixels are 0 for a box whose width or height is not above 0, or with a coordinate that
    is not finite.

    Args:
        masks: (N, h, w), floating point; computed in float32.
        boxes: (N, 4), xyxy in pixels.
        height: Rows of the image.
        width: Columns of the image.
        threshold: In float32 and above 0; a pixel is true if its value is at least the threshold.

    Returns:
        (N, height, width) bool.

    Reference:
        Detectron2's and MMDetection's `_do_paste_mask` over the whole image: `grid_sample`, bilinear,
        `align_corners=False`, zero padding.
    """
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool)
    cut = torch.tensor(threshold, dtype=torch.float32)
    for n, box in enumerate(boxes.double().tolist()):
        x1, y1, x2, y2 = box
        if not (all(map(math.isfinite, box)) and 0 < x2 - x1 < math.inf and 0 < y2 - y1 < math.inf):
            continue
        mask = torch.zeros(masks.shape[1] + 2, masks.shape[2] + 2)  # a border of zeros
        mask[1:-1, 1:-1] = masks[n].float()
        i, along_x, columns = _positions(x1, x2, masks.shape[2], width)
        j, along_y, rows = _positions(y1, y2, masks.shape[1], height)
        wide = mask[:, i] + (mask[:, i + 1] - mask[:, i]) * along_x  # (h + 2, columns)
        value = wide[j] + (wide[j + 1] - wide[j]) * along_y[:, None]  # (rows, columns)
        pasted[n, rows[:, None], columns] = value >= cut
    return pasted


def _positions(low: float, high: float, cells: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the pixels that the mask reaches: the cell before each in the bordered mask, its fraction, its index."""
    found = []
    for pixel in range(length):
        u = (pixel + 0.5 - low) / (high - low) * cells - 0.5
        if -1 <= u < cells:
            found.append((math.floor(u) + 1, u - math.floor(u), pixel))
    index, fraction, pixels = zip(*found, strict=True) if found else ((), (), ())
    as_index = [torch.tensor(values, dtype=torch.int64) for values in (index, pixels)]
    return as_index[0], torch.tensor(fraction, dtype=torch.float64).float(), as_index[1]
