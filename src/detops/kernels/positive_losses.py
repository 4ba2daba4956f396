"""`positive_losses_` in Triton: a program per run of points, nearly all of which have no box.

It visits those that have one in turn. Each program writes six sums, which a second kernel adds in order and scales.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._box_distributions import box_losses, distillation, load_sides
from detops.kernels._launch import at_cell, cdiv, kernel, map_of, next_power_of_2, number_of
from detops.kernels._softplus import power, softplus

BLOCK = 32  # points per program
BLOCK_SUM = 1024  # sums per step
QUALITY, BCE, VARIFOCAL, FOCAL = (tl.constexpr(kind) for kind in range(4))


@triton.jit
def class_loss(x, q, alpha, gamma, KIND: tl.constexpr, SQUARE: tl.constexpr):
    """Return the loss of a logit with target q less that as background, and the gradient of the former.

    With SQUARE, gamma is 2.
    """
    negative, p = softplus(x)
    away, cost = p - q, negative - q * x
    share, background = 1.0, 1.0
    if KIND == VARIFOCAL:
        share, background = q, alpha
    elif KIND == FOCAL:
        share, background = alpha * q + (1 - alpha) * (1 - q), 1 - alpha
    fall, rise, slope = 1.0, 1.0, 0.0
    if KIND != BCE:
        fall = power(p, gamma, SQUARE)
        if KIND != VARIFOCAL:
            rise = power(tl.abs(away), gamma, SQUARE)
            slope = tl.where(away != 0, gamma * rise / tl.where(away != 0, away, 1.0) * p * (1 - p), 0.0)
    return share * rise * cost - background * fall * negative, share * (away * rise + cost * slope)


@kernel(tensors=15, num_warps=1)
def positives_kernel(
    score_maps,  # a tuple: each level's (B, C, H, W)
    gradient_maps,  # a tuple: each level's (B, C, H, W)
    pred_maps,  # a tuple: each level's (B, 4 * BINS, H, W)
    soft_maps,  # a tuple: each level's (B, 4 * BINS, H, W)
    points,  # (A, 3)
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    index,  # (B, A)
    quality,  # (B, A), not read without HAS_QUALITY
    weight,  # (B, A), not read without HAS_WEIGHT
    region,  # (B, A), not read without HAS_REGION
    background,  # (LEVELS,)
    scales,  # (3, GROUPS)
    weights,  # (B, A)
    parts,  # (6, LEVELS, B, programs)
    score_strides,  # tuples: batch, channel, row and column of each level, one after another
    gradient_strides,
    pred_strides,
    soft_strides,
    starts,  # a tuple, as the next two: each level's first point
    rows,  # how many it has
    widths,
    B,
    C,
    A,
    N,
    alpha,
    gamma,
    temperature,
    margin,
    of_class,  # factors of the five losses
    of_iou,
    of_dfl,
    of_ld,
    of_vlr,
    LEVELS: tl.constexpr,
    GROUPS: tl.constexpr,
    CLASS_KIND: tl.constexpr,
    BOX_KIND: tl.constexpr,
    SQUARE: tl.constexpr,
    BINS: tl.constexpr,
    HAS_QUALITY: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_SOFT: tl.constexpr,
    HAS_REGION: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Compute the losses of a run of points of one level."""
    which = tl.program_id(1) % LEVELS
    b = (tl.program_id(1) // LEVELS).to(tl.int64)
    first = tl.program_id(0) * BLOCK
    start, R = number_of(starts, which, LEVELS, 1, 0), number_of(rows, which, LEVELS, 1, 0)
    W = number_of(widths, which, LEVELS, 1, 0)
    scores, preds = map_of(score_maps, which, LEVELS), map_of(pred_maps, which, LEVELS)
    class_gradient, soft = map_of(gradient_maps, which, LEVELS), map_of(soft_maps, which, LEVELS)
    scores_c = number_of(score_strides, which, LEVELS, 4, 1)
    preds_c = number_of(pred_strides, which, LEVELS, 4, 1)
    soft_c = number_of(soft_strides, which, LEVELS, 4, 1)
    factor = of_class * tl.load(scales + GROUPS + which * GROUPS // LEVELS)
    cls_sum = tl.full((), 0, tl.float32)
    if (tl.program_id(0) == 0) & (b == 0):
        cls_sum = tl.load(background + which)
    weight_sum = tl.full((), 0, tl.float32)
    box_sum = tl.full((), 0, tl.float32)
    dfl_sum = tl.full((), 0, tl.float32)
    ld_sum = tl.full((), 0, tl.float32)
    region_sum = tl.full((), 0, tl.float32)
    run = first + tl.arange(0, BLOCK)
    chosen = tl.load(index + b * A + start + run, mask=run < R, other=-1)
    known = (chosen >= 0) & (chosen < N)
    class_of = tl.load(labels + b * N + chosen, mask=known, other=-1).to(tl.int64)
    tl.store(weights + b * A + start + run, 0.0, mask=(run < R) & ((class_of < 0) | (class_of >= C)))
    for r in range(first, tl.minimum(first + BLOCK, R)):
        a = start + r
        n = tl.load(index + b * A + a)
        of_region = tl.full((), 0, tl.float32)
        if HAS_REGION:
            of_region = tl.load(region + b * A + a)
        label = tl.full((), -1, tl.int64)
        if (n >= 0) & (n < N):
            label = tl.load(labels + b * N + n).to(tl.int64)
        positive = (label >= 0) & (label < C)
        if positive | (of_region > 0):
            y, x = r // W, r % W
            raw = load_sides(preds + at_cell(pred_strides, which, b, y, x, LEVELS), preds_c, BINS, BLOCK_J)
            ld = tl.full((), 0, tl.float32)
            if HAS_SOFT:
                taught = load_sides(soft + at_cell(soft_strides, which, b, y, x, LEVELS), soft_c, BINS, BLOCK_J)
                ld, _ = distillation(raw, taught, temperature, BINS, BLOCK_J)
                region_sum += tl.where(of_region > 0, of_region * ld, 0.0)
            if positive:
                z = scores + at_cell(score_strides, which, b, y, x, LEVELS)
                if HAS_WEIGHT:
                    w = tl.load(weight + b * A + a)
                else:
                    highest = tl.full((), -float("inf"), tl.float32)
                    poison = tl.full((), 0, tl.float32)
                    for c in range(0, C, BLOCK_C):
                        column = c + tl.arange(0, BLOCK_C)
                        value = tl.load(z + column * scores_c, mask=column < C, other=-float("inf")).to(tl.float32)
                        highest = tl.maximum(highest, tl.max(value, 0))
                        poison += tl.sum(tl.where(column < C, value, 0.0) * 0, 0)
                    _, w = softplus(highest)
                    w += poison
                tl.store(weights + b * A + a, w)
                box = boxes + (b * N + n) * 4
                iou, iou_loss, dfl, _, _ = box_losses(raw, points + a * 3, box, margin, BOX_KIND, BINS, BLOCK_J)
                q = iou
                if HAS_QUALITY:
                    q = tl.load(quality + b * A + a)
                logit = tl.load(z + label * scores_c).to(tl.float32)
                correction, slope = class_loss(logit, q, alpha, gamma, CLASS_KIND, SQUARE)
                cls_sum += factor * correction
                if WITH_GRADIENT:
                    sink = class_gradient + at_cell(gradient_strides, which, b, y, x, LEVELS)
                    sink += label * number_of(gradient_strides, which, LEVELS, 4, 1)
                    tl.store(sink, (factor * slope).to(class_gradient.dtype.element_ty))
                weight_sum += w
                counts = w != 0
                box_sum += tl.where(counts, w * iou_loss, 0.0)
                dfl_sum += tl.where(counts, w * dfl, 0.0)
                ld_sum += tl.where(counts, w * ld, 0.0)
    part = parts + (which * B + b) * tl.num_programs(0) + tl.program_id(0)
    apart = LEVELS * B.to(tl.int64) * tl.num_programs(0)
    tl.store(part, cls_sum)
    tl.store(part + apart, weight_sum)
    tl.store(part + 2 * apart, of_iou * box_sum)
    tl.store(part + 3 * apart, of_dfl * dfl_sum)
    tl.store(part + 4 * apart, of_ld * ld_sum)
    tl.store(part + 5 * apart, of_vlr * region_sum)


@triton.jit
def _sum(parts, n, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    """Add n numbers, always in the same order."""
    total = tl.zeros((BLOCK,), COMPUTE)
    for first in range(0, n, BLOCK):
        place = first + tl.arange(0, BLOCK)
        total += tl.load(parts + place, mask=place < n, other=0.0).to(COMPUTE)
    return tl.sum(total, 0)


@kernel(tensors=5)
def finish_kernel(
    parts,  # (6, COLUMNS, n)
    scales,  # (3, GROUPS)
    box_scale,  # (GROUPS,), not read without GIVEN
    losses,  # (6, COLUMNS)
    factors,  # (4, GROUPS)
    n,
    least,
    eps,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    GIVEN: tl.constexpr,
    OF_DISTILLATION: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute one loss of a level or head from the programs' sums."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row, column = tl.program_id(0), tl.program_id(1)
    group = column * GROUPS // COLUMNS
    total = _sum(parts + (row * COLUMNS + column).to(tl.int64) * n, n, COMPUTE, BLOCK)
    factor = tl.full((), 1, tl.float32)
    if row == 0:
        factor = tl.load(scales + 2 * GROUPS + group)
    if row >= 2:
        if GIVEN:
            factor = tl.load(box_scale + group).to(tl.float32)
        else:
            weights = _sum(parts + COLUMNS * n, COLUMNS * n, COMPUTE, BLOCK).to(tl.float32)
            factor = tl.div_rn(factor, tl.where(weights < least, least, weights) + eps)
        if not OF_DISTILLATION:
            factor = tl.where(row >= 4, 1.0, factor)
        if column * GROUPS % COLUMNS == 0:
            tl.store(factors + (row - 2) * GROUPS + group, factor)
    tl.store(losses + row * COLUMNS + column, total * factor.to(COMPUTE))


def positive_losses_(
    class_gradients: list[Tensor],
    cls_scores: list[Tensor],
    bbox_preds: list[Tensor],
    soft_targets: list[Tensor],
    points: Tensor,
    boxes: Tensor,
    labels: Tensor,
    index: Tensor,
    quality: Tensor | None,
    weight: Tensor | None,
    region: Tensor | None,
    background: Tensor,
    scales: Tensor,
    box_scale: Tensor | None,
    least: float,
    eps: float,
    divide_distillation: bool,
    weights: list[float],
    class_kind: int,
    box_kind: int,
    alpha: float,
    gamma: float,
    temperature: float,
    margin: float,
    most: int,
    heads: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernels; arguments and meaning as in `detops.reference.positive_losses`.

    Every dtype is computed in float32, even float64.
    """
    (batch, num_points), num_boxes, classes = index.shape, boxes.shape[1], cls_scores[0].shape[1]
    bins = bbox_preds[0].shape[1] // 4
    found = torch.empty(batch, num_points, dtype=torch.float32, device=index.device)
    points, boxes, background, scales = (t.to(torch.float32).contiguous() for t in (points, boxes, background, scales))
    of_points = [found if t is None else t.to(torch.float32).contiguous() for t in (quality, weight, region)]
    labels, index = labels.contiguous(), index.contiguous()
    levels, groups, maps = (
        len(cls_scores),
        scales.shape[1],
        (cls_scores, class_gradients or cls_scores, bbox_preds, soft_targets or bbox_preds),
    )
    rows = tuple(scores.shape[2] * scores.shape[3] for scores in cls_scores)
    programs = cdiv(max(rows), BLOCK)
    parts = torch.empty(6, levels, batch * programs, dtype=torch.float32, device=index.device)
    if batch == 0 or programs == 0:
        parts = torch.zeros(6, levels, 1, dtype=torch.float32, device=index.device)
        parts[0, :, 0] = background
    else:
        positives_kernel(
            (programs, batch * levels),
            (*map(tuple, maps), points, boxes, labels, index, *of_points, background, scales, found, parts),
            (
                *(tuple(stride for level in kind for stride in level.stride()) for kind in maps),
                tuple(sum(rows[:i]) for i in range(levels)),
                rows,
                tuple(scores.shape[3] for scores in cls_scores),
                batch,
                classes,
                num_points,
                num_boxes,
                alpha,
                gamma,
                temperature,
                margin,
                *map(float, weights),
            ),
            (
                levels,
                groups,
                class_kind,
                box_kind,
                gamma == 2,
                bins,
                quality is not None,
                weight is not None,
                bool(soft_targets),
                region is not None,
                bool(class_gradients),
                BLOCK,
                min(128, next_power_of_2(classes)),
                max(next_power_of_2(bins), 2),
            ),
        )
    columns, wide = heads or levels, accumulate_dtype(cls_scores[0])
    losses = torch.empty(6, columns, dtype=wide, device=index.device)
    factors = torch.empty(4, groups, dtype=torch.float32, device=index.device)
    finish_kernel(
        (6, columns),
        (parts, scales, scales if box_scale is None else box_scale.contiguous(), losses, factors),
        (parts.numel() // (6 * columns), float(least), float(eps)),
        (columns, groups, box_scale is not None, divide_distillation, wide == torch.float64, BLOCK_SUM),
    )
    return losses, factors, found
