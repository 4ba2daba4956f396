"""`positive_losses_backward` in Triton: a program per run of points, which recomputes those that have a box."""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._box_distributions import box_losses, distillation, load_sides
from detops.kernels._launch import at_cell, cdiv, kernel, map_of, next_power_of_2, number_of

BLOCK = 32  # points per program


@kernel(tensors=10, num_warps=1)
def gradient_kernel(
    pred_maps,  # a tuple: each level's (B, 4 * BINS, H, W)
    soft_maps,  # a tuple: each level's (B, 4 * BINS, H, W)
    gradient_maps,  # a tuple: each level's (B, 4 * BINS, H, W), contiguous
    points,  # (A, 3)
    boxes,  # (B, N, 4)
    index,  # (B, A)
    weight,  # (B, A)
    region,  # (B, A)
    slopes,  # (rows, COLUMNS)
    factors,  # (4, GROUPS)
    pred_strides,  # tuples: batch, channel, row and column of each level, one after another
    soft_strides,
    starts,  # a tuple, as the next two: each level's first point
    rows,  # how many it has
    widths,
    A,
    N,
    temperature,
    margin,
    of_iou,  # further factors of the four losses
    of_dfl,
    of_ld,
    of_vlr,
    LEVELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    BOX_KIND: tl.constexpr,
    BINS: tl.constexpr,
    HAS_SOFT: tl.constexpr,
    HAS_REGION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Write the gradient of a run of points of one level."""
    level = tl.program_id(1) % LEVELS
    b = (tl.program_id(1) // LEVELS).to(tl.int64)
    first = tl.program_id(0) * BLOCK
    start, R = number_of(starts, level, LEVELS, 1, 0), number_of(rows, level, LEVELS, 1, 0)
    W = number_of(widths, level, LEVELS, 1, 0)
    preds, soft = map_of(pred_maps, level, LEVELS), map_of(soft_maps, level, LEVELS)
    gradient = map_of(gradient_maps, level, LEVELS)
    preds_c, soft_c = number_of(pred_strides, level, LEVELS, 4, 1), number_of(soft_strides, level, LEVELS, 4, 1)
    slopes += level * COLUMNS // LEVELS
    factors += level * GROUPS // LEVELS
    run = first + tl.arange(0, BLOCK)
    for channel in range(0, 4 * BINS):
        tl.store(gradient + (b * 4 * BINS + channel) * R + run, 0.0, mask=run < R)
    tl.debug_barrier()  # zeros lie in memory before what replaces some of them
    s, j = tl.arange(0, 4)[:, None], tl.arange(0, BLOCK_J)[None, :]
    for r in range(first, tl.minimum(first + BLOCK, R)):
        a = start + r
        n = tl.load(index + b * A + a)
        w = tl.full((), 0, tl.float32)
        if (n >= 0) & (n < N):
            w = tl.load(weight + b * A + a)
        of_region = tl.full((), 0, tl.float32)
        if HAS_REGION:
            of_region = tl.maximum(tl.load(region + b * A + a), 0.0)
        if (w != 0) | (of_region > 0):
            y, x = r // W, r % W
            raw = load_sides(preds + at_cell(pred_strides, level, b, y, x, LEVELS), preds_c, BINS, BLOCK_J)
            total = tl.zeros((4, BLOCK_J), tl.float32)
            if w != 0:
                box = boxes + (b * N + n) * 4
                _, _, _, by_iou, by_dfl = box_losses(raw, points + a * 3, box, margin, BOX_KIND, BINS, BLOCK_J)
                total += w * of_iou * (tl.load(slopes) * tl.load(factors)) * by_iou
                if BINS > 1:
                    total += w * of_dfl * (tl.load(slopes + COLUMNS) * tl.load(factors + GROUPS)) * by_dfl
            if HAS_SOFT:
                taught = load_sides(soft + at_cell(soft_strides, level, b, y, x, LEVELS), soft_c, BINS, BLOCK_J)
                _, by_ld = distillation(raw, taught, temperature, BINS, BLOCK_J)
                ld = of_ld * (tl.load(slopes + 2 * COLUMNS) * tl.load(factors + 2 * GROUPS)) * w
                if HAS_REGION:
                    ld += of_vlr * (tl.load(slopes + 3 * COLUMNS) * tl.load(factors + 3 * GROUPS)) * of_region
                total += ld * by_ld
            sink = gradient + (b * 4 * BINS + s * BINS + j) * R + r
            tl.store(sink, total.to(gradient.dtype.element_ty), mask=j < BINS)


def positive_losses_backward(
    bbox_preds: list[Tensor],
    soft_targets: list[Tensor],
    points: Tensor,
    boxes: Tensor,
    index: Tensor,
    weight: Tensor,
    region: Tensor | None,
    slopes: Tensor,
    factors: Tensor,
    weights: list[float],
    box_kind: int,
    temperature: float,
    margin: float,
    most: int,
) -> list[Tensor]:
    """Launch the kernel; arguments and meaning as in `detops.reference.positive_losses_backward`.

    Every dtype is computed in float32, even float64.
    """
    (batch, num_points), num_boxes, bins = index.shape, boxes.shape[1], bbox_preds[0].shape[1] // 4
    points, boxes, slopes, factors = (t.to(torch.float32).contiguous() for t in (points, boxes, slopes, factors))
    index = index.contiguous()
    gradients = [torch.empty_like(preds, memory_format=torch.contiguous_format) for preds in bbox_preds]
    levels, soft = len(bbox_preds), soft_targets or bbox_preds
    rows = tuple(preds.shape[2] * preds.shape[3] for preds in bbox_preds)
    if batch and max(rows):
        gradient_kernel(
            (cdiv(max(rows), BLOCK), batch * levels),
            (
                tuple(bbox_preds),
                tuple(soft),
                tuple(gradients),
                points,
                boxes,
                index,
                weight,
                weight if region is None else region,
                slopes,
                factors,
            ),
            (
                *(tuple(stride for level in maps for stride in level.stride()) for maps in (bbox_preds, soft)),
                tuple(sum(rows[:i]) for i in range(levels)),
                rows,
                tuple(preds.shape[3] for preds in bbox_preds),
                num_points,
                num_boxes,
                temperature,
                margin,
                *map(float, weights),
            ),
            (
                levels,
                slopes.shape[1],
                factors.shape[1],
                box_kind,
                bins,
                bool(soft_targets),
                region is not None,
                BLOCK,
                max(next_power_of_2(bins), 2),
            ),
        )
    return gradients
