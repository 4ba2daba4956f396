"""`background_losses` in Triton: one launch over all levels, which reads each logit and writes its gradient once.

A program sums its block of an image's logits; PyTorch adds the sums in a fixed order.
"""

import torch
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.geometry.levels import dense_map
from detops.kernels._launch import cdiv, kernel, map_of, number_of
from detops.kernels.gaussian_focal_loss import cells

BLOCK = 2048


@kernel(tensors=5, num_warps=8)
def background_kernel(
    maps,  # a tuple: each level's logits, in memory order
    gradient_maps,  # a tuple, not written without WITH_GRADIENT
    valid,  # (B, A) uint8, not read without HAS_VALID
    scale,  # (GROUPS,)
    sums,  # (LEVELS, programs)
    starts,  # tuples, of each level: its first point
    rows,  # how many it has
    inner,  # how many logits apart two points lie
    B,
    C,
    A,
    factor,
    gamma,
    LEVELS: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_VALID: tl.constexpr,
    STANDARD: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute losses and gradients of a block of one image's logits of one level."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    which = tl.program_id(1)
    R = number_of(rows, which, LEVELS, 1, 0)
    blocks = tl.cdiv(C * R, BLOCK)
    total = tl.full((), 0, COMPUTE)
    if tl.program_id(0) < B * blocks:
        b = (tl.program_id(0) // blocks).to(tl.int64)
        place = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        there = place < C * R
        read = there
        if HAS_VALID:
            point = place // number_of(inner, which, LEVELS, 1, 0) % R + number_of(starts, which, LEVELS, 1, 0)
            read = there & (tl.load(valid + b * A + point, mask=there, other=0) > 0)
        x = tl.load(map_of(maps, which, LEVELS) + b * C * R + place, mask=read, other=0.0).to(COMPUTE)
        number = tl.load(scale + which * GROUPS // LEVELS).to(COMPUTE)
        loss, slope = cells(x, tl.zeros((BLOCK,), COMPUTE), 1.0, number, gamma, 4.0, 1.0, factor, STANDARD)
        total = number * tl.sum(tl.where(read, loss, 0.0), 0)
        if WITH_GRADIENT:
            gradient = map_of(gradient_maps, which, LEVELS)
            slope = tl.where(read, slope, 0.0).to(gradient.dtype.element_ty)
            tl.store(gradient + b * C * R + place, slope, mask=there)
    tl.store(sums + which * tl.num_programs(0) + tl.program_id(0), total)


def background_losses(
    logits: list[Tensor], valid: Tensor | None, scale: Tensor, factor: float, gamma: float, with_gradient: bool
) -> tuple[Tensor, list[Tensor]]:
    """Launch the kernel; arguments and meaning as in `detops.reference.background_losses`."""
    batch, classes = logits[0].shape[:2]
    wide = accumulate_dtype(logits[0])
    logits = [dense_map(level) for level in logits]
    gradients = [torch.empty_like(level) for level in logits] if with_gradient else []
    rows = tuple(level.shape[2] * level.shape[3] for level in logits)
    programs = batch * cdiv(classes * max(rows), BLOCK)
    if programs == 0:
        return logits[0].new_zeros(len(logits), dtype=wide), gradients
    sums = logits[0].new_empty((len(logits), programs), dtype=wide)
    scale = scale.contiguous()
    background_kernel(
        (programs, len(logits)),
        (
            tuple(logits),
            tuple(gradients or logits),
            scale if valid is None else valid.contiguous().view(torch.uint8),
            scale,
            sums,
        ),
        (
            tuple(sum(rows[:i]) for i in range(len(rows))),
            rows,
            tuple(1 if level.is_contiguous() else classes for level in logits),
            batch,
            classes,
            sum(rows),
            factor,
            gamma,
        ),
        (
            len(logits),
            len(scale),
            valid is not None,
            gamma == 2,
            with_gradient,
            wide == torch.float64,
            BLOCK,
        ),
    )
    return sums.sum(1), gradients
