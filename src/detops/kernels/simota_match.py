"""`simota_match` in Triton: candidates and their class costs by cell, picks by box, contests by cell.

A program that picks for a box passes over the cells once for each number that it needs, first the highest IoUs, then
the cheapest cells: nothing is stored for pairs of a box and a cell. Ranks are one int64, unique to each cell or box,
[not among the best | cost | index], so that minima, including atomic ones, give the same result in any order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.kernels._boxes import box_of, overlap
from detops.kernels._launch import cdiv, kernel, next_power_of_2, plain

BLOCK_BOXES = 128  # boxes per program that prepares them
BLOCK_CELLS = 256  # cells per step of a program that picks
BLOCK_TILE = 32  # cells per program that sums over classes or resolves contests
BLOCK_CLASSES = 16  # classes of a step of the former; with 128 it takes four times the registers
NEVER = tl.constexpr(2**63 - 1)
INDEX_BITS = tl.constexpr(29)
INDEX_MASK = tl.constexpr(2**29 - 1)
LOG_FLOOR = tl.constexpr(-100.0)
LOG_EPS = tl.constexpr(1e-8)
LARGEST = tl.constexpr(3.4028234663852886e38)  # of the finite numbers


@triton.jit
def _log_terms(a, b):
    """Return the logarithms of p and 1 - p, for p = sqrt(sigmoid(a) sigmoid(b)), each at least `LOG_FLOOR`."""
    a = tl.minimum(tl.maximum(a, -1e4), 1e4)
    b = tl.minimum(tl.maximum(b, -1e4), 1e4)
    soft_a = tl.maximum(-a, 0.0) + tl.log(1 + tl.exp(-tl.abs(a)))
    soft_b = tl.maximum(-b, 0.0) + tl.log(1 + tl.exp(-tl.abs(b)))
    log_p = tl.maximum(-0.5 * (soft_a + soft_b), LOG_FLOOR)
    # With u = e^-a + e^-b + e^-a e^-b: 1 - p = u / (1 + u + sqrt(1 + u)). For large a and b u is left as a logarithm.
    ea = tl.exp(-tl.minimum(tl.maximum(a, -40.0), 80.0))
    eb = tl.exp(-tl.minimum(tl.maximum(b, -40.0), 80.0))
    u = ea + eb + ea * eb
    low = tl.minimum(a, b)
    log_u = tl.where(low > 30, -low + tl.log(1 + tl.exp(-tl.abs(a - b))), tl.log(u))
    return log_p, tl.maximum(log_u - tl.log(1 + u + tl.sqrt(1 + u)), LOG_FLOOR)


@triton.jit
def _regions(x, y, side, cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY: tl.constexpr):
    """Return whether cells are a box's own candidates, and whether they are among the best."""
    near = (tl.abs(x - cx) < radius * side) & (tl.abs(y - cy) < radius * side)
    if CENTER_ONLY:
        own = near
        best = near
    else:
        in_box = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        own = in_box | near
        best = in_box & near
    return own, best


@triton.jit
def _iou(pred, mask, x1, y1, x2, y2, area):
    """Return the IoU of predictions, cxcywh at `pred`, with boxes; 0 where it is NaN."""
    cx = tl.load(pred, mask=mask, other=0.0)
    cy = tl.load(pred + 1, mask=mask, other=0.0)
    w = tl.load(pred + 2, mask=mask, other=0.0)
    h = tl.load(pred + 3, mask=mask, other=0.0)
    inter, union = overlap(x1, y1, x2, y2, area, cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h, w * h)
    iou = inter / union
    return tl.where((iou >= 0) & (iou <= 3e38), iou, 0.0)


@triton.jit
def _rank(best, cost, index):
    """Pack [not among the best | cost | index] into one int64; a cost that is NaN counts as infinite."""
    cost = tl.where(cost == cost, cost, float("inf"))
    bits = cost.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648
    worse = tl.where(best, 0, 1).to(tl.int64)
    return (worse << 62) | (ordered << INDEX_BITS) | index.to(tl.int64)


