"""`select_detections` in Triton: candidates prepared, suppressed as by `nms_mask`, and gathered by a program per image.

The candidates are sorted already, so that nothing is sorted here.
"""

import math

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels import nms_mask as suppression
from detops.kernels._launch import cdiv, kernel

BLOCK = 256  # candidates at once
LARGEST = tl.constexpr(3.4028234663852886e38)  # of the finite numbers


@kernel(tensors=5)
def candidates_kernel(
    boxes,  # (B, M, 4)
    scores,  # (B, M)
    image_sizes,  # (B, 2), not read without HAS_SIZES
    clipped,  # (B, M, 4)
    alive,  # (B, M) uint8
    M,
    least,
    HAS_SIZES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Clip boxes, and find those that exist."""
    b = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = m < M
    box = (b * M + m) * 4
    x1 = tl.load(boxes + box, mask=inside, other=0.0)
    y1 = tl.load(boxes + box + 1, mask=inside, other=0.0)
    x2 = tl.load(boxes + box + 2, mask=inside, other=0.0)
    y2 = tl.load(boxes + box + 3, mask=inside, other=0.0)
    known = (x1 == x1) & (y1 == y1) & (x2 == x2) & (y2 == y2) & (tl.load(scores + b * M + m, mask=inside) >= least)
    if HAS_SIZES:
        height = tl.load(image_sizes + b * 2)
        width = tl.load(image_sizes + b * 2 + 1)
        x1, x2 = tl.minimum(tl.maximum(x1, 0.0), width), tl.minimum(tl.maximum(x2, 0.0), width)
        y1, y2 = tl.minimum(tl.maximum(y1, 0.0), height), tl.minimum(tl.maximum(y2, 0.0), height)
    known = known & (tl.abs(x1) <= LARGEST) & (tl.abs(y1) <= LARGEST) & (x2 <= LARGEST) & (y2 <= LARGEST)
    known = known & (x2 > x1) & (y2 > y1)
    tl.store(clipped + box, x1, mask=inside)
    tl.store(clipped + box + 1, y1, mask=inside)
    tl.store(clipped + box + 2, x2, mask=inside)
    tl.store(clipped + box + 3, y2, mask=inside)
    tl.store(alive + b * M + m, known.to(tl.uint8), mask=inside)


@kernel(tensors=7)
def gather_kernel(
    boxes,  # (B, M, 4)
    labels,  # (B, M)
    scores,  # (B, M)
    kept,  # (B, M) uint8
    found_boxes,  # (B, K, 4)
    found_labels,  # (B, K) int64
    found_scores,  # (B, K)
    M,
    K,
    BLOCK: tl.constexpr,
):
    """Bring the detections of an image to the front, and fill the rest."""
    b = tl.program_id(0).to(tl.int64)
    lanes, side = tl.arange(0, BLOCK), tl.arange(0, 4)[None, :]
    count = tl.full((), 0, tl.int32)
    for first in range(0, M, BLOCK):
        m = first + lanes
        here = tl.load(kept + b * M + m, mask=m < M, other=0).to(tl.int32)
        place = count + tl.cumsum(here, 0) - 1
        taken = (here > 0) & (place < K)
        box = tl.load(boxes + (b * M + m)[:, None] * 4 + side, mask=taken[:, None], other=0.0)
        tl.store(found_boxes + (b * K + place)[:, None] * 4 + side, box, mask=taken[:, None])
        label = tl.load(labels + b * M + m, mask=taken, other=0).to(tl.int64)
        tl.store(found_labels + b * K + place, label, mask=taken)
        tl.store(found_scores + b * K + place, tl.load(scores + b * M + m, mask=taken, other=0.0), mask=taken)
        count += tl.sum(here, 0)
    for first in range(0, K, BLOCK):
        k = first + lanes
        rest = (k >= count) & (k < K)
        tl.store(found_boxes + (b * K + k)[:, None] * 4 + side, 0.0, mask=rest[:, None] & (side >= 0))
        tl.store(found_labels + b * K + k, -1, mask=rest)
        tl.store(found_scores + b * K + k, 0.0, mask=rest)


def select_detections(
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    image_sizes: Tensor | None,
    least: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernels; arguments and meaning as in `detops.reference.select_detections`."""
    batch, count = scores.shape
    found_boxes = boxes.new_empty((batch, max_detections, 4), dtype=torch.float32)
    found_labels = labels.new_empty((batch, max_detections), dtype=torch.int64)
    found_scores = scores.new_empty((batch, max_detections), dtype=torch.float32)
    if batch == 0:
        return found_boxes, found_labels, found_scores
    boxes, scores = (t.to(torch.float32).contiguous() for t in (boxes, scores))
    labels, clipped, alive = labels.contiguous(), torch.empty_like(boxes), torch.empty_like(scores, dtype=torch.uint8)
    sizes = boxes if image_sizes is None else image_sizes.to(torch.float32).contiguous()
    if count:
        candidates_kernel(
            (cdiv(count, BLOCK), batch),
            (boxes, scores, sizes, clipped, alive),
            (count, least),
            (image_sizes is not None, BLOCK),
        )
    if count and iou_threshold < math.inf:
        suppression.suppress(clipped, labels, alive, iou_threshold)
    gather_kernel(
        (batch,),
        (clipped, labels, scores, alive, found_boxes, found_labels, found_scores),
        (count, max_detections),
        (BLOCK,),
    )
    return found_boxes, found_labels, found_scores
