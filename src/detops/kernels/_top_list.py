"""A list of the lowest ranks, which a program keeps in registers while it passes over its candidates once.

A candidate is a rank and an index, both int32: the lower rank comes first, and of equal ones the lower index. A warp
finds the least of 32-bit integers in one instruction, so a program that keeps a list has one warp.
"""

import triton
import triton.language as tl

from detops.kernels._launch import next_power_of_2

NONE = tl.constexpr(2**31 - 1)  # the rank and index of no candidate
FIXED = tl.constexpr(-(2**31))  # the rank of a slot that is no place of the list
LEAST_SLOTS = 32  # a warp has as many threads


def slots_for(places: int) -> int:
    """Return how many slots a list of that many places takes."""
    return max(LEAST_SLOTS, next_power_of_2(places))


@triton.jit
def ordered(value):
    """Numbers as int32 in their order; NaN only where it is none of them."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def empty_list(places, SLOTS: tl.constexpr):
    """Return an empty list: the ranks and indices in its slots, and the rank and index of its last candidate."""
    slots = tl.arange(0, SLOTS)
    ranks = tl.where(slots < places, NONE, FIXED)
    return ranks, -slots + NONE, tl.max(ranks, 0), tl.full((), NONE, tl.int32)


@triton.jit
def enter(ranks, indices, last, last_index, rank, index):
    """Enter the candidates that come before the last of a list, each in its place; returns the list.

    Args:
        ranks: (SLOTS,) of the list.
        indices: (SLOTS,).
        last: Rank of its last candidate.
        last_index: Index of its last candidate.
        rank: (BLOCK,) of the candidates; NONE for what is none.
        index: (BLOCK,), all different, and none that is in the list.
    """
    lead = tl.min(rank, 0)
    if lead <= last:
        index = tl.where(rank == NONE, NONE, index)
        lead_index = tl.min(tl.where(rank == lead, index, NONE), 0)
        while (lead < last) | ((lead == last) & (lead_index < last_index)):
            out = (ranks == last) & (indices == last_index)
            ranks = tl.where(out, lead, ranks)
            indices = tl.where(out, lead_index, indices)
            last = tl.max(ranks, 0)
            last_index = tl.max(tl.where(ranks == last, indices, 0), 0)
            out = (rank == lead) & (index == lead_index)
            rank = tl.where(out, NONE, rank)
            index = tl.where(out, NONE, index)
            lead = tl.min(rank, 0)
            lead_index = tl.min(tl.where(rank == lead, index, NONE), 0)
    return ranks, indices, last, last_index
