"""`decode_distances` in Triton: a program per run of points of one level and image; one launch for all levels."""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._launch import cdiv, kernel, next_power_of_2, plain

BLOCK = 64  # points per program


@kernel(tensors=3, num_warps=4)
def decode_kernel(
    levels,  # a tuple: each level's (B, 4 * BINS, H, W)
    points,  # (A, 3)
    boxes,  # (B, A, 4)
    strides_b,  # tuples, of each level
    strides_c,
    strides_y,
    strides_x,
    starts,  # its first point
    rows,  # how many it has
    widths,
    A,
    LEVELS: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """The boxes of a run of points."""
    which = tl.program_id(1) % LEVELS
    b = (tl.program_id(1) // LEVELS).to(tl.int64)
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.arange(0, BLOCK_J)[None, :]
    for level in tl.static_range(LEVELS):
        if which == level:
            there = r < plain(rows[level])
            if tl.max(there.to(tl.int32), 0) > 0:
                a = plain(starts[level]) + r
                stride = tl.load(points + a * 3 + 2, mask=there, other=0.0)
                y, x = r // plain(widths[level]), r % plain(widths[level])
                place = levels[level] + b * plain(strides_b[level])
                place += y.to(tl.int64) * plain(strides_y[level]) + x.to(tl.int64) * plain(strides_x[level])
                for side in tl.static_range(4):
                    center = tl.load(points + a * 3 + side % 2, mask=there, other=0.0)
                    at = place[:, None] + (side * BINS + j) * plain(strides_c[level])
                    inside = there[:, None] & (j < BINS)
                    raw = tl.load(at, mask=inside, other=0.0).to(tl.float32)
                    if BINS == 1:
                        distance = tl.sum(raw, 1)
                    else:
                        top = tl.max(tl.where(j < BINS, raw, -float("inf")), 1)
                        e = tl.where(j < BINS, tl.exp(raw - top[:, None]), 0.0)
                        distance = tl.sum(e * j.to(tl.float32), 1) / tl.sum(e, 1) + tl.sum(raw * 0, 1)
                    away = distance * stride
                    if side < 2:
                        value = center - away
                    else:
                        value = center + away
                    tl.store(boxes + (b * A + a) * 4 + side, value, mask=there)


def decode_distances(bbox_preds: list[Tensor], points: Tensor) -> Tensor:
    """Launch the kernel; arguments and meaning as in `detops.reference.decode_distances`."""
    batch, bins, count = bbox_preds[0].shape[0], bbox_preds[0].shape[1] // 4, len(points)
    boxes = torch.empty(batch, count, 4, dtype=torch.float32, device=points.device)
    rows = tuple(level.shape[2] * level.shape[3] for level in bbox_preds)
    starts = tuple(sum(rows[:i]) for i in range(len(rows)))
    if batch and count:
        strides = (tuple(level.stride(d) for level in bbox_preds) for d in range(4))
        decode_kernel(
            (cdiv(max(rows), BLOCK), batch * len(rows)),
            (tuple(bbox_preds), points.to(torch.float32).contiguous(), boxes),
            (*strides, starts, rows, tuple(level.shape[3] for level in bbox_preds), count),
            (len(rows), bins, BLOCK, max(next_power_of_2(bins), 2)),
        )
    return boxes
