"""What `rle_measures` means: the number of ones of each mask, and the box around them."""

import torch
from torch import Tensor

from detops.reference.rle_to_masks import rle_to_masks


def rle_measures(counts: Tensor, offsets: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Areas and extents of masks.

    Args:
        counts: (T,) int32, COCO's run lengths of all masks, joined.
        offsets: (N + 1,) int64, where those of each mask begin.
        height: Rows of the image.
        width: Its columns.

    Returns:
        (N,) int64 number of pixels; and (N, 4) int64 xyxy, the smallest box that holds them, its far edges exclusive;
        0 where there are none.
    """
    masks = rle_to_masks(counts, offsets, height, width, 0, 0, height, width, False)
    extents = torch.zeros(len(masks), 4, dtype=torch.int64)
    for n, mask in enumerate(masks):
        y, x = mask.nonzero(as_tuple=True)
        if len(x):
            extents[n] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return masks.sum((1, 2)), extents
