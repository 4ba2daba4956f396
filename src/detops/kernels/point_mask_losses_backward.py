"""`point_mask_losses_backward_` in Triton: slopes at all points, then a program per tile of a map adds them.

A gradient that is known for factors of 1 is made again: whether it may be scaled only the device knows.
"""

import torch
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._launch import cdiv, kernel
from detops.kernels._mask_terms import label_arguments, logits_and_labels
from detops.kernels._softplus import softplus
from detops.kernels.maps_at_points_backward import add_at_points

BLOCK = 256  # points per program


@kernel(tensors=7, enable_fp_fusion=False)
def slope_kernel(
    maps,  # (B, Q, h, w), of any strides
    index,  # (B, M)
    points,  # (B, M, P, 2), of any strides
    labels,  # (B, N, H, W) or (B, M, P), of any strides
    sums,  # (B, M, 2)
    factors,  # (B, M, 2)
    slopes,  # (B, M, P)
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
    """Write the slopes of one pair's losses at a block of points; those of a pair without a map are not read."""
    COMPUTE: tl.constexpr = slopes.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(P, BLOCK)
    row = pid // blocks
    b, m = row // M, row % M
    p = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    q = tl.load(index + row).to(tl.int64)
    if (q >= 0) & (q < Q):
        there = p < P
        x, y = logits_and_labels(
            maps + b * map_image + q * map_query,
            points + b * point_image + m * point_row,
            labels + b * label_image + (m % N) * label_mask,
            p, there, h, w, H, W, map_row, map_column, point_number, point_axis, label_row, label_column,
            COMPUTE, WIDE, GIVEN, NEAREST, BORDER,
        )  # fmt: skip
        _, probability = softplus(x)
        of_bce, of_dice = tl.load(factors + 2 * row).to(COMPUTE), tl.load(factors + 2 * row + 1).to(COMPUTE)
        s, t = tl.load(sums + 2 * row), tl.load(sums + 2 * row + 1)
        slope = of_bce / P.to(COMPUTE) * (probability - y)
        slope += (of_dice * s / (t * t) - of_dice * 2 / t * y) * (probability * (1 - probability))
        tl.store(slopes + row * P + p, slope, mask=there)


def point_mask_losses_backward_(
    gradient: Tensor,
    maps: Tensor,
    index: Tensor,
    points: Tensor,
    labels: Tensor,
    sums: Tensor,
    factors: Tensor,
    nearest: bool,
    border: bool,
    known: bool,
) -> None:
    """Launch both; arguments and meaning as in `detops.reference.point_mask_losses_backward`."""
    batch, rows, number = points.shape[:3]
    slopes = torch.empty((batch, rows, number), dtype=accumulate_dtype(maps), device=maps.device)
    if slopes.numel() and gradient.numel():
        values, sizes, strides, kinds = label_arguments(labels)
        slope_kernel(
            (batch * rows * cdiv(number, BLOCK),),
            (maps, index.contiguous(), points, values, sums.contiguous(), factors.contiguous(), slopes),
            (*maps.shape[1:], rows, number, *sizes, *maps.stride(), *points.stride(), *strides),
            (*kinds, nearest, border, BLOCK),
        )
    add_at_points(gradient, slopes, index, points, border)
