"""`nms_mask` in Triton: all pairs as bits, then one program per image that visits the boxes in order.

The first kernel makes keys of the scores, which PyTorch sorts: the order of visits. The second writes, for each box in
that order, which later boxes it would drop, 32 per word; the third keeps the dropped boxes of an image as words in
registers, and decides on 32 boxes per step. Boxes are read where they are. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.kernels._boxes import overlap
from detops.kernels._launch import cdiv, kernel, next_power_of_2

BITS = 32  # boxes per word, and words per tile of pairs
BLOCK = 256  # keys per program
WIDE = 64  # words per box that one warp still walks through
WARPS = 4  # beyond
LOADS = 32  # words that a thread of these loads at once
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
    words,  # (B, W * BITS, W); written from the diagonal on, where word w holds box i and later ones
    N,
    W,
    iou_threshold: tl.float64,  # Triton would round a Python float to float32
    ORDER: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    DOUBLE: tl.constexpr,
    BITS: tl.constexpr,
):
    """Write which boxes of one word each of BITS boxes would drop, none after the last box."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    # Column w of the upper triangle has w + 1 tiles; a high and a low column together fill a row of the grid.
    tile, w = tl.program_id(0), W - 1 - tl.program_id(1)
    if tile > w:
        tile, w = tile - w - 1, tl.num_programs(0) - 2 - w
    b = tl.program_id(2).to(tl.int64)
    i = tile * BITS + tl.arange(0, BITS)
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
    bits = tl.where(drops, 1, 0) << tl.arange(0, BITS)[None, :]  # their sum never leaves int32: no two have a bit
    tl.store(words + (b * W * BITS + i) * W + w, tl.sum(bits, 1))


def _walk(
    words,  # (B, W * BITS, W), as `pairs_kernel` leaves them
    order,  # (B, N) in the order of visits, as in `_visited`
    valid,  # (B, N) uint8: which boxes take part; not read without HAS_VALID
    kept,  # (B, N) uint8: becomes which are kept; may be the same
    N,
    W,
    ORDER: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Visit one image's boxes in order, BITS per step: first among themselves, then for all later ones."""
    b = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK_W)
    bits = tl.arange(0, BITS)
    dropped = tl.zeros((BLOCK_W,), tl.int32)
    row = words + b * W * BITS * W
    for step in range(0, W):
        i = step * BITS + bits
        n = b * N + _visited(order, b * N, i, i < N, ORDER)
        part = tl.full((BITS,), 1, tl.int32)
        if HAS_VALID:
            part = (tl.load(valid + n, mask=i < N, other=0) != 0).to(tl.int32)
        # All warps meet in this sum, having loaded what one of them may then store over.
        stay = ~tl.sum(tl.where(lanes == step, dropped, 0), 0)
        if HAS_VALID:
            stay = stay & tl.sum(part << bits, 0)
        # What is loaded depends on nothing that is computed, so that the loads of ROWS boxes are under way together.
        later = (lanes > step) & (lanes < W)
        for first in range(0, BITS, ROWS):
            for k in tl.static_range(ROWS):
                stays = ((stay >> (first + k)) & 1) != 0
                stay = tl.where(stays, stay & ~tl.load(row + step), stay)
                dropped = tl.where(stays, dropped | tl.load(row + lanes, mask=later, other=0), dropped)
                row += W
        tl.store(kept + n, ((stay >> bits) & 1).to(tl.uint8), mask=i < N)


walk_kernel = kernel(tensors=4, num_warps=1)(_walk)
wide_walk_kernel = kernel(tensors=4, num_warps=WARPS)(_walk)  # of thousands of boxes


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
    words = boxes.new_empty((batch, width * BITS, width), dtype=torch.int32)
    across = width | 1  # tiles of the two columns that fill a row of the grid
    pairs_kernel(
        (across, width * (width + 1) // 2 // across, batch),
        (boxes, words if labels is None else labels.contiguous(), order, words),
        (count, width, iou_threshold),
        (kind, labels is not None, boxes.dtype == torch.float64, BITS),
    )
    block = max(BITS, next_power_of_2(width))
    walk, rows = walk_kernel, BITS
    if block > WIDE:
        walk, rows = wide_walk_kernel, min(BITS, max(1, LOADS * BITS * WARPS // block))
    walk(
        (batch,),
        (words, order, kept if valid is None else valid, kept),
        (count, width),
        (kind, valid is not None, block, BITS, rows),
    )
