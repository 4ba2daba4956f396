"""The first kernels of `simota_match`: boxes prepared, then what is known of each cell whatever box picks it."""

import triton
import triton.language as tl

from detops.kernels._boxes import box_of
from detops.kernels._launch import kernel, plain
from detops.kernels._simota import HULL, NEVER, log_terms, reaches, regions
from detops.kernels._tiles import hull_of

LARGEST = tl.constexpr(3.4028234663852886e38)  # of the finite numbers


@kernel(tensors=6, num_warps=1)
def boxes_kernel(
    given,  # (B, N, 4)
    labels,  # (B, N)
    sample_sizes,  # (B,), not read without HAS_SIZES
    boxes,  # (B, N, 8): cx, cy, x1, y1, x2, y2, area, label; that is -1 for boxes that are not assigned
    counts,  # (B, N, 2) int32, becomes 0
    positives,  # () int64, becomes 0
    C,
    N,
    HAS_SIZES: tl.constexpr,
    CXCYWH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Prepare the boxes of an image, given as centre and size with CXCYWH, else as corners."""
    b = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    if (b == 0) & (tl.program_id(0) == 0):
        tl.store(positives, 0)
    cx, cy, w, h = box_of(given + (b * N + n) * 4, inside, 0.0, CXCYWH)
    label = tl.load(labels + b * N + n, mask=inside, other=-1).to(tl.int64)
    # Comparisons are false for NaN.
    known = (tl.abs(cx) <= LARGEST) & (tl.abs(cy) <= LARGEST) & (w >= 0) & (w <= LARGEST) & (h >= 0) & (h <= LARGEST)
    known = known & (label >= 0) & (label < C)
    if HAS_SIZES:
        known = known & (n < tl.load(sample_sizes + b))
    box = boxes + (b * N + n) * 8
    tl.store(box, cx, mask=inside)
    tl.store(box + 1, cy, mask=inside)
    tl.store(box + 2, cx - w / 2, mask=inside)
    tl.store(box + 3, cy - h / 2, mask=inside)
    tl.store(box + 4, cx + w / 2, mask=inside)
    tl.store(box + 5, cy + h / 2, mask=inside)
    tl.store(box + 6, w * h, mask=inside)
    tl.store(box + 7, tl.where(known, label, -1).to(tl.float32), mask=inside)
    tl.store(counts + (b * N + n) * 2, 0, mask=inside)
    tl.store(counts + (b * N + n) * 2 + 1, 0, mask=inside)


@triton.jit
def _candidates(
    boxes, counts, listed, b, a, inside, x, y, side, low_x, low_y, high_x, high_y, widest, N, cap, radius,
    CENTER_ONLY: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Return which cells of a tile are candidates of any box, and list those that are among the best of one."""
    found = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, N, BLOCK_N):
        lane = first + tl.arange(0, BLOCK_N)
        many = boxes + (b * N + lane) * 8
        own_reach, _ = reaches(
            low_x, low_y, high_x, high_y, widest, tl.load(many, mask=lane < N, other=0.0),
            tl.load(many + 1, mask=lane < N, other=0.0), tl.load(many + 2, mask=lane < N, other=0.0),
            tl.load(many + 3, mask=lane < N, other=0.0), tl.load(many + 4, mask=lane < N, other=0.0),
            tl.load(many + 5, mask=lane < N, other=0.0), radius, CENTER_ONLY,
        )  # fmt: skip
        left = tl.where(own_reach & (tl.load(many + 7, mask=lane < N, other=-1.0) >= 0), lane, N)
        n = tl.min(left, 0)
        while n < N:
            box = boxes + (b * N + n) * 8
            own, best = regions(
                x, y, side, tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3),
                tl.load(box + 4), tl.load(box + 5), radius, CENTER_ONLY,
            )  # fmt: skip
            found = found | own.to(tl.int32)
            if tl.max((own & inside).to(tl.int32), 0) > 0:
                count = counts + (b * N + n) * 2
                tl.store(count, 1)
                # The order of the list differs from run to run; what is picked from it does not depend on it.
                best = best & inside
                place = tl.atomic_add(count + 1 + tl.zeros((BLOCK,), tl.int32), 1, mask=best, sem="relaxed")
                tl.store(listed + (b * N + n) * cap + place, a, mask=best & (place < cap))
            left = tl.where(left == n, N, left)
            n = tl.min(left, 0)
    return tl.where(inside, found, 0)


