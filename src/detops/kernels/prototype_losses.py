"""`prototype_losses` in Triton: a program per positive for its loss and gradient, and one per tile of prototypes.

Both compute masks within boxes alone, and what is written by one program no other writes: there are no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._launch import cdiv, kernel, next_power_of_2
from detops.kernels._softplus import softplus

CELLS = 64  # at once
ROWS, COLUMNS = 4, 16  # of a tile
FAR = 100.0


@triton.jit
def window_of(box, h, w, YOLACT: tl.constexpr):
    """Return a box's columns and rows [x1, x2), [y1, y2), and one over its area; 0 if it counts for nothing."""
    x1, y1, x2, y2 = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    area = tl.abs((x2 - x1) * (y2 - y1))
    weight = tl.where((area > 0) & (area < float("inf")), 1 / area, 0.0)
    if YOLACT:
        low_x, low_y = tl.minimum(x1, x2) - 1, tl.minimum(y1, y2) - 1
        x2, y2 = tl.maximum(x1, x2) + 1, tl.maximum(y1, y2) + 1
        x1, y1 = low_x, low_y
    return first_cell(x1, w), first_cell(y1, h), first_cell(x2, w), first_cell(y2, h), weight


@triton.jit
def first_cell(side, size):
    """Return the first cell that is not below a side, 0 .. size."""
    side = tl.where(side > 0, side, 0.0)
    return tl.ceil(tl.where(side < size, side, size.to(tl.float32))).to(tl.int64)


