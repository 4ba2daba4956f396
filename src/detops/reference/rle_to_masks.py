"""What `rle_to_masks` means: write the runs of each mask down its columns."""

from itertools import pairwise

import torch
from torch import Tensor


def rle_to_masks(
    counts: Tensor,
    offsets: Tensor,
    height: int,
    width: int,
    x: int,
    y: int,
    rows: int,
    columns: int,
    packed: bool,
) -> Tensor:
    """Pixels of a window of the image.

    Args:
        counts: (T,) int32, COCO's run lengths of all masks, joined; runs beyond the image are cut, and what they leave
            out is 0.
        offsets: (N + 1,) int64, where those of each mask begin.
        height: Rows of the image.
        width: Its columns.
        x: First column of the window, which lies in the image.
        y: Its first row.
        rows: Its height.
        columns: Its width.
        packed: Return eight pixels of a row per byte, the first in the highest bit, as `numpy.packbits` does.

    Returns:
        (N, rows, columns) bool, or (N, rows, ceil(columns / 8)) uint8.
    """
    masks = torch.zeros(len(offsets) - 1, width * height, dtype=torch.bool)
    for n, (begin, end) in enumerate(pairwise(offsets.tolist())):
        position = 0
        for i, count in enumerate(counts[begin:end].tolist()):
            masks[n, position : position + count] = i % 2 == 1
            position += count
    window = masks.view(-1, width, height).mT[:, y : y + rows, x : x + columns].contiguous()
    if not packed:
        return window
    bytes_ = torch.zeros(len(window), rows, (columns + 7) // 8, dtype=torch.uint8)
    for column in range(columns):
        bytes_[:, :, column // 8] |= window[:, :, column].to(torch.uint8) << (7 - column % 8)
    return bytes_
