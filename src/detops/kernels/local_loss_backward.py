"""`local_loss_backward_` in Triton: programs read both factors first, and return if these are 1."""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._launch import cdiv, kernel, level_of, next_power_of_2, number_of
from detops.kernels._local import distance_of, log_softmax, quality_of, shares_of_bins
from detops.kernels.local_loss import BLOCK, tables


@kernel(tensors=9, scalars=("upstream",))
def local_backward_kernel(
    preds,  # a tuple: each part's (S, B, Q, 4), of any strides
    gradient,  # (L, B, Q, 4 * BINS), rows contiguous
    corners,  # (L, B, Q, 4 * BINS), rows contiguous
    references,  # (L, B, Q, 4), rows contiguous
    boxes,  # (B, N, 4)
    index,  # (rows,)
    values,  # (BINS,)
    scale,  # (R,)
    upstream,  # (R, 2)
    firsts,  # tuples, as of `share_kernel`
    sizes,
    pred_strides,
    B,
    N,
    BINS,
    corner_layer,
    corner_image,
    corner_query,
    reference_layer,
    reference_image,
    reference_query,
    gradient_layer,
    gradient_image,
    gradient_query,
    reach,
    fgl_weight,
    PARTS: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Scale the gradient of a block of sides, and make that of the fine-grained localization again where due."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row, b = tl.program_id(1) // B, (tl.program_id(1) % B).to(tl.int64)
    which = level_of(row, firsts, PARTS)
    by_fgl, factor = tl.load(upstream + row * 2).to(COMPUTE), tl.load(upstream + row * 2 + 1).to(COMPUTE)
    factor = tl.where(number_of(sizes, which, PARTS, 5, 4) > 0, factor, by_fgl)
    if (factor != 1.0) | (by_fgl != 1.0):
        s = (row - number_of(firsts, which, PARTS, 1, 0)).to(tl.int64)
        count = number_of(sizes, which, PARTS, 5, 0)
        layer, before = s + number_of(sizes, which, PARTS, 5, 2), number_of(sizes, which, PARTS, 5, 3)
        element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        q, side = element // 4, element % 4
        inside = q < count
        j = tl.arange(0, BLOCK_J)[None, :]
        there = inside[:, None] & (j < BINS)
        place = layer * gradient_layer + b * gradient_image + (before + q) * gradient_query + side * BINS
        pointer = gradient + place[:, None] + j
        g = tl.load(pointer, mask=there, other=0).to(COMPUTE) * factor
        if by_fgl != factor:
            n = tl.load(index + number_of(sizes, which, PARTS, 5, 1) + (s * B + b) * count + q, mask=inside, other=-1)
            has = (n >= 0) & (n < N)
            quality = quality_of(preds, pred_strides, boxes, which, s, b, q, n, has, N, PARTS, COMPUTE)
            own = layer * corner_layer + b * corner_image + (before + q) * corner_query + side * BINS
            z = tl.load(corners + own[:, None] + j, mask=there, other=0).to(COMPUTE)
            at = layer * reference_layer + b * reference_image + (before + q) * reference_query
            distance = distance_of(references, at, boxes, b, n, has, N, side, reach, COMPUTE)
            wanted = shares_of_bins(distance, values, j, BINS, COMPUTE)
            by = tl.load(scale + row).to(COMPUTE) * fgl_weight * quality * (by_fgl - factor)
            more = by[:, None] * (tl.exp(log_softmax(z, there)) - wanted)
            g += tl.where((quality > 0)[:, None], more, 0.0)
        tl.store(pointer, g.to(gradient.dtype.element_ty), mask=there)


def local_loss_backward_(
    gradient: Tensor,
    corners: Tensor,
    references: Tensor,
    pred_boxes: list[Tensor],
    parts: list[int],
    distils: list[int],
    gt_boxes: Tensor,
    index: Tensor,
    values: Tensor,
    scale: Tensor,
    reach: float,
    weights: list[float],
    upstream: Tensor,
) -> None:
    """Launch the kernel; meaning as in `detops.reference.local_loss_backward`."""
    if len(index) == 0:
        return
    batch, bins = len(gt_boxes), len(values)
    rows = references if references.stride(3) == 1 else references.contiguous()
    local_backward_kernel(
        (cdiv(4 * max(parts[4::5]), BLOCK), len(scale) * batch),
        (
            tuple(pred_boxes), gradient, corners, rows, gt_boxes.contiguous(), index, values, scale.contiguous(),
            upstream.contiguous(),
        ),
        (
            *tables(parts, distils, pred_boxes, batch), batch, gt_boxes.shape[1], bins, *corners.stride()[:3],
            *rows.stride()[:3], *gradient.stride()[:3], abs(float(reach)), float(weights[0]),
        ),
        (len(pred_boxes), corners.dtype == torch.float64, BLOCK, next_power_of_2(bins)),
    )  # fmt: skip
