"""`tal_match` in Triton: what a box takes by box, who keeps a point by point, and its quality.

A program that takes for a box goes over the points once and keeps its best so far in registers. What is ranked is one
int64, unique to each point or box ([number | all ones - index]), so that maxima, the atomic ones too, give the same
result in any order.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.kernels._boxes import overlap as areas
from detops.kernels._iou_loss import _atan_ratio
from detops.kernels._launch import cdiv, kernel, next_power_of_2, plain
from detops.kernels._softplus import power

BLOCK_TAKE = 256  # points of a step of a program that takes
BLOCK_POINTS = 64  # points of a program that resolves
LOW = tl.constexpr(2**32 - 1)
NEVER = tl.constexpr(2**63 - 1)
TINY = tl.constexpr(2.0**-126)
CIOU_EPS = tl.constexpr(1e-7)
FOUR_BY_PI2 = tl.constexpr(4 / math.pi**2)


@triton.jit
def _overlap(x1, y1, x2, y2, pred, mask, CIOU: tl.constexpr):
    """IoU, or complete IoU, of boxes with those at `pred`; 0 where it is not a number."""
    u1 = tl.load(pred, mask=mask, other=0.0).to(tl.float32)
    v1 = tl.load(pred + 1, mask=mask, other=0.0).to(tl.float32)
    u2 = tl.load(pred + 2, mask=mask, other=0.0).to(tl.float32)
    v2 = tl.load(pred + 3, mask=mask, other=0.0).to(tl.float32)
    w, h, pw, ph = x2 - x1, y2 - y1, u2 - u1, v2 - v1
    inter, union = areas(x1, y1, x2, y2, w * h, u1, v1, u2, v2, pw * ph)
    u = inter / union
    u = tl.where((u >= 0) & (u <= 3e38), u, 0.0)
    if CIOU:
        dx, dy = (x1 + x2 - u1 - u2) / 2, (y1 + y2 - v1 - v2) / 2
        hx, hy = tl.maximum(x2, u2) - tl.minimum(x1, u1), tl.maximum(y2, v2) - tl.minimum(y1, v1)
        distance = (dx * dx + dy * dy) / (hx * hx + hy * hy + CIOU_EPS)
        turn = _atan_ratio(w, h + CIOU_EPS) - _atan_ratio(pw, ph + CIOU_EPS)
        aspect = FOUR_BY_PI2 * turn * turn
        value = u - distance - aspect / (aspect - u + 1 + CIOU_EPS) * aspect
        u = tl.where((u > 0) & (value > 0), tl.minimum(value, 1.0), 0.0)
    return u


@triton.jit
def _metric(logit, u, alpha, beta, ALPHA_1: tl.constexpr, BETA_6: tl.constexpr):
    """p^alpha * u^beta; 0 where it is not a number or below what float32 holds in full."""
    p = 1 / (1 + tl.exp(-logit))
    if not ALPHA_1:
        p = power(p, alpha, False)
    if BETA_6:
        square = u * u
        rest = square * square * square
    else:
        rest = power(u, beta, False)
    m = p * rest
    return tl.where((m >= TINY) & (logit == logit), m, 0.0)


@triton.jit
def _inside(points, mask, x1, y1, x2, y2, margin, reach, min_side):
    """Whether points lie in a box."""
    x = tl.load(points, mask=mask, other=0.0)
    y = tl.load(points + 1, mask=mask, other=0.0)
    stride = tl.load(points + 2, mask=mask, other=1.0)
    dx, dy = tl.maximum((min_side * stride - (x2 - x1)) / 2, 0.0), tl.maximum((min_side * stride - (y2 - y1)) / 2, 0.0)
    least = tl.minimum(tl.minimum(x - (x1 - dx), x2 + dx - x), tl.minimum(y - (y1 - dy), y2 + dy - y))
    most = tl.maximum(tl.maximum(x - x1, x2 - x), tl.maximum(y - y1, y2 - y))
    return mask & (least >= margin) & (most / stride <= reach)


@triton.jit
def _known(boxes, labels, n, size, C):
    """A box, and whether it may take points."""
    x1, y1, x2, y2 = tl.load(boxes), tl.load(boxes + 1), tl.load(boxes + 2), tl.load(boxes + 3)
    label = tl.load(labels).to(tl.int64)
    finite = (x1 - x1 == 0) & (y1 - y1 == 0) & (x2 - x2 == 0) & (y2 - y2 == 0)
    known = finite & (x2 >= x1) & (y2 >= y1) & (label >= 0) & (label < C) & (n < size)
    return x1, y1, x2, y2, label, known


@triton.jit
def _bits(value):
    """Numbers of at least 0 as integers in their order."""
    return value.to(tl.int32, bitcast=True).to(tl.int64)


@kernel(tensors=8, num_warps=4)
def take_kernel(
    levels,  # a tuple: each level's class logits (B, R, C)
    pred,  # (B, A, 4)
    points,  # (A, 3)
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    sizes,  # (B,), not read without HAS_SIZES
    valid,  # (B, A) uint8, not read without HAS_VALID
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
    BLOCK_K: tl.constexpr,
):
    """What one box takes."""
    n = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    size = N
    if HAS_SIZES:
        size = tl.load(sizes + b).to(tl.int32)
    x1, y1, x2, y2, label, known = _known(boxes + (b * N + n) * 4, labels + b * N + n, n, size, C)
    if known:
        lanes, slots = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
        best = tl.where(slots < TOPK, 0, NEVER).to(tl.int64)
        worst = tl.full((), 0, tl.int64)
        highest = tl.full((), 0, tl.int64)  # of all points, inside or not
        for level in tl.static_range(LEVELS):
            for first in range(0, plain(rows[level]), BLOCK):
                row = first + lanes
                there = row < plain(rows[level])
                a = plain(starts[level]) + row
                inside = _inside(points + a * 3, there, x1, y1, x2, y2, margin, reach, min_side)
                wanted = inside
                if ALL_POINTS or FALLBACK:
                    wanted = there
                if HAS_VALID:
                    wanted = wanted & (tl.load(valid + b * A + a, mask=wanted, other=0) > 0)
                if tl.max(wanted.to(tl.int32), 0) > 0:
                    u = _overlap(x1, y1, x2, y2, pred + (b * A + a) * 4, wanted, CIOU)
                    logit = levels[level] + b * plain(strides_b[level]) + row.to(tl.int64) * plain(strides_r[level])
                    value = tl.load(logit + label * plain(strides_c[level]), mask=wanted, other=0.0).to(tl.float32)
                    m = _metric(value, u, alpha, beta, ALPHA_1, BETA_6)
                    key = tl.where(wanted & (m > 0), (_bits(m) << 32) | (LOW - a.to(tl.int64)), 0)
                    if FALLBACK:
                        highest = tl.maximum(highest, tl.max(key, 0))
                    if not ALL_POINTS:
                        key = tl.where(inside, key, 0)
                    top = tl.max(key, 0)
                    while top > worst:
                        slot = tl.min(tl.where(best == worst, slots, BLOCK_K), 0)
                        best = tl.where(slots == slot, top, best)
                        key = tl.where(key == top, 0, key)
                        top = tl.max(key, 0)
                        worst = tl.min(best, 0)
        taken = (slots < TOPK) & (best > 0)
        a = tl.full((BLOCK_K,), LOW, tl.int64) - (best & LOW)
        if ALL_POINTS:
            taken = _inside(points + a * 3, taken, x1, y1, x2, y2, margin, reach, min_side)
        if FALLBACK:
            needless = tl.max(taken.to(tl.int32), 0) + tl.where(highest > 0, 0, 1)
            alone = slots + needless == 0
            a = tl.where(alone, tl.full((), LOW, tl.int64) - (highest & LOW), a)
            taken = taken | alone
        u = _overlap(x1, y1, x2, y2, pred + (b * A + a) * 4, taken, CIOU)
        rank = (_bits(u) << 32) | (LOW - n.to(tl.int64))
        at = state + b * (2 * A + 2 * N) + a
        tl.atomic_max(at, rank, mask=taken, sem="relaxed")
        tl.atomic_add(at + A, tl.full((BLOCK_K,), 1, tl.int64), mask=taken, sem="relaxed")


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
                x1, y1, x2, y2, _label, known = _known(boxes + (b * N + n) * 4, labels + b * N + n, n, size, C)
                if known:
                    u = _overlap(x1, y1, x2, y2, pred + (b * A + a) * 4, contested, CIOU)
                    best = tl.maximum(best, (_bits(u) << 32) | (tl.full((BLOCK,), LOW, tl.int64) - n))
            rank = tl.where(contested, best, rank)
    found = there & (rank > 0)
    winner = tl.where(found, tl.full((BLOCK,), LOW, tl.int64) - (rank & LOW), 0)
    u = (rank >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    label = tl.load(labels + b * N + winner, mask=found, other=0).to(tl.int64)
    value = tl.zeros((BLOCK,), tl.float32)
    for level in tl.static_range(LEVELS):
        row = a - plain(starts[level])
        here = found & (row >= 0) & (row < plain(rows[level]))
        logit = levels[level] + b * plain(strides_b[level]) + row.to(tl.int64) * plain(strides_r[level])
        read = tl.load(logit + label * plain(strides_c[level]), mask=here, other=0.0).to(tl.float32)
        value = tl.where(here, read, value)
    m = tl.where(found, _metric(value, u, alpha, beta, ALPHA_1, BETA_6), 0.0)
    most = state + b * (2 * A + 2 * N) + 2 * A + winner
    tl.atomic_max(most, _bits(m), mask=found, sem="relaxed")
    tl.atomic_max(most + N, _bits(u), mask=found, sem="relaxed")
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
    state = torch.zeros(batch, 2 * (count + num_boxes), dtype=torch.int64, device=pred_boxes.device)
    pred, point, boxes = (t.to(torch.float32).contiguous() for t in (pred_boxes, points, gt_boxes))
    labels = gt_labels.contiguous()
    sizes = labels if sample_sizes is None else sample_sizes.contiguous()
    exists = labels if valid is None else valid.contiguous().view(torch.uint8)
    rows = tuple(level.shape[1] for level in class_logits)
    starts = tuple(sum(rows[:i]) for i in range(len(rows)))
    strides = (tuple(level.stride(d) for level in class_logits) for d in range(3))
    numbers = (*strides, starts, rows, count, num_boxes, num_classes, float(alpha), float(beta))
    most, flags = min(topk, count), (alpha == 1, beta == 6, sample_sizes is not None)
    take_kernel(
        (num_boxes, batch),
        (tuple(class_logits), pred, point, boxes, labels, sizes, exists, state),
        (*numbers, float(margin), float(reach), float(min_side)),
        (
            len(rows), most, ciou, all_points, fallback, *flags, valid is not None, BLOCK_TAKE,
            next_power_of_2(most),
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
