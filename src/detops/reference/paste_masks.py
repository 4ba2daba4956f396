"""What `paste_masks` means: one mask at a time, one pixel after another."""

import math

import torch
from torch import Tensor


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Enlarge each mask to its box by bilinear interpolation, and cut at a threshold.

    The centre of pixel x lies, in cells of the mask and counted from the centre of its first,

        u = (x + 1/2 - x1) / (x2 - x1) * w - 1/2

    cells to the right, computed in float64; likewise v along y. A pixel with -1 <= u < w and -1 <= v < h has the value
    of two nested interpolations, along x, then along y, between the four cells around it, which are 0 outside the
    mask. Fractions and values are float32, each operation rounded on its own:

        along_x(row) = m[row, i] + (m[row, i + 1] - m[row, i]) * (u - i),            i = floor(u)
        value        = along_x(j) + (along_x(j + 1) - along_x(j)) * (v - j),         j = floor(v)

    All other pixels are 0, and so is all of a box whose width or height is not above 0, or which has a number that is
    not finite.

    Args:
        masks: (N, h, w), floating point; computed in float32.
        boxes: (N, 4), xyxy in pixels.
        height: Rows of the image.
        width: Its columns.
        threshold: In float32 and above 0; a pixel is true if its value is at least that.

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
    """Of the pixels that the mask reaches: the cell before in the bordered mask, the fraction, and the pixel."""
    found = []
    for pixel in range(length):
        u = (pixel + 0.5 - low) / (high - low) * cells - 0.5
        if -1 <= u < cells:
            found.append((math.floor(u) + 1, u - math.floor(u), pixel))
    index, fraction, pixels = zip(*found, strict=True) if found else ((), (), ())
    as_index = [torch.tensor(values, dtype=torch.int64) for values in (index, pixels)]
    return as_index[0], torch.tensor(fraction, dtype=torch.float64).float(), as_index[1]
