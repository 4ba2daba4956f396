"""`gaussian_focal_loss_from_boxes` in Triton: each program owns a tile of one map, and draws its targets in registers.

It reads the logits and writes the gradient once, so it moves as many bytes as a copy of the logits. PyTorch adds the
sums of the tiles in a fixed order. Without atomics, every run gives the same bits.
"""

import torch
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._centernet import factor_of, scale_of
from detops.kernels._gaussians import EPS, gaussian, next_lane, reaches
from detops.kernels._launch import cdiv, kernel
from detops.kernels.gaussian_focal_loss import cells

TILE = (8, 64)  # rows and columns of a map
BLOCK_N = 64  # boxes at once


@kernel(tensors=9, specialize=("W",), scalars=("scale",))
def loss_kernel(
    logits,  # (B, C, H, W), contiguous like all that follow
    centers,  # (B, N, 2)
    radii,  # (B, N) or (B, N, 2)
    labels,  # (B, N)
    sample_sizes,  # (B,), not read without HAS_SIZES
    negative_weight,  # (B, H, W), not read without HAS_WEIGHT
    scale,  # one number, not read without HAS_SCALE or DIVIDED
    gradient,  # like the logits, not written without WITH_GRADIENT
    sums,  # (programs,)
    C,
    H,
    W,
    N,
    diameter_to_sigma_factor,
    alpha,
    gamma,
    pos_weight,
    neg_weight,
    least,
    kept,
    HAS_SIZES: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    DIVIDED: tl.constexpr,
    ELLIPTICAL: tl.constexpr,
    STANDARD: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute loss and gradient of one tile of one map.

    With DIVIDED the number at `scale` is what losses are divided by, `least` at least; `kept`, if not 0, is the factor.
    """
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    pid = tl.program_id(0)
    tiles_w = tl.cdiv(W, BLOCK_W)
    tiles_h = tl.cdiv(H, BLOCK_H)
    left = pid % tiles_w * BLOCK_W
    top = pid // tiles_w % tiles_h * BLOCK_H
    c = pid // (tiles_w * tiles_h) % C
    b = (pid // (tiles_w * tiles_h * C)).to(tl.int64)
    columns = left + tl.arange(0, BLOCK_W)
    rows = top + tl.arange(0, BLOCK_H)
    lanes = tl.arange(0, BLOCK_N)

    # The logits are loaded first, so that they arrive while the boxes are searched.
    cell = rows[:, None].to(tl.int64) * W + columns[None, :]
    visible = (rows < H)[:, None] & (columns < W)[None, :]
    map_start = (b * C + c) * H * W
    x = tl.load(logits + map_start + cell, mask=visible, other=0).to(COMPUTE)

    size = N
    if HAS_SIZES:
        size = tl.minimum(tl.maximum(tl.load(sample_sizes + b).to(tl.int64), 0), N).to(tl.int32)
    target = tl.zeros((BLOCK_H, BLOCK_W), COMPUTE)
    for begin in range(0, size, BLOCK_N):
        box = b * N + begin + lanes
        hit = begin + lanes < size
        hit = hit & (tl.load(labels + box, mask=hit, other=-1).to(tl.int64) == c)
        hit = reaches(centers, radii, box, hit, left, top, ELLIPTICAL, BLOCK_H, BLOCK_W)
        lane = next_lane(hit, lanes, -1, BLOCK_N)
        while lane < BLOCK_N:
            n = b * N + begin + lane
            g, inside = gaussian(centers, radii, n, rows, columns, diameter_to_sigma_factor, ELLIPTICAL, COMPUTE)
            target = tl.where(inside & (g >= EPS) & (g > target), g, target)
            lane = next_lane(hit, lanes, lane, BLOCK_N)

    weight = tl.full((), 1.0, COMPUTE)
    if HAS_WEIGHT:
        weight = tl.load(negative_weight + b * H * W + cell, mask=visible, other=0).to(COMPUTE)
        x = tl.where((weight == 0) & (target != 1), 0.0, x)
    factor = tl.full((), 1.0, COMPUTE)
    if HAS_SCALE:
        factor = tl.load(scale).to(COMPUTE)
    if DIVIDED:
        factor = factor_of(scale_of(scale, least, 1.0, 1.0, COMPUTE), kept)
    loss, g = cells(x, target, weight, factor, alpha, gamma, pos_weight, neg_weight, STANDARD)
    tl.store(sums + pid, factor * tl.sum(tl.sum(tl.where(visible, loss, 0.0), 1), 0))
    if WITH_GRADIENT:
        tl.store(gradient + map_start + cell, g.to(gradient.dtype.element_ty), mask=visible)


def gaussian_focal_loss_from_boxes(
    logits: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor,
    sample_sizes: Tensor | None,
    negative_weight: Tensor | None,
    scale: Tensor | None,
    diameter_to_sigma_factor: float,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Launch one program per tile; arguments and meaning as in `detops.reference.gaussian_focal_loss_from_boxes`."""
    sums, gradient = tile_sums(
        logits, centers, radii, labels, sample_sizes, negative_weight, scale, None, diameter_to_sigma_factor, alpha,
        gamma, pos_weight, neg_weight, with_gradient,
    )  # fmt: skip
    return sums.sum(), gradient


def tile_sums(
    logits: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor,
    sample_sizes: Tensor | None,
    negative_weight: Tensor | None,
    scale: Tensor | None,
    divided: tuple[float, float] | None,
    diameter_to_sigma_factor: float,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss of each tile, and the gradient. `divided`: `least` and `kept`, where `scale` is a divisor."""
    batch, classes, height, width = logits.shape
    compute = accumulate_dtype(logits)
    logits = logits.contiguous()
    gradient = torch.empty_like(logits) if with_gradient else logits.new_empty(0)
    programs = batch * classes * cdiv(height, TILE[0]) * cdiv(width, TILE[1])
    if programs == 0:
        return logits.new_zeros(1, dtype=compute), gradient
    sums = logits.new_empty(programs, dtype=compute)
    loss_kernel(
        (programs,),
        (
            logits,
            centers.contiguous(),
            radii.contiguous(),
            labels.contiguous(),
            sums if sample_sizes is None else sample_sizes.contiguous(),
            sums if negative_weight is None else negative_weight.contiguous(),
            sums if scale is None else scale,
            gradient,
            sums,
        ),
        (
            classes,
            height,
            width,
            centers.shape[1],
            diameter_to_sigma_factor,
            alpha,
            gamma,
            pos_weight,
            neg_weight,
            *(divided or (0.0, 0.0)),
        ),
        (
            sample_sizes is not None,
            negative_weight is not None,
            scale is not None and divided is None,
            divided is not None,
            radii.dim() == 3,
            alpha == 2 and gamma == 4,
            with_gradient,
            compute == torch.float64,
            *TILE,
            BLOCK_N,
        ),
    )
    return sums, gradient
