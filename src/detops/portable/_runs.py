"""Finding the runs of ones of masks that are sampled column by column, a bounded number of columns at once."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK_VALUES = 1 << 20  # pixels at once


def find_runs(
    reached: Tensor, height: int, step: int, sample: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Find where runs begin and end, down the columns.

    Args:
        reached: (N, W) bool, the columns of each mask that can have ones; the others are not sampled.
        height: Rows of the image, H.
        step: Columns at once.
        sample: Makes the pixels (k, H) bool of columns, from the mask and the place (k,) of each; the place may be W.

    Returns:
        (R,) int64 mask of each run, its first position, and the position after its last; positions count down the
        columns of the mask's own image.
    """
    # One more column, of zeros: the last run of each mask ends there, and the next mask starts from zeros.
    reached = pad(reached, (0, 1))
    which, place = (reached | reached.roll(1, 1)).nonzero(as_tuple=True)  # (K,)
    last = torch.zeros(1, dtype=torch.bool, device=reached.device)  # the last pixel of the column before
    parts = [(which[:0], which[:0], last[:0])]
    for begin in range(0, len(which), step):
        n, x = which[begin : begin + step], place[begin : begin + step]
        inside = sample(n, x) & reached[n, x, None]  # (k, H)
        before = torch.cat([last, inside.flatten()[:-1]]).view_as(inside)
        k, y = (inside ^ before).nonzero(as_tuple=True)
        parts.append((n[k], x[k] * height + y, inside[k, y]))
        last = inside[-1, -1:]
    owner, position, begins = (torch.cat(t) for t in zip(*parts, strict=True))
    return owner[begins], position[begins], position[~begins]


def runs_per_mask(owner: Tensor, number: int) -> Tensor:
    """Count the runs (R,) of each of some masks, (N,) int64."""
    return torch.zeros(number, dtype=torch.int64, device=owner.device).scatter_add_(0, owner, torch.ones_like(owner))
