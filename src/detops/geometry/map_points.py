"""Where points lie on maps: the cells around them, and their weights."""

from typing import NamedTuple

import torch
from torch import Tensor


class Axis(NamedTuple):
    """The two cells (...) around points along an axis, int64, and their weights; 0 for a cell that is not there."""

    first: Tensor
    second: Tensor
    before: Tensor
    after: Tensor


def axis(points: Tensor, count: int, nearest: bool, border: bool) -> Axis:
    """Find the cells around points (...) along an axis of `count` cells."""
    position = points * count - 0.5
    if border:
        inside = None
        position = position.nan_to_num(nan=0.0).clamp(0, count - 1)
    else:
        inside = (position > -1) & (position < count)
        position = position.where(inside, 0)
    first = position.floor()
    after = position - first
    if nearest:
        after = ((after > 0.5) | ((after == 0.5) & (first % 2 == 1))).to(position.dtype)
    before, cell = 1 - after, first.to(torch.int64)
    before, after = before.where(cell >= 0, 0), after.where(cell + 1 < count, 0)
    if inside is not None:
        before, after = before.where(inside, 0), after.where(inside, 0)
    return Axis(cell.clamp(min=0), (cell + 1).clamp(max=count - 1), before, after)


def rows_of(index: Tensor | None, batch: int, rows: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the map of each row of points (B, M, 1), int64, and whether there is one."""
    if index is None:
        index = torch.arange(rows, device=device).expand(batch, rows)
    given = index.to(torch.int64)[..., None]
    there = (given >= 0) & (given < count)
    return given.where(there, 0), there
