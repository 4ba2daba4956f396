"""`nms_mask` in Triton: all pairs as bits, then one program per image that visits the boxes in order.

PyTorch sorts the boxes into the order of visits. The first kernel writes, for each box, which later boxes it would
drop, 32 per word; the second keeps the dropped boxes of an image as words in registers. No atomics.
"""

import torch
import triton.language as tl
from torch import Tensor

from detops.geometry.boxes import in_order
from detops.kernels._boxes import overlap
from detops.kernels._launch import cdiv, kernel, next_power_of_2

BITS = 32  # boxes per word; words are int64, so that no bit is the sign
TILE = 32  # boxes per program of the first kernel


# No fused multiply-add: each product is rounded separately, as in every form of the op.
@kernel(tensors=3, enable_fp_fusion=False)
def pairs_kernel(
    boxes,  # (B, N, 4), in order
    labels,  # (B, N), not read without HAS_LABELS
    words,  # (B, N, W)
    N,
    W,
    iou_threshold: tl.float64,  # Triton would round a Python float to float32
    HAS_LABELS: tl.constexpr,
    DOUBLE: tl.constexpr,
    TILE: tl.constexpr,
    BITS: tl.constexpr,
):
    """Write which boxes of one word each box of a tile would drop."""
    w = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    j = w * BITS + tl.arange(0, BITS)
    first = boxes + (b * N + i) * 4
    second = boxes + (b * N + j) * 4
    x1 = tl.load(first, mask=i < N, other=0)[:, None]
    y1 = tl.load(first + 1, mask=i < N, other=0)[:, None]
    x2 = tl.load(first + 2, mask=i < N, other=0)[:, None]
    y2 = tl.load(first + 3, mask=i < N, other=0)[:, None]
    u1 = tl.load(second, mask=j < N, other=0)[None, :]
    v1 = tl.load(second + 1, mask=j < N, other=0)[None, :]
    u2 = tl.load(second + 2, mask=j < N, other=0)[None, :]
    v2 = tl.load(second + 3, mask=j < N, other=0)[None, :]
    area, other_area = (x2 - x1) * (y2 - y1), (u2 - u1) * (v2 - v1)
    inter, union = overlap(x1, y1, x2, y2, area, u1, v1, u2, v2, other_area)
    if DOUBLE:
        drops = inter / union > iou_threshold
    else:
        drops = tl.div_rn(inter, union) > tl.cast(iou_threshold, tl.float32)
    drops = drops & (j[None, :] > i[:, None]) & (j < N)[None, :]
    if HAS_LABELS:
        label = tl.load(labels + b * N + i, mask=i < N, other=0)
        other = tl.load(labels + b * N + j, mask=j < N, other=0)
        drops = drops & (label[:, None] == other[None, :])
    bits = tl.where(drops, 1, 0).to(tl.int64) << tl.arange(0, BITS)[None, :].to(tl.int64)
    tl.store(words + (b * N + i) * W + w, tl.sum(bits, 1), mask=i < N)


@kernel(tensors=2, num_warps=1)
def walk_kernel(
    words,  # (B, N, W)
    alive,  # (B, N) uint8: which boxes take part; afterwards, which are kept
    N,
    W,
    BLOCK_W: tl.constexpr,
    BITS: tl.constexpr,
):
    """Visit one image's boxes in order."""
    b = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK_W)
    dropped = tl.zeros((BLOCK_W,), tl.int64)
    for i in range(0, N):
        word = tl.sum(tl.where(lanes == i // BITS, dropped, 0), 0)
        kept = tl.load(alive + b * N + i).to(tl.int64) & (1 - ((word >> (i % BITS)) & 1))
        tl.store(alive + b * N + i, kept.to(tl.uint8))
        row = tl.load(words + (b * N + i) * W + lanes, mask=lanes < W, other=0)
        dropped = dropped | (row * kept)


def nms_mask(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, valid: Tensor | None, iou_threshold: float
) -> Tensor:
    """Launch both kernels; arguments and meaning as in `detops.reference.nms_mask`."""
    batch, count = scores.shape
    order, box, label, alive = in_order(boxes, scores, labels, valid)
    if batch == 0 or count == 0:
        return alive
    suppress(box.contiguous(), None if label is None else label.contiguous(), alive.view(torch.uint8), iou_threshold)
    return torch.empty_like(alive).scatter_(1, order, alive)


def suppress(boxes: Tensor, labels: Tensor | None, alive: Tensor, iou_threshold: float) -> None:
    """Launch both kernels for boxes (B, N, 4) in order; of those in `alive` (B, N) uint8 only the kept remain there."""
    batch, count = alive.shape
    width = cdiv(count, BITS)
    words = boxes.new_empty((batch, count, width), dtype=torch.int64)
    pairs_kernel(
        (cdiv(count, TILE), width, batch),
        (boxes, words if labels is None else labels, words),
        (count, width, iou_threshold),
        (labels is not None, boxes.dtype == torch.float64, TILE, BITS),
    )
    walk_kernel((batch,), (words, alive), (count, width), (next_power_of_2(width), BITS))
