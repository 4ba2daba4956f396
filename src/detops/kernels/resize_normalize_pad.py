"""`resize_normalize_pad` in Triton: one launch for images of all sizes, one program per tile of an image's result.

A table holds each image's address and strides, so the images need not lie together in memory. A tile reads the bytes
under it, which its neighbours then find in the cache, and writes each value of the batch once, padding included. Grey
images have a channel stride of 0; a reversed order of channels is a negative stride that starts at the last channel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.arguments import sent
from detops.kernels._launch import cdiv, kernel

TILE = (2, 128)  # rows and columns of the batch
FIELDS = tl.constexpr(8)  # per row of the table


@triton.jit
def first_tap(place, size, resized, reach):
    """Return each resized pixel's centre, in units of 1 / (2 resized) pixels, and the first pixel with a weight."""
    center = (2 * place + 1) * size
    return center, tl.maximum(center - reach + resized, 0) // (2 * resized)


@triton.jit
def tent(pixel, center, size, resized, reach):
    """Return the weight of a pixel before normalisation to a sum of 1, as in `detops.reference`."""
    weight = tl.maximum(reach - tl.abs((2 * pixel + 1) * resized - center), 0)
    return tl.where(pixel < size, weight, 0).to(tl.float32)


@kernel(tensors=2, specialize=("width",))
def resize_kernel(
    batch,  # (B, 3, height, width), contiguous
    table,  # (B, FIELDS) int64: address, strides of channel, row and column, size, resized size
    height,
    width,
    scale_0,
    scale_1,
    scale_2,
    shift_0,
    shift_1,
    shift_2,
    ANTIALIAS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Write one tile of the three channels of one image; only with WIDE may a number need more than 32 bits."""
    INTEGER: tl.constexpr = tl.int64 if WIDE else tl.int32
    b = tl.program_id(2).to(tl.int64)
    row = table + b * FIELDS
    source = tl.load(row).to(tl.pointer_type(tl.uint8))
    stride_c = tl.load(row + 1).to(INTEGER)
    stride_h = tl.load(row + 2).to(INTEGER)
    stride_w = tl.load(row + 3).to(INTEGER)
    size_h = tl.load(row + 4).to(INTEGER)
    size_w = tl.load(row + 5).to(INTEGER)
    resized_h = tl.load(row + 6).to(INTEGER)
    resized_w = tl.load(row + 7).to(INTEGER)
    y = tl.program_id(1).to(INTEGER) * BLOCK_H + tl.arange(0, BLOCK_H)
    x = tl.program_id(0).to(INTEGER) * BLOCK_W + tl.arange(0, BLOCK_W)
    if ANTIALIAS:
        reach_h = 2 * tl.maximum(size_h, resized_h)
        reach_w = 2 * tl.maximum(size_w, resized_w)
        taps_h = (reach_h + resized_h - 1) // resized_h
        taps_w = (reach_w + resized_w - 1) // resized_w
    else:
        reach_h = 2 * resized_h
        reach_w = 2 * resized_w
        taps_h = 2
        taps_w = 2
    center_y, first_y = first_tap(y, size_h, resized_h, reach_h)
    center_x, first_x = first_tap(x, size_w, resized_w, reach_w)

    red = tl.zeros((BLOCK_H, BLOCK_W), tl.float32)
    green = tl.zeros((BLOCK_H, BLOCK_W), tl.float32)
    blue = tl.zeros((BLOCK_H, BLOCK_W), tl.float32)
    total = tl.zeros((BLOCK_H, BLOCK_W), tl.float32)
    for i in range(0, taps_h):
        v = first_y + i
        weight_y = tent(v, center_y, size_h, resized_h, reach_h)
        for j in range(0, taps_w):
            u = first_x + j
            weight = weight_y[:, None] * tent(u, center_x, size_w, resized_w, reach_w)[None, :]
            pixel = source + v[:, None] * stride_h + u[None, :] * stride_w
            read = ((v < size_h) & (y < resized_h))[:, None] & ((u < size_w) & (x < resized_w))[None, :]
            red += weight * tl.load(pixel, mask=read, other=0).to(tl.float32)
            green += weight * tl.load(pixel + stride_c, mask=read, other=0).to(tl.float32)
            blue += weight * tl.load(pixel + 2 * stride_c, mask=read, other=0).to(tl.float32)
            total += weight

    inside = (y < resized_h)[:, None] & (x < resized_w)[None, :]
    total = tl.where(inside, total, 1.0)
    visible = (y < height)[:, None] & (x < width)[None, :]
    dtype = batch.dtype.element_ty
    red = tl.where(inside, red / total * scale_0 + shift_0, 0.0).to(dtype)
    green = tl.where(inside, green / total * scale_1 + shift_1, 0.0).to(dtype)
    blue = tl.where(inside, blue / total * scale_2 + shift_2, 0.0).to(dtype)
    batch += b * 3 * height * width
    pixel = y[:, None] * width + x[None, :]
    plane = height.to(INTEGER) * width
    tl.store(batch + pixel, red, mask=visible)
    tl.store(batch + (plane + pixel), green, mask=visible)
    tl.store(batch + (2 * plane + pixel), blue, mask=visible)


def _row(image: Tensor, height: int, width: int, reverse_channels: bool) -> list[int]:
    stride = image.stride(0) if len(image) == 3 else 0
    address = image.data_ptr()
    if reverse_channels:
        address, stride = address + 2 * stride, -stride
    return [address, stride, *image.stride()[1:], *image.shape[1:], height, width]


def _is_wide(rows: list[list[int]], height: int, width: int) -> bool:
    """Whether a place in an image or in its result, or a distance in the units of `first_tap`, exceeds 32 bits."""
    largest = 3 * (height + TILE[0]) * (width + TILE[1])
    for _, stride_c, stride_h, stride_w, size_h, size_w, resized_h, resized_w in rows:
        offset = 2 * abs(stride_c) + size_h * stride_h + size_w * stride_w
        largest = max(largest, offset, 4 * size_h * (resized_h + 1), 4 * size_w * (resized_w + 1))
    return largest >= 2**31


def resize_normalize_pad(
    images: list[Tensor],
    sizes: list[int],
    height: int,
    width: int,
    mean: list[float],
    std: list[float],
    reverse_channels: bool,
    antialias: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Launch one program per tile; arguments and meaning as in `detops.reference.resize_normalize_pad`."""
    device = images[0].device
    batch = images[0].new_empty((len(images), 3, height, width), dtype=dtype)
    if batch.numel() == 0:
        return batch
    rows = [_row(image, *sizes[2 * b : 2 * b + 2], reverse_channels) for b, image in enumerate(images)]
    table = sent("images", torch.tensor(rows, dtype=torch.int64), device)  # which holds addresses
    resize_kernel(
        (cdiv(width, TILE[1]), cdiv(height, TILE[0]), len(images)),
        (batch, table),
        (height, width, *(1 / s for s in std), *(-m / s for m, s in zip(mean, std, strict=True))),
        (antialias, _is_wide(rows, height, width), *TILE),
    )
    return batch