@kernel(tensors=7)
def positive_kernel(
    coefficients,  # (B, A, K), contiguous, as all are
    prototypes,  # (B, K, h, w)
    labels,  # (B, N, h, w) uint8
    index,  # (B, A)
    cells,  # (B, N, 4)
    losses,  # (B, A)
    of_rows,  # (B, A, K); not written without WITH_GRADIENT
    A,
    K,
    h,
    w,
    N,
    YOLACT: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    DEPTH: tl.constexpr,
    CELLS: tl.constexpr,
    FAR: tl.constexpr,
):
    """Sum over the cells of one positive's box; the gradient lacks the factor of the loss."""
    COMPUTE: tl.constexpr = losses.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    b = row // A
    n = tl.load(index + row).to(tl.int64)
    total = tl.full((), 0.0, COMPUTE)
    k = tl.arange(0, DEPTH)
    of_row = tl.zeros((DEPTH,), COMPUTE)
    if (n >= 0) & (n < N):
        x1, y1, x2, y2, weight = window_of(cells + (b * N + n) * 4, h, w, YOLACT)
        if weight > 0:
            own = tl.load(coefficients + row * K + k, mask=k < K, other=0).to(COMPUTE)
            wide, high = x2 - x1, y2 - y1
            sums, slopes = tl.zeros((CELLS,), COMPUTE), tl.zeros((DEPTH, CELLS), COMPUTE)
            for first in range(0, wide * high, CELLS):
                i = first + tl.arange(0, CELLS)
                there = i < wide * high
                cell = (y1 + i // wide) * w + x1 + i % wide
                basis = tl.load(
                    prototypes + (b * K + k[:, None]) * h * w + cell[None, :],
                    mask=(k < K)[:, None] & there[None, :], other=0,
                ).to(COMPUTE)  # fmt: skip
                y = tl.load(labels + (b * N + n) * h * w + cell, mask=there, other=0).to(COMPUTE)
                z = tl.sum(own[:, None] * basis, 0)
                up, p = softplus(z)
                sums += tl.where(there, up - z * y, 0.0)
                if YOLACT:
                    sums -= FAR * y
                slopes += tl.where(there, p - y, 0.0)[None, :] * basis
            if YOLACT:
                for first in range(0, h * w, CELLS):
                    i = first + tl.arange(0, CELLS)
                    sums += FAR * tl.load(labels + (b * N + n) * h * w + i, mask=i < h * w, other=0).to(COMPUTE)
            total = tl.sum(sums, 0) * weight
            of_row = tl.sum(slopes, 1) * weight
    tl.store(losses + row, total)
    if WITH_GRADIENT:
        tl.store(of_rows + row * K + k, of_row, mask=k < K)


@kernel(tensors=8)
def tile_kernel(
    coefficients,  # (B, A, K), contiguous, as all are
    prototypes,  # (B, K, h, w)
    labels,  # (B, N, h, w) uint8
    index,  # (B, A)
    cells,  # (B, N, 4)
    order,  # (B, A), positives first
    counts,  # (B,) of positives
    of_maps,  # (B, K, h, w)
    A,
    K,
    h,
    w,
    N,
    YOLACT: tl.constexpr,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum the gradients of all positives whose boxes meet one tile, in order."""
    COMPUTE: tl.constexpr = of_maps.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    across, down = tl.cdiv(w, COLUMNS), tl.cdiv(h, ROWS)
    b, tile = pid // (across * down), pid % (across * down)
    top, left = tile // across * ROWS, tile % across * COLUMNS
    i, k = tl.arange(0, ROWS * COLUMNS), tl.arange(0, DEPTH)
    y, x = top + i // COLUMNS, left + i % COLUMNS
    there = (k < K)[:, None] & ((y < h) & (x < w))[None, :]
    place = (b * K + k[:, None]) * h * w + (y * w + x)[None, :]
    basis = tl.load(prototypes + place, mask=there, other=0).to(COMPUTE)
    total = tl.zeros((DEPTH, ROWS * COLUMNS), COMPUTE)
    for j in range(0, tl.load(counts + b)):
        row = b * A + tl.load(order + b * A + j)
        n = tl.load(index + row).to(tl.int64)
        x1, y1, x2, y2, weight = window_of(cells + (b * N + n) * 4, h, w, YOLACT)
        if (weight > 0) & (x1 < left + COLUMNS) & (x2 > left) & (y1 < top + ROWS) & (y2 > top):
            own = tl.load(coefficients + row * K + k, mask=k < K, other=0).to(COMPUTE)
            inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
            label = tl.load(labels + (b * N + n) * h * w + y * w + x, mask=inside, other=0).to(COMPUTE)
            _, p = softplus(tl.sum(own[:, None] * basis, 0))
            slope = tl.where(inside, (p - label) * weight, 0.0)
            total += tl.where(inside[None, :], own[:, None] * slope[None, :], 0.0)
    tl.store(of_maps + place, total, mask=there)


def prototype_losses(
    coefficients: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    index: Tensor,
    cells: Tensor,
    scale: Tensor | None,
    kind: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch both kernels; arguments and meaning as in `detops.reference.prototype_losses`."""
    dtype, device = accumulate_dtype(coefficients), coefficients.device
    batch, points, depth = coefficients.shape
    height, width = prototypes.shape[2:]
    losses = torch.empty((batch, points), dtype=dtype, device=device)
    of_rows = torch.empty(coefficients.shape if with_gradient else 0, dtype=dtype, device=device)
    of_maps = torch.empty(prototypes.shape if with_gradient else 0, dtype=dtype, device=device)
    boxes, wide = cells.shape[1], next_power_of_2(max(depth, 1))
    tensors = (
        coefficients.contiguous(), prototypes.contiguous(), labels.contiguous().view(torch.uint8), index.contiguous(),
        cells.to(torch.float32).contiguous(),
    )  # fmt: skip
    sizes = (points, depth, height, width, boxes)
    if losses.numel():
        target = of_rows if with_gradient else losses
        positive_kernel(
            (batch * points,), (*tensors, losses, target), sizes, (kind == 1, with_gradient, wide, CELLS, FAR)
        )
    if of_maps.numel():
        positive = (index >= 0) & (index < boxes)
        order = positive.logical_not().byte().argsort(dim=1, stable=True)
        programs = batch * cdiv(height, ROWS) * cdiv(width, COLUMNS)
        tile_kernel((programs,), (*tensors, order, positive.sum(1), of_maps), sizes, (kind == 1, wide, ROWS, COLUMNS))
    loss = losses.sum()
    if scale is not None:
        factor = scale.to(dtype)
        loss = loss * factor
        if with_gradient:
            of_rows.mul_(factor), of_maps.mul_(factor)
    return loss, of_rows, of_maps
