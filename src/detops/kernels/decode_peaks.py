"""`decode_peaks` in Triton: one pass over the heatmap, PyTorch's `topk` of what it leaves, and one for the boxes.

A key is an int64 that is higher for a higher logit, and for a lower index of equal ones. A block of the heatmap keeps
only its highest keys, so that `topk` reads a fraction of its size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.geometry.levels import dense_map
from detops.kernels._launch import cdiv, kernel, next_power_of_2

BLOCK = 2048  # logits of a program
BLOCK_READ = 256
LEAST_KEPT = 16  # keys of a block
NONE = tl.constexpr(-(2**63))
LOW = tl.constexpr(2**32 - 1)


@triton.jit
def _ordered(bits):
    """The bits of a float32 as an int32 that sorts as it does, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@kernel(tensors=2, num_warps=8)
def peaks_kernel(
    logits,  # (B, C, H, W), in memory order
    keys,  # (B, programs, KEEP)
    C,
    H,
    W,
    reach,
    BY_CLASS: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find the peaks of a block of one image. With BY_CLASS its maps follow one another, else classes lie together."""
    b = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = place < C * H * W
    source = logits + b * C * H * W + place
    value = tl.load(source, mask=there, other=float("nan")).to(tl.float32)
    if BY_CLASS:
        column, row, label = place % W, place // W % H, place // (H * W)
        step = 1
    else:
        label, column, row = place % C, place // C % W, place // (C * W)
        step = C
    peak = value > float("-inf")
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            inside = there & (row + dy >= 0) & (row + dy < H) & (column + dx >= 0) & (column + dx < W)
            other = tl.load(source + (dy * W + dx) * step, mask=inside, other=float("-inf")).to(tl.float32)
            peak = peak & (value >= other)
    bits = _ordered((value + 0.0).to(tl.int32, bitcast=True)).to(tl.int64)
    index = (label * H + row) * W + column
    key = tl.where(peak, (bits << 32) - index.to(tl.int64), NONE)
    sink = keys + (b * tl.num_programs(0) + tl.program_id(0)) * KEEP
    if KEEP < BLOCK:
        tl.store(sink + tl.arange(0, KEEP), tl.topk(key, KEEP))
    else:
        tl.store(sink + tl.arange(0, BLOCK), key)


@kernel(tensors=6, num_warps=4)
def boxes_kernel(
    keys,  # (B, K)
    wh,  # (B, 2, H, W)
    offset,  # (B, 2, H, W)
    boxes,  # (B, K, 4)
    labels,  # (B, K) int64
    values,  # (B, K)
    K,
    H,
    W,
    scale_x,
    scale_y,
    wh_b,  # strides
    wh_c,
    wh_y,
    wh_x,
    offset_b,
    offset_c,
    offset_y,
    offset_x,
    BLOCK: tl.constexpr,
):
    """Turn an image's keys into boxes, labels and logits."""
    b = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = k < K
    i = b * K + k
    key = tl.load(keys + i, mask=inside, other=NONE)
    exists = key != NONE
    index = -key & LOW
    bits = _ordered(((key + index) >> 32).to(tl.int32))
    index = tl.where(exists, index, 0)
    column, row = index % W, index // W % H
    size = wh + b * wh_b + row * wh_y + column * wh_x
    shift = offset + b * offset_b + row * offset_y + column * offset_x
    half_w = tl.load(size, mask=exists, other=0.0).to(tl.float32) / 2
    half_h = tl.load(size + wh_c, mask=exists, other=0.0).to(tl.float32) / 2
    x = column.to(tl.float32) + tl.load(shift, mask=exists, other=0.0).to(tl.float32)
    y = row.to(tl.float32) + tl.load(shift + offset_c, mask=exists, other=0.0).to(tl.float32)
    tl.store(boxes + i * 4, tl.where(exists, (x - half_w) * scale_x, 0.0), mask=inside)
    tl.store(boxes + i * 4 + 1, tl.where(exists, (y - half_h) * scale_y, 0.0), mask=inside)
    tl.store(boxes + i * 4 + 2, tl.where(exists, (x + half_w) * scale_x, 0.0), mask=inside)
    tl.store(boxes + i * 4 + 3, tl.where(exists, (y + half_h) * scale_y, 0.0), mask=inside)
    tl.store(labels + i, tl.where(exists, index // (H * W), -1), mask=inside)
    tl.store(values + i, tl.where(exists, bits.to(tl.float32, bitcast=True), float("nan")), mask=inside)


def decode_peaks(
    logits: Tensor, wh: Tensor, offset: Tensor, kernel: int, scale_x: float, scale_y: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernels; arguments and meaning as in `detops.reference.decode_peaks`."""
    logits = dense_map(logits)
    batch, classes, height, width = logits.shape
    size = classes * height * width
    places = min(count, size)
    boxes = torch.empty(batch, places, 4, dtype=torch.float32, device=logits.device)
    labels = torch.empty(batch, places, dtype=torch.int64, device=logits.device)
    values = torch.empty(batch, places, dtype=torch.float32, device=logits.device)
    if not values.numel():
        return boxes, labels, values
    keep, programs = min(BLOCK, max(LEAST_KEPT, next_power_of_2(places))), cdiv(size, BLOCK)
    keys = torch.empty(batch, programs * keep, dtype=torch.int64, device=logits.device)
    by_class = logits.is_contiguous()
    peaks_kernel((programs, batch), (logits, keys), (classes, height, width, kernel // 2), (by_class, keep, BLOCK))
    boxes_kernel(
        (cdiv(places, BLOCK_READ), batch),
        (keys.topk(places, 1).values, wh, offset, boxes, labels, values),
        (places, height, width, scale_x, scale_y, *wh.stride(), *offset.stride()),
        (BLOCK_READ,),
    )
    return boxes, labels, values
