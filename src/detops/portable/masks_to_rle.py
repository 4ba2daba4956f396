"""`masks_to_rle` in whole-batch PyTorch: used on devices without a kernel.

The size of the result depends on the data, so the host must wait for it anyway. Therefore only the columns that a mask
reaches are sampled, a bounded number at once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.geometry.mask_sampling import between, bordered, samples
from detops.geometry.run_lengths import encode

CHUNK_VALUES = 1 << 20  # pixels at once


def masks_to_rle(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, compress: bool
) -> tuple[Tensor, Tensor]:
    """Return the run lengths of all masks; arguments and meaning as in `detops.reference.masks_to_rle`."""
    mask = bordered(masks).mT  # (N, w + 2, h + 2)
    rows, along_y, columns, along_x = samples(boxes, (masks.shape[1], masks.shape[2]), height, width)
    columns, along_x = F.pad(columns, (0, 1)), F.pad(along_x, (0, 1))
    reached = (columns > 0) | (along_x > 0)  # (N, W + 1)
    # One more column, of zeros: the last run of each mask ends there, and the next mask starts from zeros.
    which, x = (reached | reached.roll(1, 1)).nonzero(as_tuple=True)  # (K,)
    last = torch.zeros(1, dtype=torch.bool, device=masks.device)  # the last pixel of the column before
    parts = []
    for begin in range(0, len(which), max(1, CHUNK_VALUES // height)):
        n, i = (t[begin : begin + max(1, CHUNK_VALUES // height)] for t in (which, x))
        first = columns[n, i]
        column = between(mask[n, first], mask[n, first + 1], along_x[n, i, None])  # (k, h + 2)
        row = rows[n]
        inside = between(column.gather(1, row), column.gather(1, row + 1), along_y[n]) >= threshold  # (k, H)
        before = torch.cat([last, inside.flatten()[:-1]]).view_as(inside)
        k, y = (inside ^ before).nonzero(as_tuple=True)
        parts.append((n[k], i[k] * height + y, inside[k, y]))
        last = inside[-1, -1:]
    empty = which.new_zeros(0)
    owner, place, begins = (torch.cat(t) for t in zip((empty, empty, empty.to(torch.bool)), *parts, strict=True))
    runs = torch.zeros(len(masks), dtype=torch.int64, device=masks.device).scatter_add_(
        0, owner, begins.to(torch.int64)
    )
    return encode(place[begins], place[~begins], runs, height * width, compress)
