"""`draw_gaussians_` in Triton: each program owns a tile of one map and draws every box that reaches it.

A tile's owner is its only writer: no atomics, hence any dtype, no race, and the same bits every run. It reads the boxes
of its sample in vectors, keeps those of its class that reach the tile, and accesses the map only if there are any. So
besides the boxes only the drawn tiles are moved, in one launch. Drawing by box with atomic maxima would move each drawn
pixel once per box, and is not possible in float16.

With one warp per tile the search for the next box is a shuffle, without a barrier.
"""

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._gaussians import EPS, gaussian, next_lane, reaches
from detops.kernels._launch import cdiv, kernel

TILE = (16, 32)  # rows and columns of a map
BLOCK_N = 64  # boxes at once


@kernel(tensors=5, specialize=("W", "stride_b", "stride_c", "stride_h", "stride_w"), num_warps=1)
def draw_kernel(
    heatmap,  # (B, C, H, W), of any strides
    centers,  # (B, N, 2), contiguous like all that follow
    radii,  # (B, N) or (B, N, 2)
    labels,  # (B, N), not read without HAS_LABELS
    sample_sizes,  # (B,), not read without HAS_SIZES
    C,
    H,
    W,
    N,
    stride_b,
    stride_c,
    stride_h,
    stride_w,
    factor,
    k_scale,
    HAS_LABELS: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    ELLIPTICAL: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Draw every box that reaches one tile of one map."""
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

    size = N
    if HAS_SIZES:
        size = tl.minimum(tl.maximum(tl.load(sample_sizes + b).to(tl.int64), 0), N).to(tl.int32)
    drawn = tl.full((BLOCK_H, BLOCK_W), float("-inf"), COMPUTE)
    hits = 0
    for begin in range(0, size, BLOCK_N):
        box = b * N + begin + lanes
        hit = begin + lanes < size
        if HAS_LABELS:
            hit = hit & (tl.load(labels + box, mask=hit, other=-1).to(tl.int64) == c)
        hit = reaches(centers, radii, box, hit, left, top, ELLIPTICAL, BLOCK_H, BLOCK_W)
        lane = next_lane(hit, lanes, -1, BLOCK_N)
        while lane < BLOCK_N:
            g, inside = gaussian(centers, radii, b * N + begin + lane, rows, columns, factor, ELLIPTICAL, COMPUTE)
            value = tl.where(g >= EPS, g * k_scale, 0.0).to(COMPUTE)
            drawn = tl.where(inside & (value > drawn), value, drawn)
            hits += 1
            lane = next_lane(hit, lanes, lane, BLOCK_N)

    if hits > 0:
        pixel = heatmap + b * stride_b + c.to(tl.int64) * stride_c
        pixel = pixel + rows[:, None].to(tl.int64) * stride_h + columns[None, :].to(tl.int64) * stride_w
        visible = (rows < H)[:, None] & (columns < W)[None, :]
        held = tl.load(pixel, mask=visible, other=0)
        larger = drawn > held.to(COMPUTE)  # false for a NaN in the map, which is kept
        tl.store(pixel, tl.where(larger, drawn.to(held.dtype), held), mask=visible)


def draw_gaussians_(
    heatmap: Tensor,
    centers: Tensor,
    radii: Tensor,
    labels: Tensor | None,
    sample_sizes: Tensor | None,
    diameter_to_sigma_factor: float,
    k_scale: float,
) -> None:
    """Launch one program per tile; arguments and meaning as in `detops.reference.draw_gaussians`."""
    batch, classes, height, width = heatmap.shape
    count = centers.shape[1]
    if heatmap.numel() == 0 or count == 0:
        return
    programs = batch * classes * cdiv(height, TILE[0]) * cdiv(width, TILE[1])
    centers = centers.contiguous()
    draw_kernel(
        (programs,),
        (
            heatmap,
            centers,
            radii.contiguous(),
            centers if labels is None else labels.contiguous(),
            centers if sample_sizes is None else sample_sizes.contiguous(),
        ),
        (classes, height, width, count, *heatmap.stride(), diameter_to_sigma_factor, k_scale),
        (
            labels is not None,
            sample_sizes is not None,
            radii.dim() == 3,
            heatmap.dtype == torch.float64,
            *TILE,
            BLOCK_N,
        ),
    )
