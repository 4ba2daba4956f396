"""What `masks_to_rle` means: paste, then count the runs of each mask down its columns."""

from itertools import groupby

import torch
from torch import Tensor

from detops.reference.paste_masks import paste_masks


def masks_to_rle(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, compress: bool
) -> tuple[Tensor, Tensor]:
    """Run lengths of the pasted masks, in COCO's form.

    A mask is read column by column, from top to bottom. Its counts are the lengths of its runs, of zeros and of ones
    in turns; the first is of zeros, and 0 where the mask begins with a one. As a string, every count from the fourth
    on is replaced by its difference to the count before the last, and each number becomes characters of five bits,
    the lowest first: the highest bit of the last is the sign, bit 5 says that another follows, and 48 is added.

    Args:
        masks: (N, h, w), as `paste_masks` takes them, like all up to `threshold`.
        boxes: (N, 4).
        height: Rows of the image.
        width: Its columns; both together less than 2^31 pixels.
        threshold: Least value of a pixel that is true.
        compress: Return the characters instead of the counts.

    Returns:
        All masks' counts joined, (T,) int32, or their characters, (T,) uint8; and (N + 1,) int64 where each mask's
        begin, the last being T.

    Reference:
        `rleEncode` and `rleToString` of pycocotools' maskApi.c.
    """
    joined: list[int] = []
    offsets = [0]
    for mask in paste_masks(masks, boxes, height, width, threshold):
        runs = [(value, len(list(run))) for value, run in groupby(mask.T.flatten().tolist())]
        counts = [0] if runs[0][0] else []
        counts += [length for _, length in runs]
        joined += _characters(counts) if compress else counts
        offsets.append(len(joined))
    return torch.tensor(joined, dtype=torch.uint8 if compress else torch.int32), torch.tensor(offsets)


def _characters(counts: list[int]) -> list[int]:
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