@kernel(tensors=5, num_warps=1)
def boxes_kernel(
    given,  # (B, N, 4)
    labels,  # (B, N)
    sample_sizes,  # (B,), not read without HAS_SIZES
    boxes,  # (B, N, 8): cx, cy, x1, y1, x2, y2, area, label; that is -1 for boxes that are not assigned
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


@kernel(tensors=9)
def cells_kernel(
    levels,  # a tuple: each level's (B, R, C), or with RAW (B, R, 5 + C)
    objectness,  # (B, A), written with RAW
    pred,  # (B, A, 4), written with RAW
    cells,  # (A, 3)
    boxes,  # (B, N, 8)
    candidate,  # (B, A) uint8
    total,  # (B, A)
    times,  # (B, A) int32, becomes 0
    taken,  # (B, A) int64, becomes NEVER
    strides_b,  # a tuple, as the next four
    strides_r,
    strides_c,
    starts,  # the first cell of each level
    rows,  # the number of cells of each level
    C,
    A,
    N,
    radius,
    LEVELS: tl.constexpr,
    CENTER_ONLY: tl.constexpr,
    TOGETHER: tl.constexpr,
    RAW: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Find the cells that are candidates of any box, what they predict, and the class cost if no class is the label.

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
            found = tl.zeros((BLOCK,), tl.int32)
            for n in range(0, N):
                box = boxes + (b * N + n) * 8
                if tl.load(box + 7) >= 0:
                    own, _ = _regions(
                        x, y, side, tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3),
                        tl.load(box + 4), tl.load(box + 5), radius, CENTER_ONLY,
                    )  # fmt: skip
                    found = found | own.to(tl.int32)
            found = tl.where(inside, found, 0)
            tl.store(candidate + b * A + a, found.to(tl.uint8), mask=inside)
            tl.store(times + b * A + a, 0, mask=inside)
            tl.store(taken + b * A + a, NEVER, mask=inside)
            if tl.max(found, 0) > 0:
                stride_c = tl.full((), 1, tl.int32)
                if not TOGETHER:
                    stride_c = tl.full((), 0, tl.int32) + plain(strides_c[level])
                source = levels[level] + b * plain(strides_b[level]) + row.to(tl.int64) * plain(strides_r[level])
                if RAW:
                    known = found > 0
                    cx = tl.load(source, mask=known, other=0.0).to(tl.float32) * side + (x - side / 2)
                    cy = tl.load(source + stride_c, mask=known, other=0.0).to(tl.float32) * side + (y - side / 2)
                    w = tl.exp(tl.load(source + 2 * stride_c, mask=known, other=0.0).to(tl.float32)) * side
                    h = tl.exp(tl.load(source + 3 * stride_c, mask=known, other=0.0).to(tl.float32)) * side
                    o = tl.load(source + 4 * stride_c, mask=known, other=0.0).to(tl.float32)
                    tl.store(pred + (b * A + a) * 4, cx, mask=known)
                    tl.store(pred + (b * A + a) * 4 + 1, cy, mask=known)
                    tl.store(pred + (b * A + a) * 4 + 2, w, mask=known)
                    tl.store(pred + (b * A + a) * 4 + 3, h, mask=known)
                    tl.store(objectness + b * A + a, o, mask=known)
                    source += 5 * stride_c
                else:
                    o = tl.load(objectness + b * A + a, mask=inside, other=0.0)
                cost = tl.zeros((BLOCK,), tl.float32)
                for c in range(0, C, BLOCK_C):
                    column = c + tl.arange(0, BLOCK_C)
                    wanted = (found > 0)[:, None] & (column < C)[None, :]
                    place = source[:, None] + column[None, :] * stride_c
                    value = tl.load(place, mask=wanted, other=0.0).to(tl.float32)
                    _, log_q = _log_terms(value, o[:, None])
                    log_q = tl.where(value == value, log_q, value)
                    cost -= tl.sum(tl.where(wanted, log_q, 0.0), 1)
                tl.store(total + b * A + a, cost, mask=inside)


@kernel(tensors=10)
def pick_kernel(
    levels,  # a tuple: each level's (B, R, C), or with RAW (B, R, 5 + C)
    objectness,  # (B, A)
    pred,  # (B, A, 4)
    cells,  # (A, 3)
    boxes,  # (B, N, 8)
    candidate,  # (B, A)
    total,  # (B, A)
    present,  # (B, N) uint8: boxes with own candidates
    times,  # (B, A) int32: how many boxes picked a cell
    taken,  # (B, A) int64: rank of the cheapest of them
    strides_b,  # a tuple, as the next four
    strides_r,
    strides_c,
    starts,  # the first cell of each level
    rows,  # the number of cells of each level
    A,
    N,
    radius,
    k_scale,
    iou_weight,
    class_weight,
    LEVELS: tl.constexpr,
    CENTER_ONLY: tl.constexpr,
    OWN: tl.constexpr,
    RAW: tl.constexpr,
    TOPK: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pick the cells of one box."""
    n = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    box = boxes + (b * N + n) * 8
    cx, cy, x1, y1 = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    x2, y2, area, label = tl.load(box + 4), tl.load(box + 5), tl.load(box + 6), tl.load(box + 7)
    lanes = tl.arange(0, BLOCK)
    number_own = tl.full((), 0, tl.int32)
    number_best = tl.full((), 0, tl.int32)
    if label >= 0:
        for first in range(0, A, BLOCK):
            a = first + lanes
            side = tl.load(cells + a * 3 + 2, mask=a < A, other=0.0)
            x = tl.load(cells + a * 3, mask=a < A, other=0.0)
            y = tl.load(cells + a * 3 + 1, mask=a < A, other=0.0)
            own, best = _regions(x, y, side, cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY)
            number_own += tl.sum((own & (a < A)).to(tl.int32), 0)
            number_best += tl.sum((best & (a < A)).to(tl.int32), 0)
    tl.store(present + b * N + n, (number_own > 0).to(tl.uint8))
    if number_own > 0:
        # The highest IoUs, one per pass: each pass finds the next lower key, whose index separates ties.
        overlap = 0.0
        last = NEVER
        for _ in range(0, TOPK):
            highest = tl.full((), 0, tl.int64)
            if last > 0:
                for first in range(0, A, BLOCK):
                    a = first + lanes
                    allowed = tl.load(candidate + b * A + a, mask=a < A, other=0) > 0
                    if OWN:
                        side = tl.load(cells + a * 3 + 2, mask=a < A, other=0.0)
                        x = tl.load(cells + a * 3, mask=a < A, other=0.0)
                        y = tl.load(cells + a * 3 + 1, mask=a < A, other=0.0)
                        own, _best = _regions(x, y, side, cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY)
                        allowed = allowed & own
                    iou = _iou(pred + (b * A + a) * 4, allowed, x1, y1, x2, y2, area)
                    bits = iou.to(tl.int32, bitcast=True).to(tl.int64)
                    key = tl.where(allowed & (iou > 0), (bits << INDEX_BITS) | a.to(tl.int64), 0)
                    highest = tl.maximum(highest, tl.max(tl.where(key < last, key, 0), 0))
                overlap += (highest >> INDEX_BITS).to(tl.int32).to(tl.float32, bitcast=True)
                last = highest
        k = tl.minimum(tl.maximum((overlap * k_scale).to(tl.int32), 1), MOST)

        others = (number_best < k).to(tl.int32)  # whether the best are too few
        least = tl.full((), -1, tl.int64)
        for _ in range(0, k):
            lowest = tl.full((), NEVER, tl.int64)
            place = tl.full((), NEVER, tl.int64)
            for level in tl.static_range(LEVELS):
                R = plain(rows[level])
                for first in range(0, R, BLOCK):
                    row = first + lanes
                    inside = row < R
                    a = plain(starts[level]) + row
                    x = tl.load(cells + a * 3, mask=inside, other=0.0)
                    y = tl.load(cells + a * 3 + 1, mask=inside, other=0.0)
                    side = tl.load(cells + a * 3 + 2, mask=inside, other=0.0)
                    own, best = _regions(x, y, side, cx, cy, x1, y1, x2, y2, radius, CENTER_ONLY)
                    allowed = tl.load(candidate + b * A + a, mask=inside, other=0) > 0
                    if OWN:
                        allowed = allowed & own
                    allowed = allowed & (best.to(tl.int32) + others > 0)
                    if tl.max(allowed.to(tl.int32), 0) > 0:
                        logit = levels[level] + b * plain(strides_b[level])
                        logit += row.to(tl.int64) * plain(strides_r[level])
                        logit += (label.to(tl.int64) + (5 if RAW else 0)) * plain(strides_c[level])
                        value = tl.load(logit, mask=allowed, other=0.0).to(tl.float32)
                        o = tl.load(objectness + b * A + a, mask=allowed, other=0.0)
                        log_p, log_q = _log_terms(value, o)
                        iou = _iou(pred + (b * A + a) * 4, allowed, x1, y1, x2, y2, area)
                        cost = class_weight * (log_q - log_p) - iou_weight * tl.log(iou + LOG_EPS)
                        cost = tl.where((value == value) & (o == o), cost, float("nan"))
                        whole = cost + class_weight * tl.load(total + b * A + a, mask=allowed, other=0.0)
                        key = _rank(best, whole, a)
                        key = tl.where(allowed & (key > least), key, NEVER)
                        block_lowest = tl.min(key, 0)
                        if block_lowest < lowest:
                            lowest = block_lowest
                            by_box = _rank(best, cost, tl.full((BLOCK,), 0, tl.int32) + n)
                            place = tl.min(tl.where(key == block_lowest, by_box, NEVER), 0)
            least = lowest
            if lowest != NEVER:
                at = b * A + (lowest & INDEX_MASK)
                tl.atomic_add(times + at, 1, sem="relaxed")
                tl.atomic_min(taken + at, place, sem="relaxed")


@kernel(tensors=11, num_warps=1)
def resolve_kernel(
    levels,  # a tuple: each level's (B, R, C), or with RAW (B, R, 5 + C)
    objectness,  # (B, A)
    pred,  # (B, A, 4)
    cells,  # (A, 3)
    boxes,  # (B, N, 8)
    present,  # (B, N)
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
                    lowest = tl.full((BLOCK,), NEVER, tl.int64)
                    for n in range(0, N):
                        if tl.load(present + b * N + n) > 0:
                            box = boxes + (b * N + n) * 8
                            x1, y1, x2, y2 = tl.load(box + 2), tl.load(box + 3), tl.load(box + 4), tl.load(box + 5)
                            _own, best = _regions(
                                x, y, side, tl.load(box), tl.load(box + 1), x1, y1, x2, y2, radius, CENTER_ONLY
                            )
                            logit = levels[level] + b * plain(strides_b[level])
                            logit += row.to(tl.int64) * plain(strides_r[level])
                            label = tl.load(box + 7).to(tl.int64) + (5 if RAW else 0)
                            logit += label * plain(strides_c[level])
                            value = tl.load(logit, mask=contested, other=0.0).to(tl.float32)
                            log_p, log_q = _log_terms(value, o)
                            iou = _iou(pred + (b * A + a) * 4, contested, x1, y1, x2, y2, tl.load(box + 6))
                            cost = class_weight * (log_q - log_p) - iou_weight * tl.log(iou + LOG_EPS)
                            cost = tl.where((value == value) & (o == o), cost, float("nan"))
                            lowest = tl.minimum(lowest, _rank(best, cost, tl.full((BLOCK,), 0, tl.int32) + n))
                    rank = tl.where(contested, lowest, rank)
            found = inside & (count > 0)
            winner = tl.where(found, rank & INDEX_MASK, 0)
            box = boxes + (b * N + winner) * 8
            x1 = tl.load(box + 2, mask=found, other=0.0)
            y1 = tl.load(box + 3, mask=found, other=0.0)
            x2 = tl.load(box + 4, mask=found, other=0.0)
            y2 = tl.load(box + 5, mask=found, other=0.0)
            iou = _iou(pred + (b * A + a) * 4, found, x1, y1, x2, y2, tl.load(box + 6, mask=found, other=0.0))
            tl.store(index + b * A + a, tl.where(found, winner, -1), mask=inside)
            tl.store(matched + b * A + a, tl.where(found, iou, 0.0), mask=inside)
            number = tl.sum(found.to(tl.int32), 0)
            if number > 0:
                tl.atomic_add(positives, number.to(tl.int64), sem="relaxed")


def simota_match(
    outputs: list[Tensor],
    objectness: Tensor | None,
    pred_boxes: Tensor | None,
    cells: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    radius: float,
    center_only: bool,
    own_candidates: bool,
    topk: int,
    k_scale: float,
    iou_weight: float,
    class_weight: float,
    cxcywh: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernels; arguments and meaning as in `detops.reference.simota_match`."""
    (batch, num_boxes), num_cells = gt_boxes.shape[:2], len(cells)
    cell, given = (t.to(torch.float32).contiguous() for t in (cells, gt_boxes))
    shape = (batch, num_cells)
    if batch == 0 or num_cells == 0 or num_boxes == 0:
        nothing = cell.new_full(shape, -1, dtype=torch.int64)
        return nothing, cell.new_zeros(shape), torch.zeros((), dtype=torch.int64, device=cell.device)
    raw = objectness is None or pred_boxes is None
    if objectness is None or pred_boxes is None:
        scores, pred = cell.new_empty(shape), cell.new_empty(*shape, 4)
    else:
        scores, pred = (t.to(torch.float32).contiguous() for t in (objectness, pred_boxes))
    num_classes = outputs[0].shape[2] - (5 if raw else 0)
    index, taken = (cell.new_empty(shape, dtype=torch.int64) for _ in range(2))
    matched, total = (cell.new_empty(shape) for _ in range(2))
    candidate, times = (cell.new_empty(shape, dtype=dtype) for dtype in (torch.uint8, torch.int32))
    present = cell.new_empty(batch, num_boxes, dtype=torch.uint8)
    boxes, positives = cell.new_empty(batch, num_boxes, 8), cell.new_empty((), dtype=torch.int64)
    labels = gt_labels.contiguous()
    boxes_kernel(
        (cdiv(num_boxes, BLOCK_BOXES), batch),
        (given, labels, labels if sample_sizes is None else sample_sizes.contiguous(), boxes, positives),
        (num_classes, num_boxes),
        (sample_sizes is not None, cxcywh, BLOCK_BOXES),
    )
    counts = [level.shape[1] for level in outputs]
    levels, count = tuple(outputs), len(outputs)
    places = (
        *(tuple(level.stride(d) for level in outputs) for d in range(3)),
        tuple(sum(counts[:i]) for i in range(count)),
        tuple(counts),
    )
    tiles = (cdiv(max(counts), BLOCK_TILE), batch * count)
    cells_kernel(
        tiles,
        (levels, scores, pred, cell, boxes, candidate, total, times, taken),
        (*places, num_classes, num_cells, num_boxes, radius),
        (
            count,
            center_only,
            all(level.stride(2) == 1 for level in outputs),
            raw,
            BLOCK_TILE,
            min(BLOCK_CLASSES, next_power_of_2(num_classes)),
        ),
    )
    most = min(max(1, int(topk * k_scale)), num_cells)
    pick_kernel(
        (num_boxes, batch),
        (levels, scores, pred, cell, boxes, candidate, total, present, times, taken),
        (*places, num_cells, num_boxes, radius, k_scale, iou_weight, class_weight),
        (count, center_only, own_candidates, raw, topk, most, BLOCK_CELLS),
    )
    resolve_kernel(
        tiles,
        (levels, scores, pred, cell, boxes, present, times, taken, index, matched, positives),
        (*places, num_cells, num_boxes, radius, iou_weight, class_weight),
        (count, center_only, own_candidates, raw, BLOCK_TILE),
    )
    return index, matched, positives
