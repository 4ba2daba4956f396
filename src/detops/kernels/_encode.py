"""Run lengths and COCO's strings of the runs that kernels found, as `detops.geometry.run_lengths` makes them.

One program per mask. The host waits for the number of counts, and for that of characters, which the results are as long
as.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.geometry.run_lengths import GROUPS
from detops.kernels._launch import cdiv, kernel

BLOCK = 256  # masks, runs, counts or characters of one step


@kernel(tensors=4)
def sizes_kernel(
    ends,  # (R,) int64: position after the last of each run
    runs,  # (N,) int64: runs of each mask
    through,  # (N,) int64: and of all masks up to it
    sizes,  # (N + 1,) int64: becomes the number of counts of each mask, behind a 0
    N,
    pixels,
    BLOCK: tl.constexpr,
):
    """Count the counts: a mask that ends with a one has no last zeros."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(runs + n, mask=n < N, other=0)
    last = tl.load(ends + tl.load(through + n, mask=n < N, other=0) - 1, mask=number > 0, other=0)
    tl.store(sizes + n + 1, 2 * number + (last < pixels).to(tl.int64), mask=n < N)


@kernel(tensors=6)
def counts_kernel(
    starts,  # (R,) int64: first position of each run
    ends,  # (R,) int64
    runs,  # (N,) int64
    through,  # (N,) int64
    offsets,  # (N + 1,) int64: where the counts of each mask begin
    counts,  # (T,) becomes the lengths of zeros and of ones in turns
    pixels,
    BLOCK: tl.constexpr,
):
    """Write the counts of one mask."""
    n = tl.program_id(0)
    number = tl.load(runs + n)
    first = tl.load(through + n) - number
    out = counts + tl.load(offsets + n)
    kind = counts.dtype.element_ty
    for j in range(0, number, BLOCK):
        k = j + tl.arange(0, BLOCK)
        start = tl.load(starts + first + k, mask=k < number, other=0)
        end = tl.load(ends + first + k, mask=k < number, other=0)
        former = tl.load(ends + first + k - 1, mask=(k > 0) & (k < number), other=0)
        tl.store(out + 2 * k, (start - former).to(kind), mask=k < number)
        tl.store(out + 2 * k + 1, (end - start).to(kind), mask=k < number)
    last = tl.load(ends + first + number - 1, mask=number > 0, other=0)
    tl.store(out + 2 * number, (pixels - last).to(kind), mask=last < pixels)


@triton.jit
def _differences(counts, k, size):
    """From the fourth count of a mask on, the count before the last is subtracted."""
    here = tl.load(counts + k, mask=k < size, other=0)
    return here - tl.load(counts + k - 2, mask=(k > 2) & (k < size), other=0)


@kernel(tensors=3)
def groups_kernel(
    counts,  # (T,) int64
    offsets,  # (N + 1,) int64
    groups,  # (T + 1,) int64: becomes the number of characters of each count, behind a 0
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Count the characters of one mask, of five bits each with a sign."""
    n = tl.program_id(0)
    first = tl.load(offsets + n)
    size = tl.load(offsets + n + 1) - first
    for j in range(0, size, BLOCK):
        k = j + tl.arange(0, BLOCK)
        value = _differences(counts + first, k, size)
        number = tl.full((BLOCK,), 1, tl.int64)
        for group in tl.static_range(1, GROUPS):
            limit = tl.full((BLOCK,), 1, tl.int64) << (5 * group - 1)
            number += ((value < -limit) | (value >= limit)).to(tl.int64)
        tl.store(groups + 1 + first + k, number, mask=k < size)


@kernel(tensors=5)
def characters_kernel(
    counts,  # (T,) int64
    offsets,  # (N + 1,) int64
    places,  # (T + 1,) int64: where the characters of each count begin
    characters,  # (S,) uint8
    strings,  # (N + 1,) int64: becomes where the characters of each mask begin
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Write the characters of one mask, the lowest bits first."""
    n = tl.program_id(0)
    first = tl.load(offsets + n)
    size = tl.load(offsets + n + 1) - first
    tl.store(strings + n, tl.load(places + first))
    tl.store(strings + n + 1, tl.load(places + first + size), mask=n == tl.num_programs(0) - 1)
    for j in range(0, size, BLOCK):
        k = j + tl.arange(0, BLOCK)
        value = _differences(counts + first, k, size)
        place = tl.load(places + first + k, mask=k < size, other=0)
        number = tl.load(places + first + k + 1, mask=k < size, other=0) - place
        for group in tl.static_range(GROUPS):
            more = (group < number - 1).to(tl.int64)
            character = ((value >> (5 * group)) & 31) + 32 * more + 48
            tl.store(characters + place + group, character.to(tl.uint8), mask=(k < size) & (group < number))


def encode(starts: Tensor, ends: Tensor, runs: Tensor, pixels: int, compress: bool) -> tuple[Tensor, Tensor]:
    """Launch the kernels; arguments and results as in `detops.geometry.run_lengths.encode`."""
    count = len(runs)
    if count == 0:
        return starts.new_empty(0, dtype=torch.uint8 if compress else torch.int32), starts.new_zeros(1)
    through, sizes = runs.cumsum(0), runs.new_zeros(count + 1)
    sizes_kernel((cdiv(count, BLOCK),), (ends, runs, through, sizes), (count, pixels), (BLOCK,))
    offsets = sizes.cumsum(0)
    counts = starts.new_empty(int(offsets[-1]), dtype=torch.int64 if compress else torch.int32)
    counts_kernel((count,), (starts, ends, runs, through, offsets, counts), (pixels,), (BLOCK,))
    if not compress:
        return counts, offsets
    groups, strings = counts.new_zeros(len(counts) + 1), torch.empty_like(offsets)
    groups_kernel((count,), (counts, offsets, groups), (), (BLOCK, GROUPS))
    places = groups.cumsum(0)
    characters = counts.new_empty(int(places[-1]), dtype=torch.uint8)
    characters_kernel((count,), (counts, offsets, places, characters, strings), (), (BLOCK, GROUPS))
    return characters, strings
