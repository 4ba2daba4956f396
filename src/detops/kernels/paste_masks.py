"""`paste_masks` in Triton: each program writes one tile of one image, and reads the mask only inside its box.

PyTorch computes the positions, which are float64, once for each row and column. A pixel then costs four reads of a
small mask, which stays in the cache, and three interpolations. Every byte of the result is written once.
"""

from ctypes import c_float

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.geometry.mask_sampling import bordered, samples
from detops.kernels._launch import cdiv, kernel

TILE = (16, 128)  # rows and columns of an image


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
    rows, along_y, columns, along_x = samples(boxes, (masks.shape[1], masks.shape[2]), height, width)
    paste_kernel(
        (count * cdiv(height, TILE[0]) * cdiv(width, TILE[1]),),
        (mask, rows.to(torch.int32), along_y, columns.to(torch.int32), along_x, pasted.view(torch.uint8)),
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
