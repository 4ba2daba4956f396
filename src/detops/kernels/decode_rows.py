"""`decode_rows` in Triton: a program per run of points of one level and image; one launch for all levels."""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._launch import cdiv, kernel, level_of, map_of, next_power_of_2, number_of

BLOCK = 64  # points per program
BLOCK_CLASSES = 16  # classes of a step
LARGEST = tl.constexpr(3.4028234663852886e38)  # of the finite numbers


@kernel(tensors=6, num_warps=4)
def rows_kernel(
    outputs,  # a tuple: each level's (B, R, 5 + C)
    points,  # (A, 3)
    boxes,  # (B, A, 4)
    labels,  # (B, A) int64
    logits,  # (B, A)
    objectness,  # (B, A)
    strides,  # a tuple: batch, row and column of each level, one after another
    firsts,  # a tuple, as the next two: the first program of each level
    starts,  # its first point
    rows,  # how many it has
    C,
    A,
    LEVELS: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Decode a run of rows. With TOGETHER, columns lie side by side in memory."""
    b = tl.program_id(1).to(tl.int64)
    level = level_of(tl.program_id(0), firsts, LEVELS)
    row = (tl.program_id(0) - number_of(firsts, level, LEVELS, 1, 0)) * BLOCK + tl.arange(0, BLOCK)
    there = row < number_of(rows, level, LEVELS, 1, 0)
    a = number_of(starts, level, LEVELS, 1, 0) + row
    stride_c = tl.full((), 1, tl.int32)
    if not TOGETHER:
        stride_c = number_of(strides, level, LEVELS, 3, 2)
    source = map_of(outputs, level, LEVELS) + b * number_of(strides, level, LEVELS, 3, 0)
    source += row.to(tl.int64) * number_of(strides, level, LEVELS, 3, 1)

    stride = tl.load(points + a * 3 + 2, mask=there, other=1.0)
    half = stride / 2
    left, top = (
        tl.load(points + a * 3, mask=there, other=0.0) - half,
        (tl.load(points + a * 3 + 1, mask=there, other=0.0) - half),
    )
    cx = tl.load(source, mask=there, other=0.0).to(tl.float32) * stride + left
    cy = tl.load(source + stride_c, mask=there, other=0.0).to(tl.float32) * stride + top
    w = tl.exp(tl.load(source + 2 * stride_c, mask=there, other=0.0).to(tl.float32)) * half
    h = tl.exp(tl.load(source + 3 * stride_c, mask=there, other=0.0).to(tl.float32)) * half
    x1, y1, x2, y2 = cx - w, cy - h, cx + w, cy + h
    # Comparisons are false for NaN.
    known = (tl.abs(x1) <= LARGEST) & (tl.abs(y1) <= LARGEST) & (tl.abs(x2) <= LARGEST) & (tl.abs(y2) <= LARGEST)
    box = boxes + (b * A + a) * 4
    tl.store(box, x1, mask=there)
    tl.store(box + 1, y1, mask=there)
    tl.store(box + 2, x2, mask=there)
    tl.store(box + 3, y2, mask=there)
    tl.store(objectness + b * A + a, tl.load(source + 4 * stride_c, mask=there, other=0.0).to(tl.float32), mask=there)

    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    label = tl.zeros((BLOCK,), tl.int32)
    for c in range(0, C, BLOCK_C):
        column = c + tl.arange(0, BLOCK_C)[None, :]
        wanted = there[:, None] & (column < C)
        value = tl.load(source[:, None] + (5 + column) * stride_c, mask=wanted, other=-float("inf")).to(tl.float32)
        known = known & (tl.max((value != value).to(tl.int32), 1) == 0)
        highest = tl.max(value, 1)
        place = tl.min(tl.where(value == highest[:, None], column, C), 1)
        label = tl.where(highest > best, place, label)
        best = tl.maximum(best, highest)
    tl.store(labels + b * A + a, tl.where(known, label, 0).to(tl.int64), mask=there)
    tl.store(logits + b * A + a, tl.where(known, best, float("nan")), mask=there)


def decode_rows(outputs: list[Tensor], points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernel; arguments and meaning as in `detops.reference.decode_rows`."""
    batch, levels, num_points = len(outputs[0]), len(outputs), len(points)
    points = points.to(torch.float32).contiguous()
    boxes = points.new_empty(batch, num_points, 4)
    labels = points.new_empty((batch, num_points), dtype=torch.int64)
    logits, objectness = (points.new_empty(batch, num_points) for _ in range(2))
    counts = tuple(output.shape[1] for output in outputs)
    programs = [cdiv(count, BLOCK) for count in counts]
    if labels.numel():
        rows_kernel(
            (sum(programs), batch),
            (tuple(outputs), points, boxes, labels, logits, objectness),
            (
                tuple(stride for output in outputs for stride in output.stride()),
                tuple(sum(programs[:i]) for i in range(levels)),
                tuple(sum(counts[:i]) for i in range(levels)),
                counts,
                outputs[0].shape[2] - 5,
                num_points,
            ),
            (
                levels,
                all(output.stride(2) == 1 for output in outputs),
                BLOCK,
                min(BLOCK_CLASSES, next_power_of_2(outputs[0].shape[2] - 5)),
            ),
        )
    return boxes, labels, logits, objectness
