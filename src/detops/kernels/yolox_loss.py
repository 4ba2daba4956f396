"""`yolox_loss` in Triton: one pass over each level's outputs, which writes the gradient too.

A program owns a run of cells of one image. The terms of positives are computed for all its cells at once, but only if
one of them is a positive. Each program writes four sums, which a last one adds in order.
"""

import torch
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._boxes import box_of
from detops.kernels._iou_loss import iou_loss, share
from detops.kernels._launch import cdiv, kernel, level_of, map_of, next_power_of_2, number_of
from detops.kernels._softplus import softplus

BLOCK = 32  # cells per program
BLOCK_SUM = 256  # programs whose sums are added at a time
BLOCK_CLASSES = 16  # classes of a step; with 128 registers are spilled
LOG_EPS = tl.constexpr(1e-8)
LONGEST = tl.constexpr(1e18)
IGNORED = tl.constexpr(-2)


@kernel(tensors=10)
def loss_kernel(
    outputs,  # a tuple: each level's (B, R, 5 + C)
    gradients,  # a tuple: each level's (B, R, 5 + C), contiguous
    cells,  # (A, 3)
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    index,  # (B, A)
    matched,  # (B, A)
    scale,  # (2,)
    pos_weight,  # (C,)
    parts,  # (programs, 4)
    strides,  # a tuple: batch, row and column of each level, one after another
    firsts,  # a tuple, as the next two: the first program of each level
    starts,  # its first cell
    rows,  # how many it has
    C,
    A,
    N,
    scale_step,  # from the first number of the scale to the second
    iou_weight,
    obj_weight,
    cls_weight,
    LEVELS: tl.constexpr,
    TOGETHER: tl.constexpr,
    KIND: tl.constexpr,
    CXCYWH: tl.constexpr,
    USE_L1: tl.constexpr,
    HAS_POS_WEIGHT: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute losses and gradient of a run of cells. With TOGETHER, columns lie side by side in memory."""
    b = tl.program_id(1).to(tl.int64)
    level = level_of(tl.program_id(0), firsts, LEVELS)
    R = number_of(rows, level, LEVELS, 1, 0)
    row = (tl.program_id(0) - number_of(firsts, level, LEVELS, 1, 0)) * BLOCK + tl.arange(0, BLOCK)
    inside = row < R
    a = number_of(starts, level, LEVELS, 1, 0) + row
    output, gradient = map_of(outputs, level, LEVELS), map_of(gradients, level, LEVELS)
    stride_c = tl.full((), 1, tl.int32)
    if not TOGETHER:
        stride_c = number_of(strides, level, LEVELS, 3, 2)
    one, other = tl.load(scale), tl.load(scale + scale_step)
    chosen = tl.load(index + b * A + a, mask=inside, other=-1)
    label = tl.load(labels + b * N + chosen, mask=(chosen >= 0) & (chosen < N), other=-1).to(tl.int64)
    is_object = (chosen >= 0) & (chosen < N)
    positive = is_object & (label >= 0) & (label < C)
    source = output + b * number_of(strides, level, LEVELS, 3, 0)
    source += row.to(tl.int64) * number_of(strides, level, LEVELS, 3, 1)
    sink = gradient + (b * R + row) * (5 + C)

    counted = inside & (chosen != IGNORED)
    logit = tl.load(source + 4 * stride_c, mask=counted, other=0.0).to(tl.float32)
    down, p = softplus(logit)
    wanted = tl.where(is_object, 1.0, 0.0)
    obj = tl.sum(tl.where(counted, down - wanted * logit, 0.0), 0)
    if WITH_GRADIENT:
        slope = tl.where(counted, obj_weight * other * (p - wanted), 0.0)
        tl.store(sink + 4, slope.to(gradient.dtype.element_ty), mask=inside)

    iou_sum = tl.full((), 0, tl.float32)
    l1_sum = tl.full((), 0, tl.float32)
    cls_sum = tl.full((), 0, tl.float32)
    g_x = tl.zeros((BLOCK,), tl.float32)
    g_y = tl.zeros((BLOCK,), tl.float32)
    g_w = tl.zeros((BLOCK,), tl.float32)
    g_h = tl.zeros((BLOCK,), tl.float32)
    any_positive = tl.max(positive.to(tl.int32), 0) > 0
    if any_positive:
        side = tl.load(cells + a * 3 + 2, mask=inside, other=1.0)
        x = tl.load(source, mask=positive, other=0.0).to(tl.float32)
        y = tl.load(source + stride_c, mask=positive, other=0.0).to(tl.float32)
        w = tl.load(source + 2 * stride_c, mask=positive, other=0.0).to(tl.float32)
        h = tl.load(source + 3 * stride_c, mask=positive, other=0.0).to(tl.float32)
        tx, ty, tw, th = box_of(boxes + (b * N + chosen) * 4, positive, 1.0, CXCYWH)
        # Relative to the centre of the cell, so that a small box far from the origin keeps its digits.
        tx -= tl.load(cells + a * 3, mask=inside, other=0.0)
        ty -= tl.load(cells + a * 3 + 1, mask=inside, other=0.0)
        pw, ph = tl.exp(w) * side, tl.exp(h) * side
        # Products of sides stay finite; infinite logits show as NaN.
        slope_w, slope_h = tl.where(pw > LONGEST, 0.0, pw), tl.where(ph > LONGEST, 0.0, ph)
        pw, ph = tl.where(pw > LONGEST, LONGEST, pw) + 0 * w, tl.where(ph > LONGEST, LONGEST, ph) + 0 * h
        loss, g_x, g_y, g_w, g_h = iou_loss((x - 0.5) * side, (y - 0.5) * side, pw, ph, tx, ty, tw, th, KIND)
        iou_sum += tl.sum(tl.where(positive, loss, 0.0), 0)
        g_x, g_y = g_x * iou_weight * side, g_y * iou_weight * side
        g_w, g_h = g_w * iou_weight * slope_w, g_h * iou_weight * slope_h
        if USE_L1:
            away_x, away_y = x - (tx / side + 0.5), y - (ty / side + 0.5)
            away_w, away_h = w - tl.log(tw / side + LOG_EPS), h - tl.log(th / side + LOG_EPS)
            away = tl.abs(away_x) + tl.abs(away_y) + tl.abs(away_w) + tl.abs(away_h)
            l1_sum += tl.sum(tl.where(positive, away, 0.0), 0)
            g_x += share(away_x, 0.0) - share(0.0, away_x)
            g_y += share(away_y, 0.0) - share(0.0, away_y)
            g_w += share(away_w, 0.0) - share(0.0, away_w)
            g_h += share(away_h, 0.0) - share(0.0, away_h)
    if WITH_GRADIENT:
        kind = gradient.dtype.element_ty
        tl.store(sink, tl.where(positive, one * g_x, 0.0).to(kind), mask=inside)
        tl.store(sink + 1, tl.where(positive, one * g_y, 0.0).to(kind), mask=inside)
        tl.store(sink + 2, tl.where(positive, one * g_w, 0.0).to(kind), mask=inside)
        tl.store(sink + 3, tl.where(positive, one * g_h, 0.0).to(kind), mask=inside)
    if WITH_GRADIENT or any_positive:
        iou = tl.load(matched + b * A + a, mask=inside, other=0.0)[:, None]
        for c in range(0, C, BLOCK_C):
            column = c + tl.arange(0, BLOCK_C)[None, :]
            known = positive[:, None] & (column < C)
            value = tl.load(source[:, None] + (5 + column) * stride_c, mask=known, other=0.0).to(tl.float32)
            negative, high = softplus(value)
            target = tl.where(column == label[:, None], iou, 0.0)
            weight = 1.0
            if HAS_POS_WEIGHT:
                weight = tl.load(pos_weight + column, mask=column < C, other=1.0)
            loss = weight * target * (negative - value) + (1 - target) * negative
            cls_sum += tl.sum(tl.sum(tl.where(known, loss, 0.0), 1), 0)
            if WITH_GRADIENT:
                g = cls_weight * one * ((1 - target) * high - weight * target * (1 - high))
                g = tl.where(known, g, 0.0).to(gradient.dtype.element_ty)
                tl.store(sink[:, None] + 5 + column, g, mask=inside[:, None] & (column < C))
    part = parts + (b * tl.num_programs(0) + tl.program_id(0)) * 4
    tl.store(part, iou_sum * one)
    tl.store(part + 1, obj * other)
    tl.store(part + 2, cls_sum * one)
    tl.store(part + 3, l1_sum * one)


@kernel(tensors=3)
def sum_kernel(
    parts,  # (programs, 4)
    losses,  # (3,)
    total,  # (4,)
    programs,
    iou_weight,
    obj_weight,
    cls_weight,
    BLOCK: tl.constexpr,
):
    """Add up the sums of all programs, and weigh the losses."""
    column = tl.arange(0, 4)
    sums = tl.zeros((BLOCK, 4), tl.float64)
    for start in range(0, programs, BLOCK):
        i = (start + tl.arange(0, BLOCK))[:, None]
        sums += tl.load(parts + i * 4 + column[None, :], mask=i < programs, other=0.0)
    each = tl.sum(sums, 0).to(total.dtype.element_ty)
    tl.store(total + column, each)
    l1 = tl.sum(tl.where(column == 3, each, 0.0), 0)
    factor = tl.where(column == 0, iou_weight, tl.where(column == 1, obj_weight, cls_weight))
    loss = factor * each + tl.where(column == 0, l1, 0.0)
    tl.store(losses + column, loss, mask=column < 3)


def yolox_loss(
    outputs: list[Tensor],
    cells: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    index: Tensor,
    iou: Tensor,
    scale: Tensor,
    class_pos_weight: Tensor | None,
    kind: int,
    use_l1: bool,
    iou_weight: float,
    obj_weight: float,
    cls_weight: float,
    with_gradient: bool,
    cxcywh: bool = True,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Launch the kernel; arguments and meaning as in `detops.reference.yolox_loss`.

    Every dtype is computed in float32, even float64.
    """
    batch, (num_cells, num_boxes) = len(outputs[0]), (index.shape[1], gt_boxes.shape[1])
    num_classes = outputs[0].shape[2] - 5
    cell, boxes, matched = (t.to(torch.float32).contiguous() for t in (cells, gt_boxes, iou))
    factors = scale.to(torch.float32)
    pos_weight = None if class_pos_weight is None else class_pos_weight.to(torch.float32).contiguous()
    counts = tuple(output.shape[1] for output in outputs)
    programs = [cdiv(count, BLOCK) for count in counts]
    parts = factors.new_empty(batch * sum(programs), 4)
    gradients = [
        torch.empty_like(output, memory_format=torch.contiguous_format) if with_gradient else output.new_empty(0)
        for output in outputs
    ]
    labels, index, levels = gt_labels.contiguous(), index.contiguous(), len(outputs)
    if len(parts):
        loss_kernel(
            (sum(programs), batch),
            (
                tuple(outputs),
                tuple(gradients),
                cell,
                boxes,
                labels,
                index,
                matched,
                factors,
                factors if pos_weight is None else pos_weight,
                parts,
            ),
            (
                tuple(stride for output in outputs for stride in output.stride()),
                tuple(sum(programs[:i]) for i in range(levels)),
                tuple(sum(counts[:i]) for i in range(levels)),
                counts,
                num_classes,
                num_cells,
                num_boxes,
                factors.stride(0),
                iou_weight,
                obj_weight,
                cls_weight,
            ),
            (
                levels,
                all(output.stride(2) == 1 for output in outputs),
                kind,
                cxcywh,
                use_l1,
                pos_weight is not None,
                with_gradient,
                BLOCK,
                min(BLOCK_CLASSES, next_power_of_2(max(num_classes, 1))),
            ),
        )
    losses, total = (factors.new_empty(n, dtype=accumulate_dtype(outputs[0])) for n in (3, 4))
    sum_kernel((1,), (parts, losses, total), (len(parts), iou_weight, obj_weight, cls_weight), (BLOCK_SUM,))
    return losses, total, gradients