@kernel(tensors=13, num_warps=1)
def cells_kernel(
    levels,  # a tuple: each level's (B, R, C), or with RAW (B, R, 5 + C)
    objectness,  # (B, A), written with RAW
    pred,  # (B, A, 4), written with RAW
    cells,  # (A, 3)
    boxes,  # (B, N, 8)
    counts,  # (B, N, 2) int32 zeros: becomes 1 for boxes with own candidates, and the number of the best of these
    listed,  # (B, N, cap) int32: becomes the first of these, in any order
    hulls,  # (B, HULL, T)
    edges,  # (T + 1,) int32: becomes the first cell of each tile, and A
    candidate,  # (B, A) uint8
    total,  # (B, A)
    times,  # (B, A) int32, becomes 0
    taken,  # (B, A) int64, becomes NEVER
    strides_b,  # a tuple, as the next five
    strides_r,
    strides_c,
    starts,  # the first cell of each level
    rows,  # the number of cells of each level
    firsts,  # the first tile of each level
    C,
    A,
    N,
    T,
    cap,
    radius,
    LEVELS: tl.constexpr,
    CENTER_ONLY: tl.constexpr,
    TOGETHER: tl.constexpr,
    RAW: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Find the cells of a tile that are candidates of any box, what they predict, and their cost if no class is right.

    With TOGETHER the classes of a cell lie side by side in memory.
    """
    which = tl.program_id(1) % LEVELS
    b = (tl.program_id(1) // LEVELS).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for level in tl.static_range(LEVELS):
        inside = row < plain(rows[level])
        if (which == level) & (tl.program_id(0) * BLOCK < plain(rows[level])):
            a = plain(starts[level]) + row
            x = tl.load(cells + a * 3, mask=inside, other=0.0)
            y = tl.load(cells + a * 3 + 1, mask=inside, other=0.0)
            side = tl.load(cells + a * 3 + 2, mask=inside, other=0.0)
            low_x, low_y, high_x, high_y = hull_of(x, y, x, y, inside)
            widest = tl.max(tl.where(inside & (side == side), side, 0.0), 0)
            tile = plain(firsts[level]) + tl.program_id(0)
            if b == 0:
                tl.store(edges + tile, plain(starts[level]) + tl.program_id(0) * BLOCK)
                tl.store(edges + T, A)
            hull = hulls + b * HULL * T + tile
            tl.store(hull + 4 * T, low_x)
            tl.store(hull + 5 * T, low_y)
            tl.store(hull + 6 * T, high_x)
            tl.store(hull + 7 * T, high_y)
            tl.store(hull + 8 * T, widest)
            found = _candidates(
                boxes, counts, listed, b, a, inside, x, y, side, low_x, low_y, high_x, high_y, widest, N, cap, radius,
                CENTER_ONLY, BLOCK, BLOCK_N,
            )  # fmt: skip
            known = found > 0
            tl.store(candidate + b * A + a, found.to(tl.uint8), mask=inside)
            tl.store(times + b * A + a, 0, mask=inside)
            tl.store(taken + b * A + a, NEVER, mask=inside)
            cx, cy, w, h = x, y, side, side
            if tl.max(found, 0) > 0:
                stride_c = tl.full((), 1, tl.int32)
                if not TOGETHER:
                    stride_c = tl.full((), 0, tl.int32) + plain(strides_c[level])
                source = levels[level] + b * plain(strides_b[level]) + row.to(tl.int64) * plain(strides_r[level])
                place = pred + (b * A + a) * 4
                if RAW:
                    cx = tl.load(source, mask=known, other=0.0).to(tl.float32) * side + (x - side / 2)
                    cy = tl.load(source + stride_c, mask=known, other=0.0).to(tl.float32) * side + (y - side / 2)
                    w = tl.exp(tl.load(source + 2 * stride_c, mask=known, other=0.0).to(tl.float32)) * side
                    h = tl.exp(tl.load(source + 3 * stride_c, mask=known, other=0.0).to(tl.float32)) * side
                    o = tl.load(source + 4 * stride_c, mask=known, other=0.0).to(tl.float32)
                    tl.store(place, cx, mask=known)
                    tl.store(place + 1, cy, mask=known)
                    tl.store(place + 2, w, mask=known)
                    tl.store(place + 3, h, mask=known)
                    tl.store(objectness + b * A + a, o, mask=known)
                    source += 5 * stride_c
                else:
                    cx = tl.load(place, mask=known, other=0.0)
                    cy = tl.load(place + 1, mask=known, other=0.0)
                    w = tl.load(place + 2, mask=known, other=0.0)
                    h = tl.load(place + 3, mask=known, other=0.0)
                    o = tl.load(objectness + b * A + a, mask=inside, other=0.0)
                cost = tl.zeros((BLOCK,), tl.float32)
                for c in range(0, C, BLOCK_C):
                    column = c + tl.arange(0, BLOCK_C)
                    wanted = known[:, None] & (column < C)[None, :]
                    value = tl.load(source[:, None] + column[None, :] * stride_c, mask=wanted, other=0.0)
                    value = value.to(tl.float32)
                    _, log_q = log_terms(value, o[:, None])
                    log_q = tl.where(value == value, log_q, value)
                    cost -= tl.sum(tl.where(wanted, log_q, 0.0), 1)
                tl.store(total + b * A + a, cost, mask=inside)
            u1, v1, u2, v2 = hull_of(cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h, known)
            tl.store(hull, u1)
            tl.store(hull + T, v1)
            tl.store(hull + 2 * T, u2)
            tl.store(hull + 3 * T, v2)
