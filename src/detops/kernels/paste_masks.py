"""`paste_masks` in Triton: each program writes one tile of one image, and reads the mask only inside its box.

The positions, which are float64, are computed once for each row and column, by a kernel of their own. A pixel then
costs four reads of a small mask, which stays in the cache, and three interpolations. Every byte of the result is
written once.
"""

from ctypes import c_float

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.geometry.mask_sampling import bordered
from detops.kernels._launch import cdiv, kernel

TILE = (16, 128)  # rows and columns of an image
BLOCK_POSITIONS = 256  # rows and columns per program of the kernel of positions


@triton.jit
def between(first, second, fraction):
    """Interpolate linearly; compiled without fused multiply-add."""
    return first + (second - first) * fraction


@triton.jit
def value_at(mask, row, along_y, column, along_x, stride, valid):
    """Return the value of pixels; `row` and `column` are the cells before them in the bordered `mask`."""
    cell = mask + row * stride + column
    top = between(tl.load(cell, mask=valid, other=0), tl.load(cell + 1, mask=valid, other=0), along_x)
    below = cell + stride
    bottom = between(tl.load(below, mask=valid, other=0), tl.load(below + 1, mask=valid, other=0), along_x)
    return between(top, bottom, along_y)


@kernel(tensors=5, enable_fp_fusion=False)
def positions_kernel(
    boxes,  # (N, 4)
    rows,  # (N, H) int32
    along_y,  # (N, H)
    columns,  # (N, W) int32
    along_x,  # (N, W)
    H,
    W,
    h,
    w,
    BLOCK: tl.constexpr,
):
    """Write where the rows and columns of an image fall on a mask, as `detops.geometry.mask_sampling.samples`."""
    n = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    box = boxes + n * 4 + tl.zeros((BLOCK,), tl.int32)
    x1, y1 = tl.load(box).to(tl.float64), tl.load(box + 1).to(tl.float64)
    x2, y2 = tl.load(box + 2).to(tl.float64), tl.load(box + 3).to(tl.float64)
    # Infinite corners make a side that is infinite or NaN, and comparisons with NaN are false.
    usable = (x2 - x1 > 0) & (x2 - x1 < float("inf")) & (y2 - y1 > 0) & (y2 - y1 < float("inf"))
    is_row = i < H
    low, side = tl.where(is_row, y1, x1), tl.where(is_row, y2 - y1, x2 - x1)
    cells = tl.where(is_row, h, w).to(tl.float64)
    pixel = tl.where(is_row, i, i - H).to(tl.float64) + 0.5
    position = (pixel - low) / tl.where(usable, side, 1.0) * cells - 0.5
    position = tl.where(usable & (position >= -1) & (position < cells), position, -1.0)
    cell = tl.floor(position)
    before, fraction = cell.to(tl.int32) + 1, (position - cell).to(tl.float32)
    tl.store(rows + n * H + i, before, mask=is_row)
    tl.store(along_y + n * H + i, fraction, mask=is_row)
    column = n * W + i - H
    is_column = (i >= H) & (i < H + W)
    tl.store(columns + column, before, mask=is_column)
    tl.store(along_x + column, fraction, mask=is_column)


def positions(boxes: Tensor, mask_size: tuple[int, int], height: int, width: int) -> tuple[Tensor, ...]:
    """Launch one program per mask and block of lines; return int32 cells and fractions of rows, then of columns."""
    count, given = len(boxes), boxes.contiguous()
    rows, columns = (given.new_empty(count, size, dtype=torch.int32) for size in (height, width))
    along_y, along_x = (given.new_empty(count, size, dtype=torch.float32) for size in (height, width))
    if count and height + width:
        positions_kernel(
            (count, cdiv(height + width, BLOCK_POSITIONS)),
            (given, rows, along_y, columns, along_x),
            (height, width, *mask_size),
            (BLOCK_POSITIONS,),
        )
    return rows, along_y, columns, along_x


@kernel(tensors=6, specialize=("W",), enable_fp_fusion=False)
def paste_kernel(
    masks,  # (N, h + 2, w + 2) float32 with a border of zeros
    rows,  # (N, H) int32
    along_y,  # (N, H)
    columns,  # (N, W) int32
    along_x,  # (N, W)
    pasted,  # (N, H, W) uint8
    H,
    W,
    stride,
    cells,
    threshold,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Write one tile of one image."""
    pid = tl.program_id(0)
    tiles_w = tl.cdiv(W, BLOCK_W)
    tiles_h = tl.cdiv(H, BLOCK_H)
    n = (pid // (tiles_w * tiles_h)).to(tl.int64)
    x = pid % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W)
    y = pid // tiles_w % tiles_h * BLOCK_H + tl.arange(0, BLOCK_H)
    column = tl.load(columns + n * W + x, mask=x < W, other=0)
    fx = tl.load(along_x + n * W + x, mask=x < W, other=0)
    row = tl.load(rows + n * H + y, mask=y < H, other=0)
    fy = tl.load(along_y + n * H + y, mask=y < H, other=0)
    in_x = (column > 0) | (fx > 0)
    in_y = (row > 0) | (fy > 0)
    out = pasted + (n * H + y[:, None]) * W + x[None, :]
    written = (y < H)[:, None] & (x < W)[None, :]
    inside = tl.zeros((BLOCK_H, BLOCK_W), tl.uint8)
    if (tl.max(in_x.to(tl.int32), 0) > 0) & (tl.max(in_y.to(tl.int32), 0) > 0):
        valid = in_y[:, None] & in_x[None, :]
        value = value_at(masks + n * cells, row[:, None], fy[:, None], column[None, :], fx[None, :], stride, valid)
        inside = (valid & (value >= threshold)).to(tl.uint8)
    tl.store(out, inside, mask=written)


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Launch one program per tile; arguments and meaning as in `detops.reference.paste_masks`."""
    count = len(masks)
    pasted = torch.empty((count, height, width), dtype=torch.bool, device=masks.device)
    if pasted.numel() == 0:
        return pasted
    mask = bordered(masks).contiguous()
    tables = positions(boxes, (masks.shape[1], masks.shape[2]), height, width)
    paste_kernel(
        (count * cdiv(height, TILE[0]) * cdiv(width, TILE[1]),),
        (mask, *tables, pasted.view(torch.uint8)),
        (
            height,
            width,
            mask.shape[2],
            mask.shape[1] * mask.shape[2],
            c_float(threshold).value,  # rounded as the masks are
        ),
        TILE,
    )
    return pasted
