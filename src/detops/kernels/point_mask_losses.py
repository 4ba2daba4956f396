"""`point_mask_losses` in Triton: one program per pair sums over its points in order."""

import torch
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._launch import kernel
from detops.kernels._mask_terms import label_arguments, logits_and_labels
from detops.kernels._softplus import softplus
from detops.kernels.point_mask_losses_backward import point_mask_losses_backward_

BLOCK = 512  # points at once


@kernel(tensors=6, enable_fp_fusion=False)
def pair_kernel(
    maps,  # (B, Q, h, w), of any strides
    index,  # (B, M)
    points,  # (B, M, P, 2), of any strides
    labels,  # (B, N, H, W) or (B, M, P), of any strides
    losses,  # (B, M, 2)
    sums,  # (B, M, 2)
    Q,
    h,
    w,
    M,
    P,
    N,
    H,
    W,
    map_image,
    map_query,
    map_row,
    map_column,
    point_image,
    point_row,
    point_number,
    point_axis,
    label_image,
    label_mask,
    label_row,
    label_column,
    WIDE: tl.constexpr,
    GIVEN: tl.constexpr,
    NEAREST: tl.constexpr,
    BORDER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compare one map with its mask."""
    COMPUTE: tl.constexpr = losses.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    b, m = row // M, row % M
    q = tl.load(index + row).to(tl.int64)
    one = tl.full((), 1.0, COMPUTE)
    bce, dice, s, t = one * 0, one * 0, one, one
    if (q >= 0) & (q < Q):
        of_bce, of_p = tl.zeros((BLOCK,), COMPUTE), tl.zeros((BLOCK,), COMPUTE)
        of_y, of_py = tl.zeros((BLOCK,), COMPUTE), tl.zeros((BLOCK,), COMPUTE)
        for first in range(0, P, BLOCK):
            p = first + tl.arange(0, BLOCK)
            there = p < P
            x, y = logits_and_labels(
                maps + b * map_image + q * map_query,
                points + b * point_image + m * point_row,
                labels + b * label_image + (m % N) * label_mask,
                p, there, h, w, H, W, map_row, map_column, point_number, point_axis, label_row, label_column,
                COMPUTE, WIDE, GIVEN, NEAREST, BORDER,
            )  # fmt: skip
            up, probability = softplus(x)
            of_bce += tl.where(there, up - x * y, 0.0)
            of_p += tl.where(there, probability, 0.0)
            of_y += y
            of_py += tl.where(there, probability * y, 0.0)
        bce = tl.sum(of_bce, 0) / tl.maximum(P, 1).to(COMPUTE)
        s = 2 * tl.sum(of_py, 0) + 1
        t = tl.sum(of_p, 0) + tl.sum(of_y, 0) + 1
        dice = 1 - s / t
    tl.store(losses + 2 * row, bce)
    tl.store(losses + 2 * row + 1, dice)
    tl.store(sums + 2 * row, s)
    tl.store(sums + 2 * row + 1, t)


def point_mask_losses(
    maps: Tensor, index: Tensor, points: Tensor, labels: Tensor, nearest: bool, border: bool, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the programs; arguments and meaning as in `detops.reference.point_mask_losses`."""
    batch, rows, number = points.shape[:3]
    shape, dtype = (batch, rows, 2), accumulate_dtype(maps)
    gradient = torch.empty(maps.shape if with_gradient else (0,), dtype=maps.dtype, device=maps.device)
    if 0 in maps.shape:
        nothing = torch.zeros(shape, dtype=dtype, device=maps.device)
        return nothing, nothing + 1, gradient
    losses, sums = (torch.empty(shape, dtype=dtype, device=maps.device) for _ in range(2))
    if batch * rows:
        values, sizes, strides, kinds = label_arguments(labels)
        pair_kernel(
            (batch * rows,),
            (maps, index.contiguous(), points, values, losses, sums),
            (*maps.shape[1:], rows, number, *sizes, *maps.stride(), *points.stride(), *strides),
            (*kinds, nearest, border, BLOCK),
        )
    if with_gradient:
        factors = torch.ones_like(sums)
        point_mask_losses_backward_(gradient, maps, index, points, labels, sums, factors, nearest, border, False)
    return losses, sums, gradient
