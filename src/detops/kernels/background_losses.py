"""`background_losses` in Triton: one launch over all levels, which reads each logit and writes its gradient once.

A program sums its block of an image's logits; PyTorch adds the sums in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.geometry.levels import dense_map
from detops.kernels._launch import cdiv, kernel, map_of, number_of
from detops.kernels.gaussian_focal_loss import cells

BLOCK = 2048
BLOCK_M = 64  # counts that a program reads at once


@triton.jit
def _whole(counts, g, M, least, eps, BLOCK_M: tl.constexpr):
    """The factor of a head's loss, correctly rounded, so that it is that of the other forms."""
    total = tl.full((), 0, tl.float32)
    for first in range(0, M, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        count = tl.load(counts + g * M + m, mask=m < M, other=0).to(tl.float32)
        total += tl.sum(tl.where(m < M, tl.where(count < least, least, count), 0.0), 0)
    return tl.div_rn(tl.full((), 1, tl.float32), total + eps)


@kernel(tensors=6, num_warps=8)
def background_kernel(
    maps,  # a tuple: each level's logits, in memory order
    gradient_maps,  # a tuple, not written without WITH_GRADIENT
    valid,  # (B, A) uint8, not read without HAS_VALID
    counts,  # (GROUPS, M)
    scales,  # (3, GROUPS)
    sums,  # (LEVELS, programs)
    starts,  # tuples, of each level: its first point
    rows,  # how many it has
    inner,  # how many logits apart two points lie
    B,
    C,
    A,
    M,
    least,
    eps,
    kept,
    factor,
    gamma,
    LEVELS: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    STANDARD: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    KEPT: tl.constexpr,  # whether scales are parts of the factors
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Compute losses and gradients of a block of one image's logits of one level."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    which = tl.program_id(1)
    R = number_of(rows, which, LEVELS, 1, 0)
    blocks = tl.maximum(tl.cdiv(C * R, BLOCK), 1)  # an empty level makes scales, too
    total = tl.full((), 0, COMPUTE)
    if tl.program_id(0) < B * blocks:
        head = which * GROUPS // LEVELS
        whole = _whole(counts, head, M, least, eps, BLOCK_M)
        scale, rest = whole, tl.full((), 1, tl.float32)
        if KEPT:
            largest = whole
            if GROUPS > 1:
                for g in tl.static_range(GROUPS):
                    largest = tl.maximum(largest, _whole(counts, g, M, least, eps, BLOCK_M))
            rest = tl.div_rn(largest, rest * kept)
            scale = tl.div_rn(whole, rest)
        if (tl.program_id(0) == 0) & (which * GROUPS % LEVELS == 0):
            tl.store(scales + head, whole)
            tl.store(scales + GROUPS + head, scale)
            tl.store(scales + 2 * GROUPS + head, rest)
        b = (tl.program_id(0) // blocks).to(tl.int64)
        place = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        there = place < C * R
        read = there
        if HAS_VALID:
            point = place // number_of(inner, which, LEVELS, 1, 0) % R + number_of(starts, which, LEVELS, 1, 0)
            read = there & (tl.load(valid + b * A + point, mask=there, other=0) > 0)
        x = tl.load(map_of(maps, which, LEVELS) + b * C * R + place, mask=read, other=0.0).to(COMPUTE)
        number = scale.to(COMPUTE)
        loss, slope = cells(x, tl.zeros((BLOCK,), COMPUTE), 1.0, number, gamma, 4.0, 1.0, factor, STANDARD)
        total = number * tl.sum(tl.where(read, loss, 0.0), 0)
        if WITH_GRADIENT:
            gradient = map_of(gradient_maps, which, LEVELS)
            slope = tl.where(read, slope, 0.0).to(gradient.dtype.element_ty)
            tl.store(gradient + b * C * R + place, slope, mask=there)
    tl.store(sums + which * tl.num_programs(0) + tl.program_id(0), total)


def background_losses(
    logits: list[Tensor],
    valid: Tensor | None,
    counts: Tensor,
    least: float,
    eps: float,
    kept: float,
    factor: float,
    gamma: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Launch the kernel; arguments and meaning as in `detops.reference.background_losses`."""
    batch, classes = logits[0].shape[:2]
    wide = accumulate_dtype(logits[0])
    logits = [dense_map(level) for level in logits]
    gradients = [torch.empty_like(level) for level in logits] if with_gradient else []
    # Without images, a first one has no points: its programs make the scales.
    rows = tuple(level.shape[2] * level.shape[3] if batch else 0 for level in logits)
    batch = max(batch, 1)
    programs = batch * max(cdiv(classes * max(rows), BLOCK), 1)
    sums = logits[0].new_empty((len(logits), programs), dtype=wide)
    scales = logits[0].new_empty((3, len(counts)), dtype=torch.float32)
    background_kernel(
        (programs, len(logits)),
        (
            tuple(logits),
            tuple(gradients or logits),
            scales if valid is None else valid.contiguous().view(torch.uint8),
            counts.contiguous(),
            scales,
            sums,
        ),
        (
            tuple(sum(rows[:i]) for i in range(len(rows))),
            rows,
            tuple(1 if level.is_contiguous() else classes for level in logits),
            batch,
            classes,
            sum(rows),
            counts.shape[1],
            float(least),
            float(eps),
            float(kept),
            factor,
            gamma,
        ),
        (
            len(logits),
            len(counts),
            valid is not None,
            gamma == 2,
            with_gradient,
            kept > 0,
            wide == torch.float64,
            BLOCK,
            BLOCK_M,
        ),
    )
    return sums.sum(1), scales, gradients
