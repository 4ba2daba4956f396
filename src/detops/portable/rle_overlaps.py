"""`rle_overlaps` in whole-batch PyTorch, by searches among run lengths."""

from bisect import bisect_right

import torch
from torch import Tensor

from detops.geometry.run_lengths import ones
from detops.portable.rle_measures import rle_measures


def rle_overlaps(
    counts: Tensor, offsets: Tensor, other_counts: Tensor, other_offsets: Tensor, height: int, width: int
) -> Tensor:
    """Compare all pairs whose extents meet; arguments and meaning as in `detops.reference.rle_overlaps`."""
    _, first = rle_measures(counts, offsets, height, width)
    _, second = rle_measures(other_counts, other_offsets, height, width)
    low = torch.maximum(first[:, None, :2], second[:, :2])
    high = torch.minimum(first[:, None, 2:], second[:, 2:])
    pairs = (low < high).all(2).nonzero()  # all other pairs share nothing
    shared = torch.zeros(len(first), len(second), dtype=torch.int64, device=counts.device)
    found = intersections((counts, offsets), (other_counts, other_offsets), height * width, pairs)
    return shared.index_put_((pairs[:, 0], pairs[:, 1]), found)


def intersections(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], pixels: int, pairs: Tensor, chunk: int = 1 << 20
) -> Tensor:
    """Count the pixels that two masks share, for pairs of masks.

    For every run of a pair's second mask within the extent of the first, the ones of the first before the run's begin
    are subtracted from those before its end. Positions count through all masks, one after another.

    Args:
        first: Uncompressed counts and offsets of the first masks.
        second: Uncompressed counts and offsets of the second masks.
        pixels: Number of pixels of the image.
        pairs: (P, 2) int64, index of a first mask and of a second one.
        chunk: Approximate number of runs processed at once, which bounds memory.

    Returns:
        (P,) int64.
    """
    counts, owned = first[0].to(torch.int64), ones(*first)
    ends, is_one = counts.cumsum(0), (owned > 0).to(torch.int64)
    base = owned.cumsum(0) - owned - is_one * (ends - counts)  # ones before a position: base + is_one * position

    def ones_until(position: Tensor) -> Tensor:
        run = torch.searchsorted(ends, position, right=True).clamp_(max=len(ends) - 1)
        return base[run] + is_one[run] * position

    lengths = ones(*second)
    stops = second[0].cumsum(0)[lengths > 0]  # (R,) of the second masks' runs of ones
    begins = stops - lengths[lengths > 0]
    a, b = pairs.unbind(1)
    shift = (a - b) * pixels
    low, high = (extent[a] - shift for extent in _extents(first, ends))  # of the first mask, in the second's image
    run = torch.searchsorted(stops, low, right=True)
    number = torch.searchsorted(begins, high) - run
    shared = torch.zeros(len(pairs), dtype=torch.int64, device=pairs.device)
    ahead = number.cumsum(0).tolist()
    start = done = 0
    while start < len(pairs):
        stop = max(start + 1, bisect_right(ahead, done + chunk))
        each, total = number[start:stop], ahead[stop - 1] - done
        pair = torch.repeat_interleave(torch.arange(start, stop, device=pairs.device), each, output_size=total)
        # Places of the chunk map to runs: each pair has its own stretch of places.
        chosen = (run[start:stop] - (each.cumsum(0) - each))[pair - start] + torch.arange(total, device=pairs.device)
        moved = shift[pair]
        inside = ones_until(stops[chosen] + moved) - ones_until(begins[chosen] + moved)
        shared.scatter_add_(0, pair, inside)
        start, done = stop, ahead[stop - 1]
    return shared


def _extents(masks: tuple[Tensor, Tensor], ends: Tensor) -> tuple[Tensor, Tensor]:
    """Find where each mask's ones begin and end; both are the same position where it has none."""
    offsets = masks[1]
    size = offsets[1:] - offsets[:-1]
    last = offsets[1:] - 1 - size % 2  # an odd number of counts ends with zeros
    begin = ends[offsets[:-1]]
    return begin, torch.where(size > 1, ends[last.clamp(min=0)], begin)
