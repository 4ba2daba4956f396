"""`atss_match` in Triton: tiles of anchors prepared, then one program per box.

A program visits the tiles of a level from the nearest on, keeps the anchors that are nearest as a list in its
registers, and passes over the tiles whose hull is further away than the last of them: in a grid all but a few, though
nothing says that it is one. It enters its box at those that pass the threshold, by an atomic maximum of [IoU | box] as
one int64. The maximum does not depend on the order of the programs. Where all boxes contest, another kernel gives the
anchors that several boxes took to the best of all.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.kernels._boxes import overlap
from detops.kernels._launch import cdiv, kernel, plain
from detops.kernels._tiles import hull_of, points_of, range_of
from detops.kernels._top_list import FIXED, NONE, enter, ordered, slots_for

BLOCK_TILE = 64  # anchors of a tile, which are all of one level
BLOCK_REACH = 128  # tiles of which a program sees at once how far they are
FEW_SLOTS = 256  # candidates of a box that one warp holds
BLOCK_OUT = 256  # anchors of a program that writes the result
BLOCK_CONTEST = 64  # anchors of a program that settles contests
LOW = tl.constexpr(2**32 - 1)
LARGEST = tl.constexpr(3.4028234663852886e38)  # of the finite numbers
SLACK = tl.constexpr(1 - 1e-6)  # more than the rounding of a squared distance


@triton.jit
def _centers(anchors, a, mask):
    """The centres of anchors."""
    anchor = anchors + a * 4
    x = (tl.load(anchor, mask=mask, other=0.0) + tl.load(anchor + 2, mask=mask, other=0.0)) / 2
    y = (tl.load(anchor + 1, mask=mask, other=0.0) + tl.load(anchor + 3, mask=mask, other=0.0)) / 2
    return x, y


@kernel(tensors=6, num_warps=1)
def tiles_kernel(
    anchors,  # (A, 4)
    hulls,  # (4, T): becomes the hull of the centres of each tile
    edges,  # (T + LEVELS + 2,) int32: becomes the first anchor of each tile, A, the first tile of each level, T
    best,  # (B, A) int64, becomes -1
    times,  # (B, A) int32, becomes 0; not touched without ALL_BOXES
    positives,  # (B,) int64, becomes 0
    starts,  # a tuple: the first anchor of each level
    firsts,  # a tuple: the first tile of each level
    sizes,  # a tuple: the number of anchors of each level
    A,
    T,
    LEVELS: tl.constexpr,
    ALL_BOXES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Prepare a tile of anchors for one image."""
    tile = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    first, end = range_of(tile, firsts, starts, sizes, LEVELS, BLOCK)
    a = first + tl.arange(0, BLOCK)
    tl.store(best + b * A + a, -1, mask=a < end)
    if ALL_BOXES:
        tl.store(times + b * A + a, 0, mask=a < end)
    if tile == 0:
        tl.store(positives + b, 0)
    if b == 0:
        x, y = _centers(anchors, a, a < end)
        low_x, low_y, high_x, high_y = hull_of(x, y, x, y, a < end)
        tl.store(hulls + tile, low_x)
        tl.store(hulls + T + tile, low_y)
        tl.store(hulls + 2 * T + tile, high_x)
        tl.store(hulls + 3 * T + tile, high_y)
        tl.store(edges + tile, first)
        tl.store(edges + T, A)
        tl.store(edges + T + 1 + LEVELS, T)
        for level in tl.static_range(LEVELS):
            tl.store(edges + T + 1 + level, plain(firsts[level]))


@triton.jit
def _distances(hulls, tiles, end, T, cx, cy):
    """Ranks of the squared distances below which no anchor of some tiles is; NONE from `end` on."""
    there = tiles < end
    dx = tl.maximum(
        tl.load(hulls + tiles, mask=there, other=0.0) - cx, cx - tl.load(hulls + 2 * T + tiles, mask=there, other=0.0)
    )
    dy = tl.maximum(
        tl.load(hulls + T + tiles, mask=there, other=0.0) - cy,
        cy - tl.load(hulls + 3 * T + tiles, mask=there, other=0.0),
    )
    dx, dy = tl.maximum(dx, 0.0), tl.maximum(dy, 0.0)
    return tl.where(there, ordered((dx * dx + dy * dy) * SLACK), NONE)


