"""The definition of `masks_to_rle`: paste, then count the runs of each mask down its columns."""

from itertools import groupby

import torch
from torch import Tensor

from detops.reference.paste_masks import paste_masks


def masks_to_rle(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, compress: bool
) -> tuple[Tensor, Tensor]:
    """Return the run lengths of the pasted masks, in COCO's format.

    A mask is read column by column, from top to bottom. Its counts are the lengths of its runs, alternately of zeros
    and of ones; the first is of zeros, and is 0 if the mask begins with a one. For the string, every count from the
    fourth on is replaced by its difference from the count two places earlier. Each number is written as characters of
    five bits, the lowest bits first; the highest bit of the last character is the sign, bit 5 of a character is set if
    another follows, and 48 is added.

    Args:
        masks: (N, h, w), floating point; computed in float32.
        boxes: (N, 4), xyxy in pixels.
        height: Rows of the image.
        width: Columns of the image; height * width is less than 2^31.
        threshold: In float32 and above 0; a pixel is true if its value is at least the threshold.
        compress: Return the characters instead of the counts.

    Returns:
        The counts of all masks joined, (T,) int32, or their characters, (T,) uint8; and (N + 1,) int64, the index at
        which each mask begins, followed by T.

    Reference:
        `rleEncode` and `rleToString` of pycocotools' maskApi.c.
    """
    return run_lengths(list(paste_masks(masks, boxes, height, width, threshold)), compress)


def run_lengths(masks: list[Tensor], compress: bool) -> tuple[Tensor, Tensor]:
    """Count the runs of masks (H, W) bool; as `masks_to_rle` returns them."""
    joined: list[int] = []
    offsets = [0]
    for mask in masks:
        runs = [(value, len(list(run))) for value, run in groupby(mask.T.flatten().tolist())]
        counts = [0] if runs[0][0] else []
        counts += [length for _, length in runs]
        joined += _characters(counts) if compress else counts
        offsets.append(len(joined))
    return torch.tensor(joined, dtype=torch.uint8 if compress else torch.int32), torch.tensor(offsets)


def _characters(counts: list[int]) -> list[int]:
    """Return the character codes of one mask's counts."""
    characters = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            five, value = value & 31, value >> 5
            if value == (-1 if five & 16 else 0):
                break
            characters.append(48 + 32 + five)
        characters.append(48 + five)
    return characters
