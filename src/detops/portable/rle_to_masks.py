"""`rle_to_masks` in whole-batch PyTorch: the ends of runs are marked, and a sum along them says which are ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_VALUES = 1 << 24  # pixels at once


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
    """Make pixels of all masks; arguments and meaning as in `detops.reference.rle_to_masks`."""
    number = len(offsets) - 1
    index = torch.arange(len(counts), device=counts.device)
    mask = torch.bucketize(index, offsets[1:], right=True)
    ends = counts.cumsum(0, dtype=torch.int64)
    ends -= torch.cat([ends.new_zeros(1), ends])[offsets[:-1]][mask]
    # The end of a mask's last zeros begins nothing.
    begins_or_ends = ((index - offsets[mask]) % 2 == 1) | (index + 1 < offsets[mask + 1])
    last = (x + columns) * height  # pixels after the window's columns are not looked at
    shape = (number, rows, (columns + 7) // 8 if packed else columns)
    out = torch.empty(shape, dtype=torch.uint8 if packed else torch.bool, device=counts.device)
    step = max(1, CHUNK_VALUES // max(last, 1))
    for begin in range(0, number, step):
        some = min(step, number - begin)
        chosen = (mask >= begin) & (mask < begin + some) & (ends <= last) & begins_or_ends
        place = ((mask - begin) * (last + 1) + ends).where(chosen, some * (last + 1))
        marks = torch.zeros(some * (last + 1) + 1, dtype=torch.uint8, device=counts.device)
        marks.scatter_add_(0, place, torch.ones_like(place, dtype=torch.uint8))
        inside = marks[:-1].view(some, last + 1)[:, :-1].cumsum(1, dtype=torch.uint8) & 1
        window = inside.view(some, -1, height).mT[:, y : y + rows, x:]
        out[begin : begin + some] = _packed(window) if packed else window != 0
    return out


def _packed(bits: Tensor) -> Tensor:
    """Pack eight bits of a row into a byte, the first the highest."""
    eights = F.pad(bits, (0, -bits.shape[2] % 8)).unflatten(2, (-1, 8))
    weights = 1 << torch.arange(7, -1, -1, device=bits.device)
    total: Tensor = (eights * weights.to(torch.uint8)).sum(3, dtype=torch.uint8)
    return total
