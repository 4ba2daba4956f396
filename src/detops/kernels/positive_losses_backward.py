"""`positive_losses_backward` in Triton: a program per run of points, which recomputes those that have a box."""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._box_distributions import box_losses, distillation, load_sides
from detops.kernels._launch import cdiv, kernel, next_power_of_2

BLOCK = 32  # points per program


@kernel(tensors=9, num_warps=1)
def gradient_kernel(
    preds,  # (B, 4 * BINS, H, W)
    soft,  # (B, 4 * BINS, H, W)
    gradient,  # (B, 4 * BINS, H, W) contiguous zeros
    points,  # (A, 3)
    boxes,  # (B, N, 4)
    index,  # (B, A)
    weight,  # (B, A)
    region,  # (B, A)
    factors,  # (4, L)
    preds_b,
    preds_c,
    preds_y,
    preds_x,
    soft_b,
    soft_c,
    soft_y,
    soft_x,
    level,
    L,
    start,
    R,
    W,
    A,
    N,
    temperature,
    margin,
    BOX_KIND: tl.constexpr,
    BINS: tl.constexpr,
    HAS_SOFT: tl.constexpr,
    HAS_REGION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Compute the gradient of a run of points."""
    b = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK
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
            raw = load_sides(preds + b * preds_b + y * preds_y + x * preds_x, preds_c, BINS, BLOCK_J)
            total = tl.zeros((4, BLOCK_J), tl.float32)
            if w != 0:
                box = boxes + (b * N + n) * 4
                _, _, _, by_iou, by_dfl = box_losses(raw, points + a * 3, box, margin, BOX_KIND, BINS, BLOCK_J)
                total += w * (tl.load(factors + level) * by_iou + tl.load(factors + L + level) * by_dfl)
            if HAS_SOFT:
                taught = load_sides(soft + b * soft_b + y * soft_y + x * soft_x, soft_c, BINS, BLOCK_J)
                _, by_ld = distillation(raw, taught, temperature, BINS, BLOCK_J)
                ld = tl.load(factors + 2 * L + level) * w
                if HAS_REGION:
                    ld += tl.load(factors + 3 * L + level) * of_region
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
    factors: Tensor,
    box_kind: int,
    temperature: float,
    margin: float,
    most: int,
) -> list[Tensor]:
    """Launch the kernel for each level; arguments and meaning as in `detops.reference.positive_losses_backward`.

    Every dtype is computed in float32, even float64.
    """
    (batch, num_points), num_boxes, bins = index.shape, boxes.shape[1], bbox_preds[0].shape[1] // 4
    points, boxes, factors = (t.to(torch.float32).contiguous() for t in (points, boxes, factors))
    index = index.contiguous()
    gradients, start = [], 0
    for level, preds in enumerate(bbox_preds):
        gradient = torch.zeros_like(preds, memory_format=torch.contiguous_format)
        rows = preds.shape[2] * preds.shape[3]
        soft = soft_targets[level] if soft_targets else preds
        if batch and rows:
            gradient_kernel(
                (cdiv(rows, BLOCK), batch),
                (preds, soft, gradient, points, boxes, index, weight, weight if region is None else region, factors),
                (
                    *preds.stride(),
                    *soft.stride(),
                    level,
                    len(bbox_preds),
                    start,
                    rows,
                    preds.shape[3],
                    num_points,
                    num_boxes,
                    temperature,
                    margin,
                ),
                (box_kind, bins, bool(soft_targets), region is not None, BLOCK, max(next_power_of_2(bins), 2)),
            )
        gradients.append(gradient)
        start += rows
    return gradients
