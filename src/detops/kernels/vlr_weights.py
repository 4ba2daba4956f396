"""`vlr_weights` in Triton: each program owns a run of anchors of one image, and visits the image's boxes."""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._boxes import overlap
from detops.kernels._launch import cdiv, kernel

BLOCK = 256
NEAR = 0.25  # lowest DIoU of an anchor of the region, as a fraction of the box's threshold


@kernel(tensors=5)
def region_kernel(
    anchors,  # (A, 4) float32
    boxes,  # (B, N, 4) float32
    thresholds,  # (B, N) float32
    valid,  # (B, A) uint8, not read without HAS_VALID
    worth,  # (B, A) float32
    A,
    N,
    lowest,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the weights of a run of anchors of one image."""
    runs = tl.cdiv(A, BLOCK)
    b = (tl.program_id(0) // runs).to(tl.int64)
    a = tl.program_id(0) % runs * BLOCK + tl.arange(0, BLOCK)
    exists = a < A
    x1 = tl.load(anchors + 4 * a, mask=exists, other=0)
    y1 = tl.load(anchors + 4 * a + 1, mask=exists, other=0)
    x2 = tl.load(anchors + 4 * a + 2, mask=exists, other=0)
    y2 = tl.load(anchors + 4 * a + 3, mask=exists, other=0)
    area = (x2 - x1) * (y2 - y1)
    best = tl.zeros((BLOCK,), tl.float32)
    for n in range(N):
        limit = tl.load(thresholds + b * N + n)
        box = boxes + (b * N + n) * 4
        left = tl.load(box)
        top = tl.load(box + 1)
        right = tl.load(box + 2)
        bottom = tl.load(box + 3)
        other_area = (right - left) * (bottom - top)
        inter, union = overlap(x1, y1, x2, y2, area, left, top, right, bottom, other_area)
        iou = inter / union
        around_x = tl.maximum(x2, right) - tl.minimum(x1, left)
        around_y = tl.maximum(y2, bottom) - tl.minimum(y1, top)
        apart_x = (x1 + x2 - left - right) * 0.5
        apart_y = (y1 + y2 - top - bottom) * 0.5
        apart = apart_x * apart_x + apart_y * apart_y
        diou = iou - apart / (around_x * around_x + around_y * around_y)
        inside = (diou >= lowest * limit) & (diou < limit)  # false for a NaN
        best = tl.where(inside & (iou > best), iou, best)
    if HAS_VALID:
        best = tl.where(tl.load(valid + b * A + a, mask=exists, other=0) != 0, best, 0.0)
    tl.store(worth + b * A + a, best, mask=exists)


def vlr_weights(anchors: Tensor, gt_boxes: Tensor, threshold: Tensor, valid: Tensor | None) -> Tensor:
    """Launch one program per run; arguments and meaning as in `detops.reference.vlr_weights`."""
    batch, count = len(gt_boxes), len(anchors)
    worth = gt_boxes.new_empty(batch, count, dtype=torch.float32)
    if worth.numel() == 0:
        return worth
    region_kernel(
        (batch * cdiv(count, BLOCK),),
        (
            anchors.to(torch.float32).contiguous(),
            gt_boxes.to(torch.float32).contiguous(),
            threshold.to(torch.float32).contiguous(),
            worth if valid is None else valid.contiguous().view(torch.uint8),
            worth,
        ),
        (count, gt_boxes.shape[1], NEAR),
        (valid is not None, BLOCK),
    )
    return worth
