"""`paste_masks` in whole-batch PyTorch: used on devices without a kernel.

The size of a box depends on the data, so a form without host synchronisation has to sample the whole image. It takes
a few rows of a few masks at a time.
"""

import torch
from torch import Tensor

from detops.geometry.mask_sampling import between, bordered, samples

CHUNK_VALUES = 1 << 20  # pixels at once, so that memory beside the result is bounded


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Enlarge and cut all masks; arguments and meaning as in `detops.reference.paste_masks`."""
    count = len(masks)
    mask = bordered(masks)  # (N, h + 2, w + 2)
    rows, along_y, columns, along_x = samples(boxes, (masks.shape[1], masks.shape[2]), height, width)
    pasted = torch.empty((count, height, width), dtype=torch.bool, device=masks.device)
    some_masks = max(1, CHUNK_VALUES // (max(height, mask.shape[1]) * width))
    some_rows = max(1, CHUNK_VALUES // width)
    for n in range(0, count, some_masks):
        part = slice(n, n + some_masks)
        column = columns[part, None].expand(-1, mask.shape[1], -1)
        wide = between(mask[part].gather(2, column), mask[part].gather(2, column + 1), along_x[part, None])
        for y in range(0, height, some_rows):
            row, fraction = rows[part, y : y + some_rows], along_y[part, y : y + some_rows, None]
            which = torch.arange(len(row), device=row.device)[:, None]
            value = between(wide[which, row], wide[which, row + 1], fraction)
            pasted[part, y : y + some_rows] = value >= threshold
    return pasted
