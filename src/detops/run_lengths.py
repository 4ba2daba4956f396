"""COCO's run-length encoding on tensors of any device, for all masks of an image at once.

Runs of ones come in as first and last position, counted down the columns of the image; counts, or the compressed
strings that pycocotools reads and writes, go out, joined, with offsets that part them.
"""

from bisect import bisect_right

import torch
from torch import Tensor

GROUPS = 7  # of five bits: enough for a run of 2^32 pixels, and for the difference of two


def encode(starts: Tensor, ends: Tensor, runs: Tensor, pixels: int, compress: bool) -> tuple[Tensor, Tensor]:
    """Run lengths of masks.

    Args:
        starts: (R,) int64, where each run of ones begins; all masks joined, ascending within each.
        ends: (R,) int64, the position after its end.
        runs: (N,) int64, how many runs each mask has.
        pixels: Of an image.
        compress: Return COCO's strings instead of numbers.

    Returns:
        Lengths of the runs, of zeros and of ones in turns: (T,) int32, or (T,) uint8 characters; and (N + 1,) int64
        where each mask's begin.
    """
    count = len(runs)
    mask = torch.repeat_interleave(torch.arange(count, device=runs.device), runs, output_size=len(starts))
    before = runs.cumsum(0) - runs  # (N,) runs of former masks
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
    """Counts as COCO's strings: from the fourth on less the last of its kind, in groups of five bits, lowest first."""
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
    """Ones of each mask, (N,) int64, from its uncompressed counts."""
    total = torch.cat([offsets.new_zeros(1), _ones(counts, offsets).cumsum(0)])
    return total[offsets[1:]] - total[offsets[:-1]]


def intersections(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], pixels: int, pairs: Tensor, chunk: int = 1 << 20
) -> Tensor:
    """Pixels that two masks share, for pairs of masks.

    Every run of a pair's second mask asks how many ones the first has before its end, and how many before its begin.

    Args:
        first: Uncompressed counts and offsets of the first masks.
        second: Those of the second.
        pixels: Of an image.
        pairs: (P, 2) int64 indices.
        chunk: Runs at once, about.

    Returns:
        (P,) int64.
    """
    counts, ones = first[0].to(torch.int64), _ones(*first)
    ends = counts.cumsum(0)  # each mask's counts sum to `pixels`: mask n's begin at n * pixels
    is_one, before = ones > 0, ones.cumsum(0) - ones

    def ones_until(position: Tensor) -> Tensor:
        run = torch.searchsorted(ends, position, right=True).clamp(max=len(ends) - 1)
        return before[run] + (position - ends[run] + counts[run]).where(is_one[run], 0)

    runs = second[0].to(torch.int64)
    stops = runs.cumsum(0)
    number = (second[1][1:] - second[1][:-1]) // 2  # (M,) runs of ones
    shared = torch.zeros(len(pairs), dtype=torch.int64, device=pairs.device)
    ahead = number[pairs[:, 1]].cumsum(0).tolist()
    begin = done = 0
    while begin < len(pairs):
        end = max(begin + 1, bisect_right(ahead, done + chunk))
        a, b = pairs[begin:end].unbind(1)
        each = number[b]
        pair = torch.repeat_interleave(torch.arange(len(b), device=b.device), each, output_size=ahead[end - 1] - done)
        place = torch.arange(len(pair), device=b.device) - (each.cumsum(0) - each)[pair]
        run = second[1][b[pair]] + 2 * place + 1
        stop = stops[run] + (a - b)[pair] * pixels
        inside = ones_until(stop) - ones_until(stop - runs[run])
        shared[begin:end] = torch.zeros_like(each).scatter_add_(0, pair, inside)
        begin, done = end, ahead[end - 1]
    return shared


def _offsets(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def _ones(counts: Tensor, offsets: Tensor) -> Tensor:
    """The counts of ones, and 0 for those of zeros, (T,) int64."""
    index = torch.arange(len(counts), device=counts.device)
    mask = torch.bucketize(index, offsets[1:], right=True)
    return counts.to(torch.int64).where((index - offsets[mask]) % 2 == 1, 0)
