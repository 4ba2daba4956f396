"""`tal_match` in Triton: what a box takes by box, who keeps a point by point, and its quality.

A program that takes for a box goes once over the tiles of points that the box reaches, and keeps the best so far as a
list in its registers. Boxes are ranked by one int64, unique to each ([number | all ones - index]), so that atomic
maxima give the same result in any order.
"""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._launch import cdiv, kernel
from detops.kernels._task_aligned import (
    LOW,
    bits_of,
    is_inside,
    metric_of,
    metric_rank,
    overlap_of,
    reached_tiles,
    read_box,
)
from detops.kernels._tiles import hull_of, logits_at, points_of, range_of
from detops.kernels._top_list import FIXED, NONE, empty_list, enter, slots_for

BLOCK_TILE = 64  # points of a tile, which are all of one level
BLOCK_REACH = 128  # tiles of which a program sees at once whether a box reaches them
BLOCK_POINTS = 64  # points of a program that resolves


@kernel(tensors=4, num_warps=1)
def tiles_kernel(
    points,  # (A, 3)
    hulls,  # (5, T): becomes the hull of the points of each tile, and their greatest stride
    edges,  # (T + 1,) int32: becomes the first point of each tile, and A
    state,  # (B, 2 * A + 2 * N) int64, becomes 0
    firsts,  # a tuple: the first tile of each level
    starts,  # a tuple: its first point
    rows,  # a tuple: how many it has
    A,
    N,
    T,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Prepare a tile of points for one image."""
    tile = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    first, end = range_of(tile, firsts, starts, rows, LEVELS, BLOCK)
    a = first + lanes
    at = state + b * (2 * A + 2 * N)
    tl.store(at + a, 0, mask=a < end)
    tl.store(at + A + a, 0, mask=a < end)
    for n in range(tile * BLOCK, 2 * N, T * BLOCK):
        tl.store(at + 2 * A + n + lanes, 0, mask=n + lanes < 2 * N)
    if b == 0:
        x = tl.load(points + a * 3, mask=a < end, other=0.0)
        y = tl.load(points + a * 3 + 1, mask=a < end, other=0.0)
        stride = tl.load(points + a * 3 + 2, mask=a < end, other=0.0)
        low_x, low_y, high_x, high_y = hull_of(x, y, x, y, a < end)
        tl.store(hulls + tile, low_x)
        tl.store(hulls + T + tile, low_y)
        tl.store(hulls + 2 * T + tile, high_x)
        tl.store(hulls + 3 * T + tile, high_y)
        tl.store(hulls + 4 * T + tile, tl.max(tl.where(stride == stride, stride, 0.0), 0))
        tl.store(edges + tile, first)
        tl.store(edges + T, A)


@kernel(tensors=10, num_warps=1)
def take_kernel(
    levels,  # a tuple: each level's class logits (B, R, C)
    pred,  # (B, A, 4)
    points,  # (A, 3)
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    sizes,  # (B,), not read without HAS_SIZES
    valid,  # (B, A) uint8, not read without HAS_VALID
    hulls,  # (5, T)
    edges,  # (T + 1,)
    state,  # (B, 2 * A + 2 * N) int64 zeros: rank of the best of the boxes that took a point, and their number
    strides_b,  # tuples, of each level
    strides_r,
    strides_c,
    starts,  # its first point
    rows,  # how many it has
    A,
    N,
    C,
    alpha,
    beta,
    margin,
    reach,
    min_side,
    T,
    LEVELS: tl.constexpr,
    TOPK: tl.constexpr,
    CIOU: tl.constexpr,
    ALL_POINTS: tl.constexpr,
    FALLBACK: tl.constexpr,
    ALPHA_1: tl.constexpr,
    BETA_6: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """What one box takes."""
    n = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    size = N
    if HAS_SIZES:
        size = tl.load(sizes + b).to(tl.int32)
    x1, y1, x2, y2, label, known = read_box(boxes + (b * N + n) * 4, labels + b * N + n, n, size, C)
    if known:
        ranks, a, last, last_index = empty_list(TOPK, SLOTS)
        for first in range(0, T, BLOCK_T):
            tiles = first + tl.arange(0, BLOCK_T)
            if ALL_POINTS:
                left = tl.minimum(tiles, T)
            else:
                left = tl.where(reached_tiles(hulls, tiles, T, x1, y1, x2, y2, margin, min_side), tiles, T)
            tile = tl.min(left, 0)
            while tile < T:
                point, wanted = points_of(edges, tile, BLOCK)
                if not ALL_POINTS:
                    wanted = is_inside(points + point * 3, wanted, x1, y1, x2, y2, margin, reach, min_side)
                if HAS_VALID:
                    wanted = wanted & (tl.load(valid + b * A + point, mask=wanted, other=0) > 0)
                if tl.max(wanted.to(tl.int32), 0) > 0:
                    rank = metric_rank(
                        levels, pred, strides_b, strides_r, strides_c, starts, rows, b, point, wanted, label, x1, y1,
                        x2, y2, A, alpha, beta, LEVELS, CIOU, ALPHA_1, BETA_6,
                    )  # fmt: skip
                    ranks, a, last, last_index = enter(ranks, a, last, last_index, rank, point)
                left = tl.where(left == tile, T, left)
                tile = tl.min(left, 0)
        taken = (ranks > FIXED) & (ranks < NONE)
        if ALL_POINTS:
            taken = is_inside(points + a * 3, taken, x1, y1, x2, y2, margin, reach, min_side)
        if FALLBACK:  # noqa: SIM102 (a constant, and a number of the kernel)
            if tl.max(taken.to(tl.int32), 0) == 0:
                ranks, a, last, last_index = empty_list(1, SLOTS)
                for tile in range(0, T):
                    point, wanted = points_of(edges, tile, BLOCK)
                    if HAS_VALID:
                        wanted = wanted & (tl.load(valid + b * A + point, mask=wanted, other=0) > 0)
                    rank = metric_rank(
                        levels, pred, strides_b, strides_r, strides_c, starts, rows, b, point, wanted, label, x1, y1,
                        x2, y2, A, alpha, beta, LEVELS, CIOU, ALPHA_1, BETA_6,
                    )  # fmt: skip
                    ranks, a, last, last_index = enter(ranks, a, last, last_index, rank, point)
                taken = (ranks > FIXED) & (ranks < NONE)
        u = overlap_of(x1, y1, x2, y2, pred + (b * A + a) * 4, taken, CIOU)
        rank = (bits_of(u) << 32) | (LOW - n.to(tl.int64))
        at = state + b * (2 * A + 2 * N) + a
        tl.atomic_max(at, rank, mask=taken, sem="relaxed")
        tl.atomic_add(at + A, tl.full((SLOTS,), 1, tl.int64), mask=taken, sem="relaxed")


@kernel(tensors=8, num_warps=2)
def resolve_kernel(
    levels,
    pred,
    boxes,
    labels,
    sizes,
    state,  # (B, 2 * A + 2 * N) int64; its last 2 * N: the highest metric and overlap of each box's points
    index,  # (B, A) int64
    quality,  # (B, A), here the metric
    strides_b,
    strides_r,
    strides_c,
    starts,
    rows,
    A,
    N,
    C,
    alpha,
    beta,
    LEVELS: tl.constexpr,
    CIOU: tl.constexpr,
    ALL_BOXES: tl.constexpr,
    ALPHA_1: tl.constexpr,
    BETA_6: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Who keeps each point: the best of the boxes that took it, or where several did, of all boxes."""
    b = tl.program_id(1).to(tl.int64)
    a = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = a < A
    at = state + b * (2 * A + 2 * N) + a
    rank = tl.load(at, mask=there, other=0)
    if ALL_BOXES:
        contested = tl.load(at + A, mask=there, other=0) > 1
        if tl.max(contested.to(tl.int32), 0) > 0:
            size = N
            if HAS_SIZES:
                size = tl.load(sizes + b).to(tl.int32)
            best = tl.full((BLOCK,), 0, tl.int64)
            for n in range(0, N):
                x1, y1, x2, y2, _label, known = read_box(boxes + (b * N + n) * 4, labels + b * N + n, n, size, C)
                if known:
                    u = overlap_of(x1, y1, x2, y2, pred + (b * A + a) * 4, contested, CIOU)
                    best = tl.maximum(best, (bits_of(u) << 32) | (tl.full((BLOCK,), LOW, tl.int64) - n))
            rank = tl.where(contested, best, rank)
    found = there & (rank > 0)
    winner = tl.where(found, tl.full((BLOCK,), LOW, tl.int64) - (rank & LOW), 0)
    u = (rank >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    label = tl.load(labels + b * N + winner, mask=found, other=0).to(tl.int64)
    value = logits_at(levels, strides_b, strides_r, strides_c, starts, rows, b, a, label, found, LEVELS)
    m = tl.where(found, metric_of(value, u, alpha, beta, ALPHA_1, BETA_6), 0.0)
    most = state + b * (2 * A + 2 * N) + 2 * A + winner
    tl.atomic_max(most, bits_of(m), mask=found, sem="relaxed")
    tl.atomic_max(most + N, bits_of(u), mask=found, sem="relaxed")
    tl.store(index + b * A + a, tl.where(found, winner, -1), mask=there)
    tl.store(quality + b * A + a, m, mask=there)


@kernel(tensors=3, num_warps=2)
def quality_kernel(state, index, quality, A, N, eps, BLOCK: tl.constexpr):
    """Metrics to qualities."""
    b = tl.program_id(1).to(tl.int64)
    a = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    winner = tl.load(index + b * A + a, mask=a < A, other=-1)
    found = winner >= 0
    m = tl.load(quality + b * A + a, mask=found, other=0.0)
    most = state + b * (2 * A + 2 * N) + 2 * A + winner
    most_m = tl.load(most, mask=found, other=0).to(tl.int32).to(tl.float32, bitcast=True)
    most_u = tl.load(most + N, mask=found, other=0).to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(quality + b * A + a, tl.where(found, m / (most_m + eps) * most_u, 0.0), mask=found)


def tal_match(
    class_logits: list[Tensor],
    pred_boxes: Tensor,
    points: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    valid: Tensor | None,
    alpha: float,
    beta: float,
    topk: int,
    ciou: bool,
    all_points: bool,
    all_boxes: bool,
    fallback: bool,
    margin: float,
    reach: float,
    min_side: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Launch the kernels; arguments and meaning as in `detops.reference.tal_match`."""
    (batch, count), num_boxes, num_classes = pred_boxes.shape[:2], gt_boxes.shape[1], class_logits[0].shape[2]
    if batch == 0 or count == 0 or num_boxes == 0:
        nothing = torch.full((batch, count), -1, dtype=torch.int64, device=pred_boxes.device)
        return nothing, torch.zeros(batch, count, dtype=torch.float32, device=pred_boxes.device)
    index = torch.empty(batch, count, dtype=torch.int64, device=pred_boxes.device)
    quality = torch.empty(batch, count, dtype=torch.float32, device=pred_boxes.device)
    state = torch.empty(batch, 2 * (count + num_boxes), dtype=torch.int64, device=pred_boxes.device)
    pred, point, boxes = (t.to(torch.float32).contiguous() for t in (pred_boxes, points, gt_boxes))
    labels = gt_labels.contiguous()
    sizes = labels if sample_sizes is None else sample_sizes.contiguous()
    exists = labels if valid is None else valid.contiguous().view(torch.uint8)
    rows = tuple(level.shape[1] for level in class_logits)
    starts = tuple(sum(rows[:i]) for i in range(len(rows)))
    strides = (tuple(level.stride(d) for level in class_logits) for d in range(3))
    numbers = (*strides, starts, rows, count, num_boxes, num_classes, float(alpha), float(beta))
    most, flags = min(topk, count), (alpha == 1, beta == 6, sample_sizes is not None)
    per_level = [cdiv(size, BLOCK_TILE) for size in rows]
    tiles, firsts = sum(per_level), tuple(sum(per_level[:i]) for i in range(len(rows)))
    hulls = torch.empty(5, tiles, dtype=torch.float32, device=pred_boxes.device)
    edges = torch.empty(tiles + 1, dtype=torch.int32, device=pred_boxes.device)
    tiles_kernel(
        (tiles, batch),
        (point, hulls, edges, state),
        (firsts, starts, rows, count, num_boxes, tiles),
        (len(rows), BLOCK_TILE),
    )
    take_kernel(
        (num_boxes, batch),
        (tuple(class_logits), pred, point, boxes, labels, sizes, exists, hulls, edges, state),
        (*numbers, float(margin), float(reach), float(min_side), tiles),
        (
            len(rows), most, ciou, all_points, fallback, *flags, valid is not None, BLOCK_TILE, BLOCK_REACH,
            slots_for(most),
        ),
    )  # fmt: skip
    blocks = (cdiv(count, BLOCK_POINTS), batch)
    resolve_kernel(
        blocks,
        (tuple(class_logits), pred, boxes, labels, sizes, state, index, quality),
        numbers,
        (len(rows), ciou, all_boxes, *flags, BLOCK_POINTS),
    )
    quality_kernel(blocks, (state, index, quality), (count, num_boxes, float(eps)), (BLOCK_POINTS,))
    return index, quality
