"""`gaussian_focal_loss_from_boxes` in Triton: each program owns a tile of one map, and draws its targets in registers.

It reads the logits and writes the gradient once; the bytes moved are those of a copy of the logits. No atomics,
so the same bits every run; the tiles' sums are added by PyTorch in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.kernels.draw_gaussians import EPS, profile
from detops.kernels.gaussian_focal_loss import cells

TILE = {"BLOCK_H": 16, "BLOCK_W": 64, "BLOCK_N": 64}
NUM_WARPS = 4


@triton.jit
def loss_kernel(
    logits,  # (B, C, H, W), contiguous, as all that follow
    centers,  # (B, N, 2)
    radii,  # (B, N) or (B, N, 2)
    labels,  # (B, N)
    sample_sizes,  # (B,), not read without HAS_SIZES
    negative_weight,  # (B, H, W), not read without HAS_WEIGHT
    scale,  # one number, not read without HAS_SCALE
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
    HAS_SIZES: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    ELLIPTICAL: tl.constexpr,
    STANDARD: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Loss and gradient of one tile of one map."""
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
    components: tl.constexpr = 2 if ELLIPTICAL else 1

    # The logits are on their way while the boxes are looked through.
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
        bx = tl.load(centers + 2 * box, mask=hit, other=0).to(tl.float64)
        by = tl.load(centers + 2 * box + 1, mask=hit, other=0).to(tl.float64)
        rx = tl.load(radii + components * box, mask=hit, other=0).to(tl.float64)
        ry = tl.load(radii + components * box + components - 1, mask=hit, other=0).to(tl.float64)
        # A comparison with NaN is false, so NaN and infinity fall out here, as negative radii do.
        hit = hit & (rx >= 0) & (rx < float("inf")) & (ry >= 0) & (ry < float("inf"))
        hit = hit & (bx > -float("inf")) & (bx < float("inf")) & (by > -float("inf")) & (by < float("inf"))
        hit = hit & (left - bx <= rx + 0.5) & (left + BLOCK_W - 1 - bx >= -rx - 0.5)
        hit = hit & (top - by <= ry + 0.5) & (top + BLOCK_H - 1 - by >= -ry - 0.5)
        lane = tl.min(tl.where(hit, lanes, BLOCK_N), 0)
        while lane < BLOCK_N:
            n = b * N + begin + lane
            gx, in_x = profile(
                columns,
                tl.load(centers + 2 * n).to(tl.float64),
                tl.load(radii + components * n).to(tl.float64),
                diameter_to_sigma_factor,
                COMPUTE,
            )
            gy, in_y = profile(
                rows,
                tl.load(centers + 2 * n + 1).to(tl.float64),
                tl.load(radii + components * n + components - 1).to(tl.float64),
                diameter_to_sigma_factor,
                COMPUTE,
            )
            g = gy[:, None] * gx[None, :]
            target = tl.where(in_y[:, None] & in_x[None, :] & (g >= EPS) & (g > target), g, target)
            lane = tl.min(tl.where(hit & (lanes > lane), lanes, BLOCK_N), 0)

    weight = tl.full((), 1.0, COMPUTE)
    if HAS_WEIGHT:
        weight = tl.load(negative_weight + b * H * W + cell, mask=visible, other=0).to(COMPUTE)
        x = tl.where((weight == 0) & (target != 1), 0.0, x)
    factor = tl.full((), 1.0, COMPUTE)
    if HAS_SCALE:
        factor = tl.load(scale).to(COMPUTE)
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
    """Launch one program a tile; meaning as in `detops.reference.gaussian_focal_loss_from_boxes`."""
    batch, classes, height, width = logits.shape
    compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logits = logits.contiguous()
    gradient = torch.empty_like(logits) if with_gradient else logits.new_empty(0)
    programs = batch * classes * triton.cdiv(height, TILE["BLOCK_H"]) * triton.cdiv(width, TILE["BLOCK_W"])
    if programs == 0:
        return logits.new_zeros((), dtype=compute), gradient
    sums = logits.new_empty(programs, dtype=compute)
    with torch.cuda.device_of(logits):
        loss_kernel[(programs,)](
            logits,
            centers.contiguous(),
            radii.contiguous(),
            labels.contiguous(),
            sums if sample_sizes is None else sample_sizes.contiguous(),
            sums if negative_weight is None else negative_weight.contiguous(),
            sums if scale is None else scale,
            gradient,
            sums,
            classes,
            height,
            width,
            centers.shape[1],
            diameter_to_sigma_factor,
            alpha,
            gamma,
            pos_weight,
            neg_weight,
            HAS_SIZES=sample_sizes is not None,
            HAS_WEIGHT=negative_weight is not None,
            HAS_SCALE=scale is not None,
            ELLIPTICAL=radii.dim() == 3,
            STANDARD=alpha == 2 and gamma == 4,
            WITH_GRADIENT=with_gradient,
            COMPUTE=tl.float64 if compute == torch.float64 else tl.float32,
            num_warps=NUM_WARPS,
            **TILE,
        )
    return sums.sum(), gradient
