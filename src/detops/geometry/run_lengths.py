"""COCO's run-length encoding on tensors of any device, for all masks of an image at once.

Runs of ones come in as their begin and end, counted down the columns of the image. Counts, or the compressed strings
that pycocotools reads and writes, go out: those of all masks joined, with offsets that separate them.
"""

from bisect import bisect_right

import torch
from torch import Tensor

GROUPS = 7  # groups of five bits per number: enough for a run of 2^32 pixels, and for the difference of two


def encode(starts: Tensor, ends: Tensor, runs: Tensor, pixels: int, compress: bool) -> tuple[Tensor, Tensor]:
    """Encode masks as run lengths.

    Args:
        starts: (R,) int64, first position of each run of ones; all masks joined, ascending within each.
        ends: (R,) int64, position after the last of each run.
        runs: (N,) int64, number of runs per mask.
        pixels: Number of pixels of the image.
        compress: Return COCO's strings instead of numbers.

    Returns:
        Lengths of the runs, of zeros and of ones in turns: (T,) int32, or (T,) uint8 characters; and (N + 1,) int64,
        where those of each mask begin.
    """
    count = len(runs)
    mask = torch.repeat_interleave(torch.arange(count, device=runs.device), runs, output_size=len(starts))
    before = runs.cumsum(0) - runs  # (N,) runs of the masks before
    last = torch.zeros_like(runs)
    if len(ends):
        last = ends[(before + runs - 1).clamp(min=0)].where(runs > 0, 0)
    sizes = 2 * runs + (last < pixels)  # (N,) a mask that ends with a one has no last zeros
    offsets = _offsets(sizes)
    first = torch.arange(len(starts), device=runs.device) - before[mask]  # (R,) a run's place in its mask
    place = offsets[mask] + 2 * first
    counts = starts.new_empty(int(offsets[-1]))
    former = torch.cat([ends.new_zeros(1), ends])[: len(ends)]
    counts[place] = starts - former.where(first > 0, 0)
    counts[place + 1] = ends - starts
    tail = torch.where(last < pixels, offsets[1:] - 1, len(counts))
    counts = torch.cat([counts, counts.new_zeros(1)]).scatter(0, tail, pixels - last)[:-1]
    if not compress:
        return counts.to(torch.int32), offsets
    return _compressed(counts, offsets)


def _compressed(counts: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Write counts as COCO's strings.

    From the fourth count on, the count before the last is subtracted; five bits per character, the lowest first.
    """
    index = torch.arange(len(counts), device=counts.device)
    mask = torch.bucketize(index, offsets[1:], right=True)
    value = counts - torch.where(index - offsets[mask] > 2, counts.roll(2), 0)
    groups = torch.ones_like(value)
    for group in range(1, GROUPS):
        limit = 1 << (5 * group - 1)
        groups += (value < -limit) | (value >= limit)
    order = torch.arange(GROUPS, device=counts.device)
    more = order < (groups - 1)[:, None]  # (T, GROUPS)
    characters = ((value[:, None] >> (5 * order)) & 31) + 32 * more + 48
    ends = torch.cat([groups.new_zeros(1), groups.cumsum(0)])
    return characters[order < groups[:, None]].to(torch.uint8), ends[offsets]


def areas(counts: Tensor, offsets: Tensor) -> Tensor:
    """Count the ones of each mask, (N,) int64, from uncompressed counts."""
    total = torch.cat([offsets.new_zeros(1), _ones(counts, offsets).cumsum(0)])
    return total[offsets[1:]] - total[offsets[:-1]]


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
    counts, ones = first[0].to(torch.int64), _ones(*first)
    ends, is_one = counts.cumsum(0), (ones > 0).to(torch.int64)
    base = ones.cumsum(0) - ones - is_one * (ends - counts)  # ones before a position: base + is_one * position

    def ones_until(position: Tensor) -> Tensor:
        run = torch.searchsorted(ends, position, right=True).clamp_(max=len(ends) - 1)
        return base[run] + is_one[run] * position

    lengths = _ones(*second)
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


def _offsets(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def _ones(counts: Tensor, offsets: Tensor) -> Tensor:
    """Set the counts of runs of zeros to 0, which leaves those of ones: (T,) int64."""
    index = torch.arange(len(counts), device=counts.device)
    mask = torch.bucketize(index, offsets[1:], right=True)
    return counts.to(torch.int64).where((index - offsets[mask]) % 2 == 1, 0)
