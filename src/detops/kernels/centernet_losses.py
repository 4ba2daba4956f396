"""`centernet_losses` in Triton: the heatmap by tiles, size and offset by runs of cells, and one program for the sums.

Each cell of the gradients of size and offset is written once, zeros included, by the program that finds its box.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._cells import box_of_cells
from detops.kernels._centernet import factor_of, scale_of
from detops.kernels._launch import cdiv, kernel
from detops.kernels.gaussian_focal_loss_from_boxes import tile_sums

BLOCK = 256  # cells per program
BLOCK_N = 32  # boxes at once
BLOCK_SUM = 1024  # programs whose sums are added at a time


@triton.jit
def _l1(
    preds,
    target,
    gradient,
    place,
    stride_d,
    box,
    found,
    sink,
    inside,
    cells,
    factor,
    WITH_GRADIENT: tl.constexpr,
):
    """The L1 loss of a map at a run of cells that have a box or not; writes its gradient."""
    COMPUTE: tl.constexpr = tl.float64 if preds.dtype.element_ty == tl.float64 else tl.float32
    factor = factor.to(COMPUTE)
    total = tl.zeros(found.shape, COMPUTE)
    for d in tl.static_range(2):
        value = tl.load(preds + place + d * stride_d, mask=found, other=0.0).to(COMPUTE)
        difference = value - tl.load(target + box * 2 + d, mask=found, other=0.0).to(COMPUTE)
        total += tl.where(found, tl.abs(difference), 0.0)
        if WITH_GRADIENT:
            slope = tl.where(difference > 0, factor, tl.where(difference < 0, -factor, 0.0))
            slope = tl.where(found, slope, 0.0).to(gradient.dtype.element_ty)
            tl.store(gradient + sink + d * cells, slope, mask=inside)
    return tl.sum(total, 0) * factor


@kernel(tensors=10, scalars=("count",), num_warps=4)
def cells_kernel(
    wh,  # (B, 2, H, W), of any strides
    offset,  # (B, 2, H, W), of any strides
    gt_wh,  # (B, N, 2), contiguous, as all that follow
    gt_offset,  # (B, N, 2)
    index,  # (B, N)
    used,  # (B, N) uint8
    count,  # one number
    by_wh,  # (B, 2, H, W), not written without WITH_GRADIENT
    by_offset,  # (B, 2, H, W), not written without WITH_GRADIENT
    parts,  # (programs, 2)
    N,
    H,
    W,
    least,
    wh_weight,
    offset_weight,
    wh_kept,
    offset_kept,
    wh_b,  # strides
    wh_d,
    wh_y,
    wh_x,
    offset_b,
    offset_d,
    offset_y,
    offset_x,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute the losses of size and offset of a run of cells of one image, and the gradients there."""
    b = tl.program_id(1).to(tl.int64)
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cell < H * W
    n = box_of_cells(index + b * N, used + b * N, cell, N, BLOCK, BLOCK_N)
    found = (n >= 0) & inside
    box, sink = b * N + n, b * 2 * H * W + cell
    y, x = (cell // W).to(tl.int64), (cell % W).to(tl.int64)
    part = parts + (b * tl.num_programs(0) + tl.program_id(0)) * 2
    factor = factor_of(scale_of(count, least, 2.0, wh_weight, tl.float32), wh_kept)
    place = b * wh_b + y * wh_y + x * wh_x
    size = _l1(wh, gt_wh, by_wh, place, wh_d, box, found, sink, inside, H * W, factor, WITH_GRADIENT)
    tl.store(part, size)
    factor = factor_of(scale_of(count, least, 2.0, offset_weight, tl.float32), offset_kept)
    place = b * offset_b + y * offset_y + x * offset_x
    shift = _l1(offset, gt_offset, by_offset, place, offset_d, box, found, sink, inside, H * W, factor, WITH_GRADIENT)
    tl.store(part + 1, shift)


@kernel(tensors=5, scalars=("count",), num_warps=4)
def sum_kernel(
    sums,  # (tiles,), of the heatmap
    parts,  # (programs, 2), of size and offset
    count,  # one number
    losses,  # (3,)
    rests,  # (3,)
    tiles,
    programs,
    least,
    wh_weight,
    offset_weight,
    heatmap_kept,
    wh_kept,
    offset_kept,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up all sums, and write what is left of the factors of the gradients."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    heatmap = tl.zeros((BLOCK,), tl.float64)
    size = tl.zeros((BLOCK,), tl.float64)
    shift = tl.zeros((BLOCK,), tl.float64)
    lanes = tl.arange(0, BLOCK)
    for start in range(0, tiles, BLOCK):
        heatmap += tl.load(sums + start + lanes, mask=start + lanes < tiles, other=0.0)
    for start in range(0, programs, BLOCK):
        there = start + lanes < programs
        size += tl.load(parts + (start + lanes) * 2, mask=there, other=0.0)
        shift += tl.load(parts + (start + lanes) * 2 + 1, mask=there, other=0.0)
    kind = losses.dtype.element_ty
    rest = _rest(scale_of(count, least, 1.0, 1.0, COMPUTE), heatmap_kept).to(kind)
    tl.store(rests, rest)
    tl.store(losses, tl.sum(heatmap, 0).to(kind) * rest)
    rest = _rest(scale_of(count, least, 2.0, wh_weight, tl.float32), wh_kept).to(kind)
    tl.store(rests + 1, rest)
    tl.store(losses + 1, tl.sum(size, 0).to(kind) * rest)
    rest = _rest(scale_of(count, least, 2.0, offset_weight, tl.float32), offset_kept).to(kind)
    tl.store(rests + 2, rest)
    tl.store(losses + 2, tl.sum(shift, 0).to(kind) * rest)


@triton.jit
def _rest(scale, kept):
    return tl.where(kept == 0, 1.0, scale / tl.where(kept == 0, 1.0, kept))


def centernet_losses(
    logits: Tensor,
    wh: Tensor,
    offset: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor,
    negative_weight: Tensor | None,
    gt_wh: Tensor,
    gt_offset: Tensor,
    index: Tensor,
    used: Tensor,
    count: Tensor,
    least: float,
    diameter_to_sigma_factor: float,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    wh_weight: float,
    offset_weight: float,
    kept: list[float],
    with_gradient: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Launch the three kernels; arguments and meaning as in `detops.reference.centernet_losses`."""
    batch, _, height, width = wh.shape
    double = torch.float64 in (logits.dtype, wh.dtype, offset.dtype)
    dtype = torch.float64 if double else torch.float32
    sums, slope = tile_sums(
        logits, centers, radii, labels, None, negative_weight, count, (least, kept[0]), diameter_to_sigma_factor, alpha,
        gamma, pos_weight, neg_weight, with_gradient,
    )  # fmt: skip
    by_wh, by_offset = (
        torch.empty_like(preds, memory_format=torch.contiguous_format) if with_gradient else preds.new_empty(0)
        for preds in (wh, offset)
    )
    programs = cdiv(height * width, BLOCK)
    parts = wh.new_empty((batch * programs, 2), dtype=dtype)
    weights = (least, wh_weight, offset_weight)
    if len(parts):
        cells_kernel(
            (programs, batch),
            (
                wh,
                offset,
                gt_wh.contiguous(),
                gt_offset.contiguous(),
                index.contiguous(),
                used.contiguous().view(torch.uint8),
                count,
                by_wh,
                by_offset,
                parts,
            ),
            (index.shape[1], height, width, *weights, *kept[1:], *wh.stride(), *offset.stride()),
            (with_gradient, BLOCK, BLOCK_N),
        )
    losses, rests = (wh.new_empty(3, dtype=dtype) for _ in range(2))
    sum_kernel(
        (1,),
        (sums, parts, count, losses, rests),
        (len(sums), len(parts), *weights, *kept),
        (accumulate_dtype(logits) == torch.float64, BLOCK_SUM),
    )
    return losses, rests, [slope, by_wh, by_offset]
