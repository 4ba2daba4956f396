"""`maps_at_points` in Triton: one program per block of a row of points."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._launch import cdiv, kernel
from detops.kernels._map_points import position_of

BLOCK = 256  # points per program


@triton.jit
def weights_at(position, size, NEAREST: tl.constexpr):
    """Return the cell before each position, and the weights of it and of the next; 0 for a cell that is not there."""
    floor = tl.floor(position)
    cell = floor.to(tl.int64)
    after = position - floor
    if NEAREST:
        after = ((after > 0.5) | ((after == 0.5) & (cell % 2 != 0))).to(position.dtype)
    before = tl.where(cell >= 0, 1 - after, 0.0)
    after = tl.where((cell >= -1) & (cell + 1 < size), after, 0.0)
    return cell, before, after


@triton.jit
def corner(map_, y, x, weight, by_row, by_column):
    """Return what a cell adds; it is not read where its weight is 0."""
    value = tl.load(map_ + y * by_row + x * by_column, mask=weight != 0, other=0)
    return value.to(weight.dtype) * weight


@kernel(tensors=4, enable_fp_fusion=False)
def read_kernel(
    maps,  # (B, Q, h, w), of any strides
    index,  # (B, M), not read without HAS_INDEX
    points,  # (B, M, P, 2), of any strides
    out,  # (B, M, P)
    Q,
    h,
    w,
    M,
    P,
    map_image,
    map_query,
    map_row,
    map_column,
    point_image,
    point_row,
    point_number,
    point_axis,
    HAS_INDEX: tl.constexpr,
    NEAREST: tl.constexpr,
    BORDER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Read one map at a block of points."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(P, BLOCK)
    row, first = pid // blocks, pid % blocks * BLOCK
    b, m = row // M, row % M
    q = m
    if HAS_INDEX:
        q = tl.load(index + row).to(tl.int64)
    p = first + tl.arange(0, BLOCK)
    own = q + tl.zeros((BLOCK,), tl.int64)
    there = (p < P) & (own >= 0) & (own < Q)
    point = points + b * point_image + m * point_row + p * point_number
    COMPUTE: tl.constexpr = out.dtype.element_ty
    x = position_of(tl.load(point, mask=there, other=0).to(COMPUTE), w, BORDER)
    y = position_of(tl.load(point + point_axis, mask=there, other=0).to(COMPUTE), h, BORDER)
    column, left, right = weights_at(x, w, NEAREST)
    line, top, bottom = weights_at(y, h, NEAREST)
    map_ = maps + b * map_image + q * map_query
    top, bottom = tl.where(there, top, 0.0), tl.where(there, bottom, 0.0)
    value = corner(map_, line, column, top * left, map_row, map_column)
    value += corner(map_, line, column + 1, top * right, map_row, map_column)
    value += corner(map_, line + 1, column, bottom * left, map_row, map_column)
    value += corner(map_, line + 1, column + 1, bottom * right, map_row, map_column)
    tl.store(out + row * P + p, value, mask=p < P)


def maps_at_points(maps: Tensor, index: Tensor | None, points: Tensor, nearest: bool, border: bool) -> Tensor:
    """Read all points; arguments and meaning as in `detops.reference.maps_at_points`."""
    count, height, width = maps.shape[1:]
    batch, rows, number = points.shape[:3]
    out = torch.empty((batch, rows, number), dtype=accumulate_dtype(maps), device=maps.device)
    values = maps.view(torch.uint8) if maps.dtype == torch.bool else maps
    if 0 in maps.shape:
        return out.zero_()
    if out.numel():
        read_kernel(
            (batch * rows * cdiv(number, BLOCK),),
            (values, out if index is None else index.contiguous(), points, out),
            (count, height, width, rows, number, *maps.stride(), *points.stride()),
            (index is not None, nearest, border, BLOCK),
        )
    return out