@triton.jit
def _enter_tile(
    ranks, indices, last, last_index, anchors, edges, valid, tile, cx, cy, HAS_VALID: tl.constexpr, BLOCK: tl.constexpr
):
    """Enter the anchors of a tile into the list of the nearest; one at a NaN is the farthest."""
    a, inside = points_of(edges, tile, BLOCK)
    if HAS_VALID:
        inside = inside & (tl.load(valid + a, mask=inside, other=0) > 0)
    x, y = _centers(anchors, a, inside)
    dx, dy = x - cx, y - cy
    distance = dx * dx + dy * dy
    rank = tl.where(inside, ordered(tl.where(distance == distance, distance, float("nan"))), NONE)
    return enter(ranks, indices, last, last_index, rank, a)


def _take(
    anchors,  # (A, 4)
    boxes,  # (B, N, 4)
    labels,  # (B, N)
    sample_sizes,  # (B,), not read without HAS_SIZES
    valid,  # (B, A) uint8, not read without HAS_VALID
    best,  # (B, A) int64, -1 where no box took an anchor
    times,  # (B, A) int32 zeros, how many boxes took an anchor; not touched without ALL_BOXES
    exists,  # (B, N) uint8, becomes which boxes take part; not touched without ALL_BOXES
    thresholds,  # (B, N)
    hulls,  # (4, T)
    edges,  # (T + LEVELS + 2,)
    A,
    T,
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
    BLOCK_T: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Find the anchors of one box."""
    n = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
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
        valid += b * A
        slots = tl.arange(0, SLOTS)
        chosen = -slots + NONE  # that is no anchor until one is entered
        for level in range(0, LEVELS):
            begin, end = tl.load(edges + T + 1 + level), tl.load(edges + T + 2 + level)
            # The list of a level has slots of its own.
            ranks = tl.where((slots >= level * TOPK) & (slots < (level + 1) * TOPK), NONE, FIXED)
            last = tl.max(ranks, 0)
            last_index = tl.max(tl.where(ranks == last, chosen, 0), 0)
            least, at = tl.full((BLOCK_T,), NONE, tl.int32), tl.full((BLOCK_T,), NONE, tl.int32)
            for first in range(begin, end, BLOCK_T):
                tiles = first + tl.arange(0, BLOCK_T)
                distance = _distances(hulls, tiles, end, T, cx, cy)
                at = tl.where(distance < least, tiles, at)
                least = tl.minimum(distance, least)
            nearest = tl.min(tl.where(least == tl.min(least, 0), at, NONE), 0)
            if begin < end:
                ranks, chosen, last, last_index = _enter_tile(
                    ranks, chosen, last, last_index, anchors, edges, valid, nearest, cx, cy, HAS_VALID, BLOCK
                )
            for first in range(begin, end, BLOCK_T):
                tiles = first + tl.arange(0, BLOCK_T)
                left = tl.where(tiles == nearest, NONE, _distances(hulls, tiles, end, T, cx, cy))
                distance = tl.min(left, 0)
                while (distance <= last) & (distance < NONE):
                    tile = tl.min(tl.where(left == distance, tiles, NONE), 0)
                    ranks, chosen, last, last_index = _enter_tile(
                        ranks, chosen, last, last_index, anchors, edges, valid, tile, cx, cy, HAS_VALID, BLOCK
                    )
                    left = tl.where(tiles == tile, NONE, left)
                    distance = tl.min(left, 0)
        there = chosen < A
        count = tl.sum(there.to(tl.int32), 0)
        anchor = anchors + chosen * 4
        u1 = tl.load(anchor, mask=there, other=0.0)
        v1 = tl.load(anchor + 1, mask=there, other=0.0)
        u2 = tl.load(anchor + 2, mask=there, other=0.0)
        v2 = tl.load(anchor + 3, mask=there, other=0.0)
        area, other_area = (u2 - u1) * (v2 - v1), (x2 - x1) * (y2 - y1)
        inter, union = overlap(u1, v1, u2, v2, area, x1, y1, x2, y2, other_area)
        iou = inter / union
        iou = tl.where(there & (iou >= 0), iou, 0.0)
        number = tl.maximum(count, 1).to(tl.float32)
        top = tl.max(iou, 0)  # the mean is relative to it: then that of equal IoUs is exact, and they reach it
        mean = top + tl.sum(tl.where(there, iou - top, 0.0), 0) / number
        apart = tl.where(there, iou - mean, 0.0)
        threshold = mean + tl.sqrt(tl.sum(apart * apart, 0) / tl.maximum(number - 1, 1.0))
        tl.store(thresholds + b * N + n, tl.where(count > 0, threshold, float("inf")))
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
            tl.atomic_add(times + b * A + chosen, tl.full((SLOTS,), 1, tl.int32), mask=taken, sem="relaxed")
    else:
        tl.store(thresholds + b * N + n, float("inf"))


take_kernel = kernel(tensors=11, num_warps=1)(_take)
take_many_kernel = kernel(tensors=11, num_warps=8)(_take)  # where one warp does not hold the candidates


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
    if batch == 0 or boxes == 0 or count == 0:
        index = torch.full((batch, count), -1, dtype=torch.int64, device=device)
        overlaps = torch.zeros(batch, count, dtype=torch.float32, device=device)
        thresholds = torch.full((batch, boxes), torch.inf, dtype=torch.float32, device=device)
        return index, overlaps, thresholds, torch.zeros(batch, dtype=torch.int64, device=device)
    best, index = (torch.empty(batch, count, dtype=torch.int64, device=device) for _ in range(2))
    overlaps, thresholds = (torch.empty(batch, n, dtype=torch.float32, device=device) for n in (count, boxes))
    box, anchor = gt_boxes.to(torch.float32).contiguous(), anchors.to(torch.float32).contiguous()
    labels, positives = gt_labels.contiguous(), torch.empty(batch, dtype=torch.int64, device=device)
    times, exists = best, best
    if all_boxes:
        times = torch.empty(batch, count, dtype=torch.int32, device=device)
        exists = torch.empty(batch, boxes, dtype=torch.uint8, device=device)
    levels, per_level = len(level_sizes), [cdiv(size, BLOCK_TILE) for size in level_sizes]
    tiles = sum(per_level)
    hulls = torch.empty(4, tiles, dtype=torch.float32, device=device)
    edges = torch.empty(tiles + levels + 2, dtype=torch.int32, device=device)
    starts, firsts = (tuple(sum(sizes[:i]) for i in range(levels)) for sizes in (level_sizes, per_level))
    tiles_kernel(
        (tiles, batch),
        (anchor, hulls, edges, best, times, positives),
        (starts, firsts, tuple(level_sizes), count, tiles),
        (levels, all_boxes, BLOCK_TILE),
    )
    slots = slots_for(topk * levels)
    take = take_kernel if slots <= FEW_SLOTS else take_many_kernel
    take(
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
            hulls,
            edges,
        ),
        (count, tiles, boxes, num_classes, float(margin)),
        (
            levels, topk, strict, all_boxes, sample_sizes is not None, valid is not None, BLOCK_TILE, BLOCK_REACH,
            slots,
        ),
    )  # fmt: skip
    if all_boxes:
        contest_kernel(
            (cdiv(count, BLOCK_CONTEST), batch), (anchor, box, exists, times, best), (count, boxes), (BLOCK_CONTEST,)
        )
    result_kernel((cdiv(count, BLOCK_OUT), batch), (best, index, overlaps, positives), (count,), (BLOCK_OUT,))
    return index, overlaps, thresholds, positives
