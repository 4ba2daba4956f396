"""Exact linear sum assignment, one problem per program: what several Triton kernels' launchers share.

All that the search keeps lies in registers: a lane per sink (the side with more members) and a lane per source. A sum
of costs is two numbers, how many forbidden pairs and the sum of the others in float64, so that every implementation
decides alike.
"""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._launch import kernel, next_power_of_2

MANY = tl.constexpr(2**30)


@kernel(tensors=5)
def assign_kernel(
    cost,  # (P, N, Q), contiguous
    sizes,  # (P,) how many of the N boxes each problem has, not read without HAS_SIZES
    valid,  # (B, N) which boxes take part, not read without HAS_VALID
    query_of,  # (P, N) int64; with HAS_VALID counted through groups
    box_of,  # (P // (G B), B, queries) int64; not written without HAS_VALID
    Q,
    N,
    B,
    G,
    queries,
    HAS_SIZES: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Solve one problem; the steps are those of `detops.reference.assignment`.

    With HAS_VALID problems are those of sets, groups and images, in this order, of some boxes of each image.
    """
    p = tl.program_id(0).to(tl.int64)
    lanes, slots = tl.arange(0, BLOCK), tl.arange(0, BLOCK_S)
    n = tl.full((), 0, tl.int32) + N
    if HAS_SIZES:
        n = tl.minimum(tl.maximum(tl.load(sizes + p).to(tl.int32), 0), N)
    is_box = lanes < n
    if HAS_VALID:
        is_box = tl.load(valid + p % B * N + lanes, mask=lanes < N, other=0) > 0
    boxes_move = tl.sum(is_box.to(tl.int32), 0) <= Q
    sources = tl.where(boxes_move, n, Q)
    by_source, by_sink = tl.where(boxes_move, Q, 1), tl.where(boxes_move, 1, Q)
    real = tl.where(boxes_move, lanes < Q, is_box)
    v_count, v_sum = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.float64)
    u_count, u_sum = tl.zeros((BLOCK_S,), tl.int32), tl.zeros((BLOCK_S,), tl.float64)
    owner, taken = tl.full((BLOCK,), -1, tl.int32), tl.full((BLOCK_S,), -1, tl.int32)
    for i in range(0, sources):
        takes_part = 1
        if HAS_VALID:
            there = tl.load(valid + p % B * N + tl.minimum(i, N - 1)).to(tl.int32)
            takes_part = tl.where(boxes_move, there, 1)
        length_count, length_sum = tl.full((BLOCK,), MANY, tl.int32), tl.full((BLOCK,), float("inf"), tl.float64)
        previous, reached = tl.zeros((BLOCK,), tl.int32) + i, tl.zeros((BLOCK,), tl.int32)
        # Where the path came to each source that it passed.
        entered = tl.where(slots == i, takes_part, 0)
        entry_count, entry_sum = tl.zeros((BLOCK_S,), tl.int32), tl.zeros((BLOCK_S,), tl.float64)
        reach_count, reach_sum = tl.full((), 0, tl.int32), tl.full((), 0.0, tl.float64)
        source, sink, step = (
            tl.where(takes_part > 0, i, -1).to(tl.int32),
            tl.full((), 0, tl.int32),
            tl.full((), 0, tl.int32),
        )
        while (source >= 0) & (step < BLOCK):
            step += 1
            at = p * N * Q + source * by_source + lanes * by_sink
            c = tl.load(cost + at, mask=real, other=0).to(tl.float64)
            finite = tl.abs(c) < float("inf")
            base_count = reach_count - tl.sum(tl.where(slots == source, u_count, 0), 0)
            base_sum = reach_sum - tl.sum(tl.where(slots == source, u_sum, 0.0), 0)
            count = tl.where(finite, 0, 1) - v_count + base_count
            total = (tl.where(finite, c, 0.0) - v_sum) + base_sum
            open_ = real & (reached == 0)
            closer = open_ & ((count < length_count) | ((count == length_count) & (total < length_sum)))
            length_count, length_sum = tl.where(closer, count, length_count), tl.where(closer, total, length_sum)
            previous = tl.where(closer, source, previous)
            reach_count = tl.min(tl.where(open_, length_count, MANY), 0)
            open_ = open_ & (length_count == reach_count)
            reach_sum = tl.min(tl.where(open_, length_sum, float("inf")), 0)
            open_ = open_ & (length_sum == reach_sum)
            sink = tl.min(tl.where(open_, lanes + tl.where(owner < 0, 0, BLOCK), 2 * BLOCK), 0) % BLOCK
            reached = tl.where(lanes == sink, 1, reached)
            source = tl.sum(tl.where(lanes == sink, owner, 0), 0)
            passed = slots == source
            entered = tl.where(passed, 1, entered)
            entry_count = tl.where(passed, reach_count, entry_count)
            entry_sum = tl.where(passed, reach_sum, entry_sum)
        u_count += tl.where(entered > 0, reach_count - entry_count, 0)
        u_sum += tl.where(entered > 0, reach_sum - entry_sum, 0.0)
        v_count -= tl.where(reached > 0, reach_count - length_count, 0)
        v_sum -= tl.where(reached > 0, reach_sum - length_sum, 0.0)
        source, step = tl.where(takes_part > 0, -1, i).to(tl.int32), tl.full((), 0, tl.int32)
        while (source != i) & (step < BLOCK):
            step += 1
            source = tl.sum(tl.where(lanes == sink, previous, 0), 0)
            owner = tl.where(lanes == sink, source, owner)
            before = tl.sum(tl.where(slots == source, taken, 0), 0)
            taken = tl.where(slots == source, sink, taken)
            sink = before
    first = tl.full((), 0, tl.int64)
    row = box_of
    if HAS_VALID:
        image, group, part = p % B, p // B % G, p // B // G
        first += (group * Q).to(tl.int64)
        row += ((part * B + image) * queries).to(tl.int64) + first
    if boxes_move:
        tl.store(query_of + p * N + slots, tl.where(taken >= 0, taken + first, -1), mask=slots < N)
        if HAS_VALID:
            tl.store(row + lanes, owner.to(tl.int64), mask=lanes < Q)
    else:
        tl.store(query_of + p * N + lanes, tl.where(owner >= 0, owner + first, -1), mask=lanes < N)
        if HAS_VALID:
            tl.store(row + slots, taken.to(tl.int64), mask=slots < Q)


def solve(cost: Tensor, sizes: Tensor | None) -> Tensor:
    """Launch one program per problem.

    Args:
        cost: (P, N, Q) contiguous, costs of each problem's boxes and queries.
        sizes: (P,) integers, how many boxes each problem has; None for N.

    Returns:
        (P, N) int64 query of each box, or -1.
    """
    problems, boxes, queries = cost.shape
    if cost.numel() == 0:
        return torch.full((problems, boxes), -1, dtype=torch.int64, device=cost.device)
    query_of = torch.empty((problems, boxes), dtype=torch.int64, device=cost.device)
    assign_kernel(
        (problems,),
        (cost, query_of if sizes is None else sizes.contiguous(), query_of, query_of, query_of),
        (queries, boxes, 1, 1, queries),
        (sizes is not None, False, *blocks(queries, boxes)),
    )
    return query_of


def blocks(queries: int, boxes: int) -> tuple[int, int]:
    """Lanes of the kernel for so many queries and boxes."""
    return next_power_of_2(max(queries, boxes)), next_power_of_2(boxes)
