"""`maps_at_points` in Triton: one program per block of a row of points."""

import torch
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._launch import cdiv, kernel
from detops.kernels._map_points import value_at

BLOCK = 256  # points per program


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
    x = tl.load(point, mask=there, other=0).to(COMPUTE)
    y = tl.load(point + point_axis, mask=there, other=0).to(COMPUTE)
    map_ = maps + b * map_image + q * map_query
    value = value_at(map_, x, y, there, h, w, map_row, map_column, NEAREST, BORDER)
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
