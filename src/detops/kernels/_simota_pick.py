"""The last kernels of `simota_match`: each box picks cells, then each cell that several boxes picked gets one."""

import triton
import triton.language as tl

from detops.kernels._launch import kernel, plain
from detops.kernels._simota import (
    HULL,
    INDEX_MASK,
    LOG_EPS,
    NEVER,
    box_rank,
    cost_of,
    cost_rank,
    iou_of,
    reaches,
    regions,
    tiles_of_box,
)
from detops.kernels._tiles import hull_of, logits_at, points_of
from detops.kernels._top_list import FIXED, NONE, empty_list, enter, ordered


@triton.jit
def _floor(iou_weight, class_weight, C):
    """A rank that no cost without overlap is below: with an IoU of 0, and what rounding takes from the class cost."""
    cost = -iou_weight * tl.log(tl.full((), LOG_EPS, tl.float32))
    cost = cost - 1e-3 * tl.abs(cost) - class_weight * C * 2e-5
    return ordered(tl.where((class_weight >= 0) & (cost == cost), cost, float("-inf")))


@triton.jit
def _rank_of_cell(
    levels, objectness, pred, total, strides_b, strides_r, strides_c, starts, rows, b, a, mask, label, x1, y1, x2, y2,
    area, A, iou_weight, class_weight, LEVELS: tl.constexpr,
):  # fmt: skip
    """Return the ranks of cells by their whole cost for a box."""
    value = logits_at(levels, strides_b, strides_r, strides_c, starts, rows, b, a, label, mask, LEVELS)
    o = tl.load(objectness + b * A + a, mask=mask, other=0.0)
    iou = iou_of(pred + (b * A + a) * 4, mask, x1, y1, x2, y2, area)
    cost = cost_of(value, o, iou, iou_weight, class_weight)
    return cost_rank(cost + class_weight * tl.load(total + b * A + a, mask=mask, other=0.0))


