"""`l1_at_cells` in Triton: one program, as a batch has few boxes, sums in a fixed order and writes the gradient."""

import torch
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._launch import kernel

BLOCK = 1024  # numbers at once


@kernel(tensors=7, scalars=("scale",), num_warps=8)
def cells_kernel(
    preds,  # (B, D, H, W), of any strides
    target,  # (B, N, D), contiguous, as all that follow
    index,  # (B, N)
    used,  # (B, N) uint8
    scale,  # one number, not read without HAS_SCALE
    loss,  # one number
    gradient,  # (B, D, H, W), zeros; not written without WITH_GRADIENT
    stride_b,
    stride_d,
    stride_h,
    stride_w,
    B,
    N,
    D,
    H,
    W,
    HAS_SCALE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Go over all numbers of all boxes."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    factor = tl.full((), 1.0, COMPUTE)
    if HAS_SCALE:
        factor = tl.load(scale).to(COMPUTE)
    total = tl.zeros((BLOCK,), COMPUTE)
    for first in range(0, B * N * D, BLOCK):
        i = first + tl.arange(0, BLOCK)
        there = i < B * N * D
        box, d = i // D, i % D
        cell = tl.load(index + box, mask=there, other=-1).to(tl.int64)
        there = there & (tl.load(used + box, mask=there, other=0) != 0) & (cell >= 0) & (cell < H * W)
        b = (box // N).to(tl.int64)
        place = b * stride_b + d.to(tl.int64) * stride_d + cell // W * stride_h + cell % W * stride_w
        value = tl.load(preds + place, mask=there, other=0).to(COMPUTE)
        difference = value - tl.load(target + i, mask=there, other=0).to(COMPUTE)
        total += tl.where(there, tl.abs(difference), 0.0)
        if WITH_GRADIENT:
            slope = tl.where(difference > 0, factor, tl.where(difference < 0, -factor, 0.0))
            sink = gradient + (b * D + d) * H * W + cell
            tl.store(sink, slope.to(gradient.dtype.element_ty), mask=there)
    tl.store(loss, factor * tl.sum(total, 0))


def l1_at_cells(
    preds: Tensor, target: Tensor, index: Tensor, used: Tensor, scale: Tensor | None, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Launch the program; arguments and meaning as in `detops.reference.l1_at_cells`."""
    (batch, depth, height, width), boxes = preds.shape, index.shape[1]
    compute = accumulate_dtype(preds)
    loss = preds.new_empty((), dtype=compute)
    gradient = preds.new_zeros(preds.shape if with_gradient else 0)
    cells_kernel(
        (1,),
        (
            preds,
            target.contiguous(),
            index.contiguous(),
            used.contiguous().view(torch.uint8),
            loss if scale is None else scale,
            loss,
            gradient,
        ),
        (*preds.stride(), batch, boxes, depth, height, width),
        (scale is not None, with_gradient, compute == torch.float64, BLOCK),
    )
    return loss, gradient
