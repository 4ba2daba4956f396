"""`positive_losses_` in Triton: a program a run of anchors, of which nearly all have no box.

It takes those that have one in turn; each program leaves six sums, which PyTorch adds in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.kernels._box_distributions import box_losses, distillation, load_sides
from detops.kernels._softplus import softplus

BLOCK = 32  # anchors of a program


@triton.jit
def _power(x, exponent, STANDARD: tl.constexpr):
    """x^exponent for x >= 0; the exponent of the paper is 2."""
    if STANDARD:
        result = x * x
    else:
        result = tl.exp(exponent * tl.log(x))
    return result


@triton.jit
def positives_kernel(
    scores,  # (B, C, H, W)
    scores_b,
    scores_c,
    scores_y,
    scores_x,
    class_gradient,  # (B, C, H, W) contiguous
    preds,  # (B, 4 * BINS, H, W)
    preds_b,
    preds_c,
    preds_y,
    preds_x,
    soft,  # likewise
    soft_b,
    soft_c,
    soft_y,
    soft_x,
    cells,  # (A, 3)
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    index,  # (B, A)
    region,  # (B, A)
    scale,  # (1,)
    weights,  # (B, A)
    parts,  # (B, programs, 6)
    start,
    R,
    W,
    C,
    A,
    N,
    beta,
    temperature,
    BINS: tl.constexpr,
    HAS_SOFT: tl.constexpr,
    HAS_REGION: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    STANDARD: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Losses of a run of anchors."""
    b = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK
    factor = tl.load(scale)
    cls_sum = tl.full((), 0, tl.float32)
    weight_sum = tl.full((), 0, tl.float32)
    giou_sum = tl.full((), 0, tl.float32)
    dfl_sum = tl.full((), 0, tl.float32)
    ld_sum = tl.full((), 0, tl.float32)
    region_sum = tl.full((), 0, tl.float32)
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
            raw = load_sides(preds + b * preds_b + y * preds_y + x * preds_x, preds_c, BINS, BLOCK_J)
            ld = tl.full((), 0, tl.float32)
            if HAS_SOFT:
                taught = load_sides(soft + b * soft_b + y * soft_y + x * soft_x, soft_c, BINS, BLOCK_J)
                ld, _ = distillation(raw, taught, temperature, BINS, BLOCK_J)
                region_sum += tl.where(of_region > 0, of_region * ld, 0.0)
            if positive:
                z = scores + b * scores_b + y * scores_y + x * scores_x
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
                quality, giou, dfl, _, _ = box_losses(raw, cells + a * 3, boxes + (b * N + n) * 4, BINS, BLOCK_J)
                logit = tl.load(z + label * scores_c).to(tl.float32)
                soft_logit, p = softplus(logit)
                cost = soft_logit - quality * logit
                away = p - quality
                power = _power(tl.abs(away), beta, STANDARD)
                cls_sum += factor * (power * cost - _power(p, beta, STANDARD) * soft_logit)
                if WITH_GRADIENT:
                    slope = tl.where(away != 0, beta * power / tl.where(away != 0, away, 1.0) * p * (1 - p), 0.0)
                    g = factor * (away * power + cost * slope)
                    tl.store(class_gradient + (b * C + label) * R + r, g.to(class_gradient.dtype.element_ty))
                weight_sum += w
                giou_sum += w * giou
                dfl_sum += w * dfl
                ld_sum += w * ld
    part = parts + (b * tl.num_programs(0) + tl.program_id(0)) * 6
    tl.store(part, cls_sum)
    tl.store(part + 1, weight_sum)
    tl.store(part + 2, giou_sum)
    tl.store(part + 3, dfl_sum)
    tl.store(part + 4, ld_sum)
    tl.store(part + 5, region_sum)


def positive_losses_(
    class_gradients: list[Tensor],
    cls_scores: list[Tensor],
    bbox_preds: list[Tensor],
    soft_targets: list[Tensor],
    cells: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    index: Tensor,
    region: Tensor | None,
    scale: Tensor,
    beta: float,
    temperature: float,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel for each level; arguments and meaning as in `detops.reference.positive_losses`.

    All dtypes are computed in float32, float64 too.
    """
    (batch, anchors), boxes, classes = index.shape, gt_boxes.shape[1], cls_scores[0].shape[1]
    bins = bbox_preds[0].shape[1] // 4
    cell, box, factor = (t.to(torch.float32).contiguous() for t in (cells, gt_boxes, scale))
    weights = torch.zeros(batch, anchors, device=index.device)
    columns, start = [], 0
    with torch.cuda.device_of(index):
        for level, (scores, preds) in enumerate(zip(cls_scores, bbox_preds, strict=True)):
            rows = scores.shape[2] * scores.shape[3]
            programs = triton.cdiv(rows, BLOCK)
            parts = torch.zeros(batch, programs, 6, device=index.device)
            soft = soft_targets[level] if soft_targets else preds
            if batch and programs:
                positives_kernel[(programs, batch)](
                    scores, *scores.stride(), class_gradients[level] if class_gradients else scores, preds,
                    *preds.stride(), soft, *soft.stride(), cell, box, gt_labels.contiguous(), index.contiguous(),
                    weights if region is None else region, factor, weights, parts, start, rows, scores.shape[3],
                    classes, anchors, boxes, beta, temperature, BINS=bins, HAS_SOFT=bool(soft_targets),
                    HAS_REGION=region is not None, WITH_GRADIENT=bool(class_gradients), STANDARD=beta == 2,
                    BLOCK=BLOCK, BLOCK_C=min(128, triton.next_power_of_2(classes)),
                    BLOCK_J=triton.next_power_of_2(bins), num_warps=1,
                )  # fmt: skip
            columns.append(parts.to(torch.float64).sum((0, 1)))
            start += rows
    losses = torch.stack(columns, 1)
    return losses if cls_scores[0].dtype == torch.float64 else losses.to(torch.float32), weights
