"""`nms_mask` in Triton: all pairs as bits, then one program per image that visits the boxes in order.

The first kernel makes keys of the scores, which PyTorch sorts: the order of visits. The second writes, for each box in
that order, which later boxes it would drop, 32 per word; the third keeps the dropped boxes of an image as words in
registers. Boxes are read where they are. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.kernels._boxes import overlap
from detops.kernels._launch import cdiv, kernel, next_power_of_2

BITS = 32  # boxes per word; words are int64, so that no bit is the sign
TILE = 32  # boxes per program of the kernel of pairs
BLOCK = 256  # keys per program
LOW = tl.constexpr(2**32 - 1)
AS_THEY_ARE, INDICES, KEYS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # orders of visits


@kernel(tensors=2)
def keys_kernel(scores, keys, count, N, stride_b, stride_n, BLOCK: tl.constexpr):
    """Make keys (B, N) int64 that are higher for a higher score, and for a lower index of equal ones."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = i % N
    score = tl.load(scores + (i // N).to(tl.int64) * stride_b + n.to(tl.int64) * stride_n, mask=i < count, other=0.0)
    score = score.to(tl.float32) + 0.0  # -0 becomes 0
    bits = tl.where(score == score, score, -float("inf")).to(tl.int32, bitcast=True)
    bits = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    tl.store(keys + i, (bits << 32) - n, mask=i < count)


@triton.jit
def _visited(order, place, i, mask, ORDER: tl.constexpr):
    """The box that is visited i-th: that of the i-th of sorted keys, or of sorted indices, or box i."""
    if ORDER == KEYS:
        found = -tl.load(order + place + i, mask=mask, other=0) & LOW
    elif ORDER == INDICES:
        found = tl.load(order + place + i, mask=mask, other=0)
    else:
        found = i
    return found


# No fused multiply-add: each product is rounded separately, as in every form of the op.
@kernel(tensors=4, enable_fp_fusion=False)
def pairs_kernel(
    boxes,  # (B, N, 4)
    labels,  # (B, N), not read without HAS_LABELS
    order,  # (B, N) in the order of visits, as in `_visited`
    words,  # (B, N, W)
    N,
    W,
    iou_threshold: tl.float64,  # Triton would round a Python float to float32
    ORDER: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    DOUBLE: tl.constexpr,
    TILE: tl.constexpr,
    BITS: tl.constexpr,
):
    """Write which boxes of one word each box of a tile would drop."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    w = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    j = w * BITS + tl.arange(0, BITS)
    one, other = _visited(order, b * N, i, i < N, ORDER), _visited(order, b * N, j, j < N, ORDER)
    first = boxes + (b * N + one) * 4
    second = boxes + (b * N + other) * 4
    x1 = tl.load(first, mask=i < N, other=0).to(COMPUTE)[:, None]
    y1 = tl.load(first + 1, mask=i < N, other=0).to(COMPUTE)[:, None]
    x2 = tl.load(first + 2, mask=i < N, other=0).to(COMPUTE)[:, None]
    y2 = tl.load(first + 3, mask=i < N, other=0).to(COMPUTE)[:, None]
    u1 = tl.load(second, mask=j < N, other=0).to(COMPUTE)[None, :]
    v1 = tl.load(second + 1, mask=j < N, other=0).to(COMPUTE)[None, :]
    u2 = tl.load(second + 2, mask=j < N, other=0).to(COMPUTE)[None, :]
    v2 = tl.load(second + 3, mask=j < N, other=0).to(COMPUTE)[None, :]
    area, other_area = (x2 - x1) * (y2 - y1), (u2 - u1) * (v2 - v1)
    inter, union = overlap(x1, y1, x2, y2, area, u1, v1, u2, v2, other_area)
    if DOUBLE:
        drops = inter / union > iou_threshold
    else:
        drops = tl.div_rn(inter, union) > tl.cast(iou_threshold, tl.float32)
    drops = drops & (j[None, :] > i[:, None]) & (j < N)[None, :]
    if HAS_LABELS:
        label = tl.load(labels + b * N + one, mask=i < N, other=0)
        other_label = tl.load(labels + b * N + other, mask=j < N, other=0)
        drops = drops & (label[:, None] == other_label[None, :])
    bits = tl.where(drops, 1, 0).to(tl.int64) << tl.arange(0, BITS)[None, :].to(tl.int64)
    tl.store(words + (b * N + i) * W + w, tl.sum(bits, 1), mask=i < N)


@kernel(tensors=4, num_warps=1)
def walk_kernel(
    words,  # (B, N, W)
    order,  # (B, N) in the order of visits, as in `_visited`
    valid,  # (B, N) uint8: which boxes take part; not read without HAS_VALID
    kept,  # (B, N) uint8: becomes which are kept; may be the same
    N,
    W,
    ORDER: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BITS: tl.constexpr,
):
    """Visit one image's boxes in order."""
    b = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK_W)
    dropped = tl.zeros((BLOCK_W,), tl.int64)
    for i in range(0, N):
        word = tl.sum(tl.where(lanes == i // BITS, dropped, 0), 0)
        n = b * N + _visited(order, b * N, i, True, ORDER)
        stays = 1 - ((word >> (i % BITS)) & 1)
        if HAS_VALID:
            stays = tl.load(valid + n).to(tl.int64) & stays
        tl.store(kept + n, stays.to(tl.uint8))
        row = tl.load(words + (b * N + i) * W + lanes, mask=lanes < W, other=0)
        dropped = dropped | (row * stays)


def nms_mask(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, valid: Tensor | None, iou_threshold: float
) -> Tensor:
    """Launch the kernels; arguments and meaning as in `detops.reference.nms_mask`."""
    batch, count = scores.shape
    kept = torch.empty(batch, count, dtype=torch.bool, device=boxes.device)
    if batch == 0 or count == 0:
        return kept
    if scores.dtype in (torch.float32, torch.float16, torch.bfloat16):
        keys, kind = torch.empty(batch, count, dtype=torch.int64, device=boxes.device), KEYS
        keys_kernel((cdiv(batch * count, BLOCK),), (scores, keys), (batch * count, count, *scores.stride()), (BLOCK,))
        order = keys.sort(dim=1, descending=True).values
    else:
        score, kind = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf), INDICES
        order = score.sort(dim=1, descending=True, stable=True).indices
    taking_part = None if valid is None else valid.contiguous().view(torch.uint8)
    _suppress(boxes.contiguous(), labels, order, kind.value, taking_part, kept.view(torch.uint8), iou_threshold)
    return kept


def suppress(boxes: Tensor, labels: Tensor | None, alive: Tensor, iou_threshold: float) -> None:
    """Launch both kernels for boxes (B, N, 4) in order; of those in `alive` (B, N) uint8 only the kept remain there."""
    _suppress(boxes, labels, alive, AS_THEY_ARE.value, alive, alive, iou_threshold)


def _suppress(
    boxes: Tensor,
    labels: Tensor | None,
    order: Tensor,
    kind: int,
    valid: Tensor | None,
    kept: Tensor,
    iou_threshold: float,
) -> None:
    batch, count = kept.shape
    width = cdiv(count, BITS)
    words = boxes.new_empty((batch, count, width), dtype=torch.int64)
    pairs_kernel(
        (cdiv(count, TILE), width, batch),
        (boxes, words if labels is None else labels.contiguous(), order, words),
        (count, width, iou_threshold),
        (kind, labels is not None, boxes.dtype == torch.float64, TILE, BITS),
    )
    walk_kernel(
        (batch,),
        (words, order, kept if valid is None else valid, kept),
        (count, width),
        (kind, valid is not None, next_power_of_2(width), BITS),
    )
