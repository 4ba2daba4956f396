"""COCO's run-length encoding on tensors of any device, for all masks of an image at once.

Runs of ones come in as their begin and end, counted down the columns of the image. Counts, or the compressed strings
that pycocotools reads and writes, go out: those of all masks joined, with offsets that separate them.
"""

from collections.abc import Sequence

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


def _offsets(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def ones(counts: Tensor, offsets: Tensor) -> Tensor:
    """Set the counts of runs of zeros to 0, which leaves those of ones: (T,) int64."""
    index = torch.arange(len(counts), device=counts.device)
    mask = torch.bucketize(index, offsets[1:], right=True)
    return counts.to(torch.int64).where((index - offsets[mask]) % 2 == 1, 0)


def decode(strings: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """Read COCO's strings, as `encode` writes them.

    Args:
        strings: Per mask the groups of five bits of its counts.

    Returns:
        (T,) int32 lengths of the runs, of zeros and of ones in turns; (N + 1,) int64, where those of each mask begin.

    Raises:
        ValueError: A string ends within a number.
    """
    parts = [_counts_of(text) for text in strings]
    sizes = torch.tensor([len(part) for part in parts], dtype=torch.int64)
    counts = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
    return counts.to(torch.int32), _offsets(sizes)


def _counts_of(text: bytes) -> Tensor:
    """The counts of one mask, (T,) int64."""
    groups = (
        torch.frombuffer(bytearray(text), dtype=torch.uint8).to(torch.int64) - 48 if text else torch.zeros(0).long()
    )
    ends = (groups & 32) == 0
    if len(groups) and not bool(ends[-1]):
        raise ValueError(f"counts: expected COCO's run lengths, got {text[-8:]!r} at the end, which goes on")
    number = ends.cumsum(0) - ends.to(torch.int64)  # of which a group is part
    place = torch.arange(len(groups))
    first = torch.cat([place.new_zeros(1), place[ends] + 1])[:-1]
    values = torch.zeros(len(first), dtype=torch.int64).scatter_add_(
        0, number, (groups & 31) << 5 * (place - first[number])
    )
    last = place[ends]
    values -= ((groups[last] & 16) != 0).to(torch.int64) << 5 * (last - first + 1)  # the sign
    values[1::2] = values[1::2].cumsum(0)
    values[2::2] = values[2::2].cumsum(0)
    return values
