"""`point_mask_costs` in Triton: a program per block of queries and masks reads logits and multiplies them at once."""

import torch
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._launch import cdiv, kernel, next_power_of_2
from detops.kernels._map_points import value_at
from detops.kernels._softplus import softplus

QUERIES, MOST_MASKS, POINTS = 16, 64, 32  # of a program; points at once
DOUBLE_TILE = 8  # float64, without a product of matrices


@kernel(tensors=5)
def cost_kernel(
    logits,  # (B, Q, h, w) or (B, Q, P), of any strides
    points,  # (B, 1, P, 2), of any strides; not read where logits are GIVEN
    labels,  # (B, N, P), of any strides
    bce,  # (B, Q, N)
    dice,  # (B, Q, N)
    Q,
    N,
    P,
    h,
    w,
    logit_image,
    logit_query,
    logit_row,
    logit_column,
    point_image,
    point_number,
    point_axis,
    label_image,
    label_mask,
    label_point,
    GIVEN: tl.constexpr,
    BORDER: tl.constexpr,
    DOUBLE: tl.constexpr,
    QUERIES: tl.constexpr,
    MASKS: tl.constexpr,
    POINTS: tl.constexpr,
):
    """Compare a block of queries with a block of masks."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    pid = tl.program_id(0).to(tl.int64)
    across, down = tl.cdiv(N, MASKS), tl.cdiv(Q, QUERIES)
    b, n = pid // (across * down), pid % across * MASKS + tl.arange(0, MASKS)
    q = pid // across % down * QUERIES + tl.arange(0, QUERIES)
    by_x, by_p = tl.zeros((QUERIES, MASKS), COMPUTE), tl.zeros((QUERIES, MASKS), COMPUTE)
    of_up, of_p = tl.zeros((QUERIES, POINTS), COMPUTE), tl.zeros((QUERIES, POINTS), COMPUTE)
    of_y = tl.zeros((POINTS, MASKS), COMPUTE)
    own = logits + b * logit_image + q[:, None] * logit_query
    for first in range(0, P, POINTS):
        p = first + tl.arange(0, POINTS)
        there = (q < Q)[:, None] & (p < P)[None, :]
        if GIVEN:
            x = tl.load(own + p[None, :] * logit_row, mask=there, other=0).to(COMPUTE)
        else:
            point = points + b * point_image + p * point_number
            across_map = tl.load(point, mask=p < P, other=0).to(COMPUTE)[None, :]
            down_map = tl.load(point + point_axis, mask=p < P, other=0).to(COMPUTE)[None, :]
            x = value_at(own, across_map, down_map, there, h, w, logit_row, logit_column, False, BORDER)
        y = tl.load(
            labels + b * label_image + n[None, :] * label_mask + p[:, None] * label_point,
            mask=(n < N)[None, :] & (p < P)[:, None],
            other=0,
        ).to(COMPUTE)
        up, probability = softplus(x)
        of_up += tl.where(there, up, 0.0)
        probability = tl.where(there, probability, 0.0)
        of_p += probability
        of_y += y
        if DOUBLE:
            by_x += tl.sum(x[:, :, None] * y[None, :, :], 1)
            by_p += tl.sum(probability[:, :, None] * y[None, :, :], 1)
        else:
            by_x = tl.dot(x, y, by_x, input_precision="ieee")
            by_p = tl.dot(probability, y, by_p, input_precision="ieee")
    place = b * Q * N + q[:, None] * N + n[None, :]
    inside = (q < Q)[:, None] & (n < N)[None, :]
    tl.store(bce + place, (tl.sum(of_up, 1)[:, None] - by_x) / tl.maximum(P, 1).to(COMPUTE), mask=inside)
    total = tl.sum(of_p, 1)[:, None] + tl.sum(of_y, 0)[None, :] + 1
    tl.store(dice + place, 1 - (2 * by_p + 1) / total, mask=inside)


def point_mask_costs(logits: Tensor, points: Tensor | None, labels: Tensor, border: bool) -> tuple[Tensor, Tensor]:
    """Launch the programs; arguments and meaning as in `detops.reference.point_mask_costs`."""
    batch, queries = logits.shape[:2]
    masks, number = labels.shape[1:]
    dtype = accumulate_dtype(logits)
    bce, dice = (torch.empty((batch, queries, masks), dtype=dtype, device=logits.device) for _ in range(2))
    double = dtype == torch.float64
    many = DOUBLE_TILE if double else min(MOST_MASKS, next_power_of_2(max(masks, 16)))
    few, some = (DOUBLE_TILE, DOUBLE_TILE) if double else (QUERIES, POINTS)
    if bce.numel():
        if points is None:
            sizes, strides, by_point = (1, 1), (*logits.stride(), 0), (0, 0, 0)
        else:
            sizes, strides = tuple(logits.shape[2:]), logits.stride()
            by_point = (points.stride(0), points.stride(2), points.stride(3))
        cost_kernel(
            (batch * cdiv(queries, few) * cdiv(masks, many),),
            (logits, bce if points is None else points, labels, bce, dice),
            (queries, masks, number, *sizes, *strides, *by_point, *labels.stride()),
            (points is None, border, double, few, many, some),
        )
    return bce, dice
