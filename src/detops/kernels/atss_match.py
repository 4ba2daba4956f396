"""`atss_match` in Triton: one program per box.

A program passes over each level once per candidate, the nearest anchor first, and keeps the candidates in registers. It
enters its box at those that pass the threshold, by an atomic maximum of [IoU | box] as one int64. The maximum does not
depend on the order of the programs. Where all boxes contest, a second kernel gives the anchors that several boxes took
to the best of all.
"""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._boxes import overlap
from detops.kernels._launch import cdiv, kernel, next_power_of_2, plain

BLOCK = 512  # anchors per step
BLOCK_OUT = 256  # anchors of a program that writes the result
BLOCK_CONTEST = 64  # anchors of a program that settles contests
NEVER = tl.constexpr(2**63 - 1)
LOW = tl.constexpr(2**32 - 1)
LARGEST = tl.constexpr(3.4028234663852886e38)  # of the finite numbers


@kernel(tensors=10)
def take_kernel(
    anchors,  # (A, 4)
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    sample_sizes,  # (B,), not read without HAS_SIZES
    valid,  # (B, A) uint8, not read without HAS_VALID
    best,  # (B, A) int64
    times,  # (B, A) int32 zeros, how many boxes took an anchor; not touched without ALL_BOXES
    exists,  # (B, N) uint8, becomes which boxes take part; not touched without ALL_BOXES
    thresholds,  # (B, N)
    positives,  # (B,) int64, becomes 0
    sizes,  # a tuple: the number of anchors of each level
    A,
    N,
    C,
    margin,
    LEVELS: tl.constexpr,
    TOPK: tl.constexpr,
    STRICT: tl.constexpr,
    ALL_BOXES: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Find the anchors of one box."""
    n = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    if n == 0:
        tl.store(positives + b, 0)
    box = boxes + (b * N + n) * 4
    x1, y1, x2, y2 = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    label = tl.load(labels + b * N + n).to(tl.int64)
    # Comparisons are false for NaN.
    known = (x2 - x1 >= 0) & (y2 - y1 >= 0) & ((x2 - x1) * (y2 - y1) <= LARGEST) & (label >= 0) & (label < C)
    if HAS_SIZES:
        known = known & (n < tl.load(sample_sizes + b))
    if ALL_BOXES:
        tl.store(exists + b * N + n, known.to(tl.uint8))
    if known:
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        lanes, slots = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
        chosen = tl.full((BLOCK_K,), -1, tl.int32)
        slot = tl.full((), 0, tl.int32)
        start = 0
        for level in tl.static_range(LEVELS):
            size = plain(sizes[level])
            last = tl.full((), -1, tl.int64)
            for _ in range(0, TOPK):
                lowest = tl.full((), NEVER, tl.int64)
                for first in range(0, size, BLOCK):
                    a = start + first + lanes
                    inside = first + lanes < size
                    if HAS_VALID:
                        inside = inside & (tl.load(valid + b * A + a, mask=inside, other=0) > 0)
                    anchor = anchors + a * 4
                    dx = (
                        tl.load(anchor, mask=inside, other=0.0) + tl.load(anchor + 2, mask=inside, other=0.0)
                    ) / 2 - cx
                    dy = (tl.load(anchor + 1, mask=inside, other=0.0) + tl.load(anchor + 3, mask=inside, other=0.0)) / 2
                    dy = dy - cy
                    bits = (dx * dx + dy * dy).to(tl.int32, bitcast=True).to(tl.int64)
                    key = tl.where(inside, (bits << 32) | a.to(tl.int64), NEVER)
                    lowest = tl.minimum(lowest, tl.min(tl.where(key > last, key, NEVER), 0))
                if lowest != NEVER:
                    chosen = tl.where(slots == slot, (lowest & LOW).to(tl.int32), chosen)
                    slot += 1
                    last = lowest
            start += size
        there = chosen >= 0
        anchor = anchors + chosen * 4
        u1 = tl.load(anchor, mask=there, other=0.0)
        v1 = tl.load(anchor + 1, mask=there, other=0.0)
        u2 = tl.load(anchor + 2, mask=there, other=0.0)
        v2 = tl.load(anchor + 3, mask=there, other=0.0)
        area, other_area = (u2 - u1) * (v2 - v1), (x2 - x1) * (y2 - y1)
        inter, union = overlap(u1, v1, u2, v2, area, x1, y1, x2, y2, other_area)
        iou = inter / union
        iou = tl.where(there & (iou >= 0), iou, 0.0)
        count = tl.maximum(slot, 1).to(tl.float32)
        top = tl.max(iou, 0)  # the mean is relative to it: then that of equal IoUs is exact, and they reach it
        mean = top + tl.sum(tl.where(there, iou - top, 0.0), 0) / count
        apart = tl.where(there, iou - mean, 0.0)
        threshold = mean + tl.sqrt(tl.sum(apart * apart, 0) / tl.maximum(count - 1, 1.0))
        tl.store(thresholds + b * N + n, tl.where(slot > 0, threshold, float("inf")))
        u, v = (u1 + u2) / 2, (v1 + v2) / 2
        least = tl.minimum(tl.minimum(u - x1, x2 - u), tl.minimum(v - y1, y2 - v))
        if STRICT:
            passes = iou > threshold
        else:
            passes = iou >= threshold
        taken = there & passes & (least > margin)
        rank = (iou.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (LOW - n.to(tl.int64))
        tl.atomic_max(best + b * A + chosen, rank, mask=taken, sem="relaxed")
        if ALL_BOXES:
            tl.atomic_add(times + b * A + chosen, tl.full((BLOCK_K,), 1, tl.int32), mask=taken, sem="relaxed")
    else:
        tl.store(thresholds + b * N + n, float("inf"))


@kernel(tensors=5, num_warps=2)
def contest_kernel(anchors, boxes, exists, times, best, A, N, BLOCK: tl.constexpr):
    """Give the anchors that several boxes took to the best of all boxes of the image."""
    b = tl.program_id(1).to(tl.int64)
    a = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    contested = tl.load(times + b * A + a, mask=a < A, other=0) > 1
    if tl.max(contested.to(tl.int32), 0) > 0:
        anchor = anchors + a * 4
        u1 = tl.load(anchor, mask=contested, other=0.0)
        v1 = tl.load(anchor + 1, mask=contested, other=0.0)
        u2 = tl.load(anchor + 2, mask=contested, other=0.0)
        v2 = tl.load(anchor + 3, mask=contested, other=0.0)
        area = (u2 - u1) * (v2 - v1)
        rank = tl.full((BLOCK,), -1, tl.int64)
        for n in range(0, N):
            if tl.load(exists + b * N + n) > 0:
                box = boxes + (b * N + n) * 4
                x1, y1, x2, y2 = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
                inter, union = overlap(u1, v1, u2, v2, area, x1, y1, x2, y2, (x2 - x1) * (y2 - y1))
                iou = inter / union
                iou = tl.where(iou >= 0, iou, 0.0)
                rank = tl.maximum(
                    rank, (iou.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (tl.full((BLOCK,), LOW, tl.int64) - n)
                )
        tl.store(best + b * A + a, rank, mask=contested)


@kernel(tensors=4)
def result_kernel(
    best,  # (B, A) int64
    index,  # (B, A) int64
    overlaps,  # (B, A)
    positives,  # (B,) int64, to which is added
    A,
    BLOCK: tl.constexpr,
):
    """Take index and IoU of a run of anchors of an image apart, and count those that have a box."""
    b = tl.program_id(1).to(tl.int64)
    a = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = b * A + a
    rank = tl.load(best + place, mask=a < A, other=-1)
    iou = (rank >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(index + place, tl.where(rank >= 0, LOW - (rank & LOW), -1), mask=a < A)
    tl.store(overlaps + place, tl.where(rank >= 0, iou, 0.0), mask=a < A)
    number = tl.sum((rank >= 0).to(tl.int32), 0)
    if number > 0:
        tl.atomic_add(positives + b, number.to(tl.int64), sem="relaxed")


def atss_match(
    anchors: Tensor,
    level_sizes: list[int],
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    valid: Tensor | None,
    num_classes: int,
    topk: int,
    margin: float,
    strict: bool,
    all_boxes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernel; arguments and meaning as in `detops.reference.atss_match`."""
    (batch, boxes), count, device = gt_labels.shape, len(anchors), gt_boxes.device
    best = torch.full((batch, count), -1, dtype=torch.int64, device=device)
    if batch == 0 or boxes == 0 or count == 0:
        overlaps = torch.zeros(batch, count, dtype=torch.float32, device=device)
        thresholds = torch.full((batch, boxes), torch.inf, dtype=torch.float32, device=device)
        return best, overlaps, thresholds, torch.zeros(batch, dtype=torch.int64, device=device)
    overlaps, thresholds = (torch.empty(batch, n, dtype=torch.float32, device=device) for n in (count, boxes))
    box, anchor = gt_boxes.to(torch.float32).contiguous(), anchors.to(torch.float32).contiguous()
    labels, positives = gt_labels.contiguous(), torch.empty(batch, dtype=torch.int64, device=device)
    times, exists = best, best
    if all_boxes:
        times = torch.zeros(batch, count, dtype=torch.int32, device=device)
        exists = torch.empty(batch, boxes, dtype=torch.uint8, device=device)
    take_kernel(
        (boxes, batch),
        (
            anchor,
            box,
            labels,
            labels if sample_sizes is None else sample_sizes.contiguous(),
            labels if valid is None else valid.contiguous().view(torch.uint8),
            best,
            times,
            exists,
            thresholds,
            positives,
        ),
        (tuple(level_sizes), count, boxes, num_classes, float(margin)),
        (
            len(level_sizes), topk, strict, all_boxes, sample_sizes is not None, valid is not None, BLOCK,
            next_power_of_2(topk * len(level_sizes)),
        ),
    )  # fmt: skip
    if all_boxes:
        contest_kernel(
            (cdiv(count, BLOCK_CONTEST), batch), (anchor, box, exists, times, best), (count, boxes), (BLOCK_CONTEST,)
        )
    index = torch.empty_like(best)
    result_kernel((cdiv(count, BLOCK_OUT), batch), (best, index, overlaps, positives), (count,), (BLOCK_OUT,))
    return index, overlaps, thresholds, positives
