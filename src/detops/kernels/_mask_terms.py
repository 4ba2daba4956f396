"""Logits and labels of pairs at points, for the kernels of the mask losses."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.kernels._map_points import value_at


@triton.jit
def logits_and_labels(
    maps,  # the map of the pair
    points,  # its points
    labels,  # its mask, or its labels at the points
    p,
    there,
    h,
    w,
    H,
    W,
    map_row,
    map_column,
    point_number,
    point_axis,
    label_row,
    label_column,
    COMPUTE: tl.constexpr,
    WIDE: tl.constexpr,  # labels are float64
    GIVEN: tl.constexpr,
    NEAREST: tl.constexpr,
    BORDER: tl.constexpr,
):
    """Return logits and labels of a block of points."""
    first = tl.load(points + p * point_number, mask=there, other=0)
    second = tl.load(points + p * point_number + point_axis, mask=there, other=0)
    x = value_at(
        maps, first.to(COMPUTE), second.to(COMPUTE), there, h, w, map_row, map_column, False, BORDER
    )  # fmt: skip
    if GIVEN:
        y = tl.load(labels + p * label_row, mask=there, other=0)
    else:
        READ: tl.constexpr = tl.float64 if WIDE else tl.float32
        y = value_at(labels, first.to(READ), second.to(READ), there, H, W, label_row, label_column, NEAREST, BORDER)
    return x, y.to(COMPUTE)


def label_arguments(labels: Tensor) -> tuple[Tensor, tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """Return labels as kernels read them, (N, H, W), their strides (image, mask, row, column), and (WIDE, GIVEN)."""
    values = labels.view(torch.uint8) if labels.dtype == torch.bool else labels
    given = labels.dim() == 3
    sizes: tuple[Any, ...] = (labels.shape[1], 0, 0) if given else labels.shape[1:]
    strides = (*labels.stride(), 0) if given else labels.stride()
    return values, tuple(sizes), strides, (labels.dtype == torch.float64, given)
