"""`masks_to_rle` in whole-batch PyTorch: used on devices without a kernel.

The size of the result depends on the data, so the host must wait for it anyway. Therefore only the columns that a mask
reaches are sampled, a bounded number at once.
"""

import torch.nn.functional as F
from torch import Tensor

from detops.geometry.mask_sampling import between, bordered, samples
from detops.geometry.run_lengths import encode
from detops.portable._runs import CHUNK_VALUES, find_runs, runs_per_mask


def masks_to_rle(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, compress: bool
) -> tuple[Tensor, Tensor]:
    """Return the run lengths of all masks; arguments and meaning as in `detops.reference.masks_to_rle`."""
    mask = bordered(masks).mT  # (N, w + 2, h + 2)
    rows, along_y, columns, along_x = samples(boxes, (masks.shape[1], masks.shape[2]), height, width)
    columns, along_x = F.pad(columns, (0, 1)), F.pad(along_x, (0, 1))

    def sample(n: Tensor, x: Tensor) -> Tensor:
        first = columns[n, x]
        column = between(mask[n, first], mask[n, first + 1], along_x[n, x, None])  # (k, h + 2)
        row = rows[n]
        return between(column.gather(1, row), column.gather(1, row + 1), along_y[n]) >= threshold  # (k, H)

    reached = ((columns > 0) | (along_x > 0))[:, :-1]
    owner, starts, ends = find_runs(reached, height, max(1, CHUNK_VALUES // height), sample)
    return encode(starts, ends, runs_per_mask(owner, len(masks)), height * width, compress)