@kernel(tensors=13, num_warps=1)
def pick_kernel(
    levels,  # a tuple: each level's (B, R, C), or with RAW (B, R, 5 + C)
    objectness,  # (B, A)
    pred,  # (B, A, 4)
    cells,  # (A, 3)
    boxes,  # (B, N, 8)
    counts,  # (B, N, 2)
    listed,  # (B, N, cap)
    hulls,  # (B, HULL, T)
    edges,  # (T + 1,)
    candidate,  # (B, A)
    total,  # (B, A)
    times,  # (B, A) int32: how many boxes picked a cell
    taken,  # (B, A) int64: rank of the cheapest of them
    strides_b,  # a tuple, as the next four
    strides_r,
    strides_c,
    starts,  # the first cell of each level
    rows,  # the number of cells of each level
    C,
    A,
    N,
    T,
    cap,
    most,
    radius,
    k_scale,
    iou_weight,
    class_weight,
    LEVELS: tl.constexpr,
    CENTER_ONLY: tl.constexpr,
    OWN: tl.constexpr,
    RAW: tl.constexpr,
    TOPK: tl.constexpr,
    TOP_SLOTS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Pick the cells of one box: the number by its highest IoUs, then the cheapest, as many at once as SLOTS has."""
    n = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    box = boxes + (b * N + n) * 8
    cx, cy, x1, y1 = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    x2, y2, area = tl.load(box + 4), tl.load(box + 5), tl.load(box + 6)
    label = tl.load(box + 7).to(tl.int64) + (5 if RAW else 0)
    number_best = tl.load(counts + (b * N + n) * 2 + 1)
    if tl.load(counts + (b * N + n) * 2) > 0:
        hulls += b * HULL * T
        ious, at, least, least_at = empty_list(TOPK, TOP_SLOTS)
        for first in range(0, T, BLOCK_T):
            tiles = first + tl.arange(0, BLOCK_T)
            meets, _ = tiles_of_box(hulls, tiles, T, cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY, OWN)
            left = tl.where(meets, tiles, T)
            tile = tl.min(left, 0)
            while tile < T:
                a, allowed = points_of(edges, tile, BLOCK)
                allowed = allowed & (tl.load(candidate + b * A + a, mask=allowed, other=0) > 0)
                if OWN:
                    side = tl.load(cells + a * 3 + 2, mask=allowed, other=0.0)
                    x = tl.load(cells + a * 3, mask=allowed, other=0.0)
                    y = tl.load(cells + a * 3 + 1, mask=allowed, other=0.0)
                    own, _best = regions(x, y, side, cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY)
                    allowed = allowed & own
                iou = iou_of(pred + (b * A + a) * 4, allowed, x1, y1, x2, y2, area)
                rank = tl.where(allowed & (iou > 0), -iou.to(tl.int32, bitcast=True), NONE)
                ious, at, least, least_at = enter(ious, at, least, least_at, rank, a)
                left = tl.where(left == tile, T, left)
                tile = tl.min(left, 0)
        highest = tl.where((ious > FIXED) & (ious < NONE), -ious, 0).to(tl.float32, bitcast=True)
        overlap = tl.sum(highest.to(tl.float64), 0).to(tl.float32)
        k = tl.minimum(tl.maximum((overlap * k_scale).to(tl.int32), 1), most)

        # Whether the best are too few, so that the cheapest others are picked too; whether their list is not complete.
        others, lacking = (number_best < k).to(tl.int32), (number_best > cap).to(tl.int32)
        floor = tl.where(lacking > 0, FIXED, _floor(iou_weight, class_weight, C))
        above, above_index = tl.full((), FIXED, tl.int32), tl.full((), 0, tl.int32)
        while k > 0:
            ranks, indices, last, last_index = empty_list(k, SLOTS)
            lists = tl.where(lacking > 0, 0, number_best)
            for first in range(0, lists, BLOCK):
                place = first + tl.arange(0, BLOCK)
                a = tl.load(listed + (b * N + n) * cap + place, mask=place < lists, other=0)
                rank = tl.full((BLOCK,), FIXED + 1, tl.int32)
                if others == 0:
                    rank = _rank_of_cell(
                        levels, objectness, pred, total, strides_b, strides_r, strides_c, starts, rows, b, a,
                        place < lists, label, x1, y1, x2, y2, area, A, iou_weight, class_weight, LEVELS,
                    )  # fmt: skip
                later = (rank > above) | ((rank == above) & (a > above_index))
                rank = tl.where((place < lists) & later, rank, NONE)
                ranks, indices, last, last_index = enter(ranks, indices, last, last_index, rank, a)
            # First the tiles that meet the box: costs are lower there, and the others are then passed over.
            end = tl.where(lacking + others > 0, T, 0)
            for phase in range(0, 2):
                for first in range(0, end, BLOCK_T):
                    tiles = first + tl.arange(0, BLOCK_T)
                    meets, within = tiles_of_box(hulls, tiles, T, cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY, OWN)
                    left = tl.where(within & (meets == (phase == 0)), tiles, T)
                    tile = tl.min(left, 0)
                    if (phase > 0) & (floor > last):
                        tile = T
                    while tile < T:
                        a, allowed = points_of(edges, tile, BLOCK)
                        allowed = allowed & (tl.load(candidate + b * A + a, mask=allowed, other=0) > 0)
                        side = tl.load(cells + a * 3 + 2, mask=allowed, other=0.0)
                        x = tl.load(cells + a * 3, mask=allowed, other=0.0)
                        y = tl.load(cells + a * 3 + 1, mask=allowed, other=0.0)
                        own, best = regions(x, y, side, cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY)
                        if OWN:
                            allowed = allowed & own
                        allowed = allowed & (tl.where(best, lacking, others) > 0)
                        rank = _rank_of_cell(
                            levels, objectness, pred, total, strides_b, strides_r, strides_c, starts, rows, b, a,
                            allowed, label, x1, y1, x2, y2, area, A, iou_weight, class_weight, LEVELS,
                        )  # fmt: skip
                        rank = tl.where(best, tl.where(others > 0, FIXED + 1, rank), rank)
                        later = (rank > above) | ((rank == above) & (a > above_index))
                        rank = tl.where(allowed & later, rank, NONE)
                        ranks, indices, last, last_index = enter(ranks, indices, last, last_index, rank, a)
                        left = tl.where(left == tile, T, left)
                        tile = tl.min(left, 0)
                        if (phase > 0) & (floor > last):
                            tile = T
            picked = (ranks > FIXED) & (ranks < NONE)
            value = logits_at(levels, strides_b, strides_r, strides_c, starts, rows, b, indices, label, picked, LEVELS)
            o = tl.load(objectness + b * A + indices, mask=picked, other=0.0)
            iou = iou_of(pred + (b * A + indices) * 4, picked, x1, y1, x2, y2, area)
            side = tl.load(cells + indices * 3 + 2, mask=picked, other=0.0)
            x = tl.load(cells + indices * 3, mask=picked, other=0.0)
            y = tl.load(cells + indices * 3 + 1, mask=picked, other=0.0)
            _own, best = regions(x, y, side, cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY)
            place = box_rank(best, cost_of(value, o, iou, iou_weight, class_weight), n)
            tl.atomic_add(times + b * A + indices, tl.full((SLOTS,), 1, tl.int32), mask=picked, sem="relaxed")
            tl.atomic_min(taken + b * A + indices, place, mask=picked, sem="relaxed")
            k -= SLOTS
            above, above_index = last, last_index


@kernel(tensors=11, num_warps=1)
def resolve_kernel(
    levels,  # a tuple: each level's (B, R, C), or with RAW (B, R, 5 + C)
    objectness,  # (B, A)
    pred,  # (B, A, 4)
    cells,  # (A, 3)
    boxes,  # (B, N, 8)
    counts,  # (B, N, 2)
    times,  # (B, A)
    taken,  # (B, A)
    index,  # (B, A) int64
    matched,  # (B, A)
    positives,  # () int64, to which is added
    strides_b,  # a tuple, as the next four
    strides_r,
    strides_c,
    starts,  # the first cell of each level
    rows,  # the number of cells of each level
    A,
    N,
    radius,
    iou_weight,
    class_weight,
    LEVELS: tl.constexpr,
    CENTER_ONLY: tl.constexpr,
    OWN: tl.constexpr,
    RAW: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Resolve the cells: the cheapest of all boxes, or with OWN of those that picked it, keeps a cell."""
    which = tl.program_id(1) % LEVELS
    b = (tl.program_id(1) // LEVELS).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for level in tl.static_range(LEVELS):
        inside = row < plain(rows[level])
        if (which == level) & (tl.program_id(0) * BLOCK < plain(rows[level])):
            a = plain(starts[level]) + row
            count = tl.load(times + b * A + a, mask=inside, other=0)
            rank = tl.load(taken + b * A + a, mask=inside, other=0)
            if OWN == 0:
                contested = count > 1
                if tl.max(count, 0) > 1:
                    x = tl.load(cells + a * 3, mask=inside, other=0.0)
                    y = tl.load(cells + a * 3 + 1, mask=inside, other=0.0)
                    side = tl.load(cells + a * 3 + 2, mask=inside, other=0.0)
                    o = tl.load(objectness + b * A + a, mask=contested, other=0.0)
                    low_x, low_y, high_x, high_y = hull_of(x, y, x, y, contested)
                    widest = tl.max(tl.where(contested & (side == side), side, 0.0), 0)
                    logits = levels[level] + b * plain(strides_b[level]) + row.to(tl.int64) * plain(strides_r[level])
                    lowest = tl.full((BLOCK,), NEVER, tl.int64)
                    # Boxes that have a cell among their best come before all others there, which are asked for cells
                    # that are among the best of none.
                    for phase in range(0, 2):
                        open_cells = contested
                        if phase > 0:
                            open_cells = contested & (lowest == NEVER)
                        end = tl.where(tl.max(open_cells.to(tl.int32), 0) > 0, N, 0)
                        for first in range(0, end, BLOCK_N):
                            lane = first + tl.arange(0, BLOCK_N)
                            many = boxes + (b * N + lane) * 8
                            there = (lane < N) & (tl.load(counts + (b * N + lane) * 2, mask=lane < N, other=0) > 0)
                            _, reach = reaches(
                                low_x, low_y, high_x, high_y, widest, tl.load(many, mask=there, other=0.0),
                                tl.load(many + 1, mask=there, other=0.0), tl.load(many + 2, mask=there, other=0.0),
                                tl.load(many + 3, mask=there, other=0.0), tl.load(many + 4, mask=there, other=0.0),
                                tl.load(many + 5, mask=there, other=0.0), radius, CENTER_ONLY,
                            )  # fmt: skip
                            left = tl.where(there & (reach | (phase > 0)), lane, N)
                            n = tl.min(left, 0)
                            while n < N:
                                box = boxes + (b * N + n) * 8
                                x1, y1, x2, y2 = tl.load(box + 2), tl.load(box + 3), tl.load(box + 4), tl.load(box + 5)
                                _own, best = regions(
                                    x, y, side, tl.load(box), tl.load(box + 1), x1, y1, x2, y2, radius, CENTER_ONLY
                                )
                                label = tl.load(box + 7).to(tl.int64) + (5 if RAW else 0)
                                logit = logits + label * plain(strides_c[level])
                                value = tl.load(logit, mask=open_cells, other=0.0).to(tl.float32)
                                iou = iou_of(pred + (b * A + a) * 4, open_cells, x1, y1, x2, y2, tl.load(box + 6))
                                by_box = box_rank(best, cost_of(value, o, iou, iou_weight, class_weight), n)
                                lowest = tl.where(open_cells & (best | (phase > 0)), tl.minimum(lowest, by_box), lowest)
                                left = tl.where(left == n, N, left)
                                n = tl.min(left, 0)
                    rank = tl.where(contested, lowest, rank)
            found = inside & (count > 0)
            winner = tl.where(found, rank & INDEX_MASK, 0)
            box = boxes + (b * N + winner) * 8
            x1 = tl.load(box + 2, mask=found, other=0.0)
            y1 = tl.load(box + 3, mask=found, other=0.0)
            x2 = tl.load(box + 4, mask=found, other=0.0)
            y2 = tl.load(box + 5, mask=found, other=0.0)
            iou = iou_of(pred + (b * A + a) * 4, found, x1, y1, x2, y2, tl.load(box + 6, mask=found, other=0.0))
            tl.store(index + b * A + a, tl.where(found, winner, -1), mask=inside)
            tl.store(matched + b * A + a, tl.where(found, iou, 0.0), mask=inside)
            number = tl.sum(found.to(tl.int32), 0)
            if number > 0:
                tl.atomic_add(positives, number.to(tl.int64), sem="relaxed")
