"""`rle_measures` in whole-batch PyTorch."""

import torch
from torch import Tensor

from detops.geometry.run_lengths import ones


def rle_measures(counts: Tensor, offsets: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Measure all masks; arguments and meaning as in `detops.reference.rle_measures`."""
    number, lengths = len(offsets) - 1, ones(counts, offsets)
    index = torch.arange(len(counts), device=counts.device)
    mask = torch.bucketize(index, offsets[1:], right=True)
    areas = torch.zeros(number, dtype=torch.int64, device=counts.device).scatter_add_(0, mask, lengths)
    ends = counts.cumsum(0, dtype=torch.int64)
    ends -= torch.cat([ends.new_zeros(1), ends])[offsets[:-1]][mask]  # of each run in its image
    first, last = ends - lengths, ends - 1
    left, right = first // height, last // height
    wraps = left != right
    edges = (left, (first % height).where(~wraps, 0), right + 1, (last % height + 1).where(~wraps, height))
    extents = []
    for side, edge in enumerate(edges):
        least = side < 2
        start = torch.full_like(areas, max(height, width) if least else 0)
        edge = edge.where(lengths > 0, max(height, width) if least else 0)
        extents.append(start.scatter_reduce_(0, mask, edge, "amin" if least else "amax"))
    return areas, torch.stack(extents, 1).where((areas > 0)[:, None], 0)
