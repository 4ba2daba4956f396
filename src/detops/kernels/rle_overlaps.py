"""`rle_overlaps` in Triton: one program per pair of masks; the runs of one find by halving what they hold of the other.

Nothing waits for the device: the number of pairs that meet is not asked for, and a program whose pair is apart ends.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.geometry.run_lengths import ones
from detops.kernels._launch import kernel
from detops.kernels._run_search import run_at, search_steps
from detops.kernels.rle_measures import rle_measures

BLOCK = 128  # run lengths at once


@triton.jit
def ones_until(ends, sums, position, begin, end, steps, asked):
    """Count the ones of all masks before each position of the mask whose runs are begin .. end."""
    run = run_at(ends, position, begin, end, steps, asked)
    before = tl.load(sums + run - 1, mask=asked & (run > 0), other=0)
    start = tl.load(ends + run - 1, mask=asked & (run > 0), other=0)
    inside = asked & (run < end) & ((run - begin) % 2 == 1)
    return before + tl.where(inside, position - start, 0)


@kernel(tensors=9, num_warps=2)
def overlap_kernel(
    ends,  # (T,) int64: where each run ends, counted through all masks
    sums,  # (T,) int64: ones of all masks until there
    offsets,  # (N + 1,) int64
    extents,  # (N, 4) int64 xyxy
    other_counts,  # (S,) int32
    other_ends,  # (S,) int64
    other_offsets,  # (M + 1,) int64
    other_extents,  # (M, 4) int64 xyxy
    shared,  # (N, M) int64
    M,
    steps,
    BLOCK: tl.constexpr,
):
    """Count the pixels that two masks share."""
    pid = tl.program_id(0).to(tl.int64)
    n, m = pid // M, pid % M
    x1 = tl.maximum(tl.load(extents + 4 * n), tl.load(other_extents + 4 * m))
    y1 = tl.maximum(tl.load(extents + 4 * n + 1), tl.load(other_extents + 4 * m + 1))
    x2 = tl.minimum(tl.load(extents + 4 * n + 2), tl.load(other_extents + 4 * m + 2))
    y2 = tl.minimum(tl.load(extents + 4 * n + 3), tl.load(other_extents + 4 * m + 3))
    total = tl.zeros((), tl.int64)
    if (x1 < x2) & (y1 < y2):
        begin, end = tl.load(offsets + n), tl.load(offsets + n + 1)
        first, last = tl.load(other_offsets + m), tl.load(other_offsets + m + 1)
        base = tl.load(ends + begin - 1, mask=begin > 0, other=0)
        moved = base - tl.load(other_ends + first - 1, mask=first > 0, other=0)
        for block in range(first + 1, last, 2 * BLOCK):
            run = block + 2 * tl.arange(0, BLOCK)
            asked = run < last
            length = tl.load(other_counts + run, mask=asked, other=0)
            stop = moved + tl.load(other_ends + run, mask=asked, other=0)
            held = ones_until(ends, sums, stop, begin, end, steps, asked)
            held -= ones_until(ends, sums, stop - length, begin, end, steps, asked)
            total += tl.sum(held, 0)
    tl.store(shared + pid, total)


def rle_overlaps(
    counts: Tensor, offsets: Tensor, other_counts: Tensor, other_offsets: Tensor, height: int, width: int
) -> Tensor:
    """Compare all pairs; arguments and meaning as in `detops.reference.rle_overlaps`."""
    shape = (len(offsets) - 1, len(other_offsets) - 1)
    shared = torch.empty(shape, dtype=torch.int64, device=counts.device)
    if shared.numel():
        extents, other_extents = (
            rle_measures(*runs, height, width)[1] for runs in ((counts, offsets), (other_counts, other_offsets))
        )
        ends, other_ends = (c.cumsum(0, dtype=torch.int64) for c in (counts, other_counts))
        tensors = (
            ends, ones(counts, offsets).cumsum(0), offsets.contiguous(), extents, other_counts.contiguous(), other_ends,
            other_offsets.contiguous(), other_extents, shared,
        )  # fmt: skip
        overlap_kernel((shared.numel(),), tensors, (shape[1], search_steps(counts)), (BLOCK,))
    return shared
