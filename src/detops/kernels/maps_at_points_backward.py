"""`maps_at_points_backward` in Triton: a program per tile of a map, whose cells no other writes, and no atomics.

The weight of a point at a cell is the product of two tents, one per axis, so the sum over points is a product of
matrices: (rows x points) with the gradients, times (points x columns).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._launch import cdiv, kernel
from detops.kernels._map_points import position_of

TILE, BLOCK = 32, 64  # cells along each side, points at once
DOUBLE_TILE = 8  # float64, without a product of matrices


@triton.jit
def tent(position, cell):
    """Return the weight of points at cells; 0 for NaN."""
    weight = 1 - tl.abs(position - cell)
    return tl.where(weight > 0, weight, 0.0)


@kernel(tensors=4)
def scatter_kernel(
    gradient,  # (B, M, P), of any strides
    index,  # (B, M), not read without HAS_INDEX
    points,  # (B, M, P, 2), of any strides
    out,  # (B, Q, h, w)
    Q,
    h,
    w,
    M,
    P,
    gradient_image,
    gradient_row,
    gradient_number,
    point_image,
    point_row,
    point_number,
    point_axis,
    HAS_INDEX: tl.constexpr,
    BORDER: tl.constexpr,
    DOUBLE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the gradients of all points at the cells of one tile."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    pid = tl.program_id(0).to(tl.int64)
    across, down = tl.cdiv(w, TILE), tl.cdiv(h, TILE)
    map_, tile = pid // (across * down), pid % (across * down)
    b, q = map_ // Q, map_ % Q
    line = tile // across * TILE + tl.arange(0, TILE)
    column = tile % across * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), COMPUTE)
    first, last = q, q + 1
    if HAS_INDEX:
        first, last = q * 0, q * 0 + M
    for m in range(first, last):
        own = q
        if HAS_INDEX:
            own = tl.load(index + b * M + m).to(tl.int64)
        if own == q:
            for block in range(0, P, BLOCK):
                p = block + tl.arange(0, BLOCK)
                there = p < P
                given = tl.load(
                    gradient + b * gradient_image + m * gradient_row + p * gradient_number, mask=there, other=0
                ).to(COMPUTE)
                point = points + b * point_image + m * point_row + p * point_number
                x = position_of(tl.load(point, mask=there, other=0).to(COMPUTE), w, BORDER)
                y = position_of(tl.load(point + point_axis, mask=there, other=0).to(COMPUTE), h, BORDER)
                by_line = tent(y[None, :], line[:, None].to(COMPUTE)) * given[None, :]
                if DOUBLE:
                    by_column = tent(x[None, :], column[:, None].to(COMPUTE))
                    total += tl.sum(by_line[:, None, :] * by_column[None, :, :], 2)
                else:
                    by_column = tent(x[:, None], column[None, :].to(COMPUTE))
                    total = tl.dot(by_line, by_column, total, input_precision="ieee")
    to = out + map_ * h * w + line[:, None] * w + column[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=(line < h)[:, None] & (column < w)[None, :])


def add_at_points(out: Tensor, gradient: Tensor, index: Tensor | None, points: Tensor, border: bool) -> None:
    """Write maps (B, Q, h, w): the sums of gradients (B, M, P), in the precision of these."""
    batch, count, height, width = out.shape
    double = accumulate_dtype(gradient) == torch.float64
    tile, block = (DOUBLE_TILE, DOUBLE_TILE) if double else (TILE, BLOCK)
    if out.numel():
        scatter_kernel(
            (batch * count * cdiv(height, tile) * cdiv(width, tile),),
            (gradient, out if index is None else index.contiguous(), points, out),
            (count, height, width, *gradient.shape[1:], *gradient.stride(), *points.stride()),
            (index is not None, border, double, tile, block),
        )


def maps_at_points_backward(
    gradient: Tensor, index: Tensor | None, points: Tensor, count: int, height: int, width: int, border: bool
) -> Tensor:
    """Launch the programs; arguments and meaning as in `detops.reference.maps_at_points_backward`."""
    out = torch.empty((len(gradient), count, height, width), dtype=gradient.dtype, device=gradient.device)
    add_at_points(out, gradient, index, points, border)
    return out
