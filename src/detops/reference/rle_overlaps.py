"""What `rle_overlaps` means: decode, and count the pixels that two masks share."""

import torch
from torch import Tensor

from detops.reference.rle_to_masks import rle_to_masks


def rle_overlaps(
    counts: Tensor, offsets: Tensor, other_counts: Tensor, other_offsets: Tensor, height: int, width: int
) -> Tensor:
    """Pixels that each mask shares with each of others.

    Args:
        counts: (T,) int32, COCO's run lengths of all masks, joined.
        offsets: (N + 1,) int64, where those of each mask begin.
        other_counts: Those of the other masks.
        other_offsets: (M + 1,) int64.
        height: Rows of the image.
        width: Its columns.

    Returns:
        (N, M) int64.
    """
    window = (height, width, 0, 0, height, width, False)
    masks, others = rle_to_masks(counts, offsets, *window), rle_to_masks(other_counts, other_offsets, *window)
    shared = torch.zeros(len(masks), len(others), dtype=torch.int64)
    for n, mask in enumerate(masks):
        for m, other in enumerate(others):
            shared[n, m] = (mask & other).sum()
    return shared
