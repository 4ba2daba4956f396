"""`gaussian_focal_loss` in Triton: one pass that reads logits and targets, and writes the gradient.

Each program sums its block; PyTorch adds the few sums in a fixed order. Without atomics, every run gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.kernels._launch import cdiv, kernel
from detops.kernels._softplus import log1p_of, power

BLOCK = 2048


@triton.jit
def cells(
    x,  # logits
    t,  # targets
    w,  # weights of the negative terms
    factor,
    alpha,
    gamma,
    pos_weight,
    neg_weight,
    STANDARD: tl.constexpr,  # alpha = 2 and gamma = 4: powers are products
):
    """Return loss and gradient of a block of cells."""
    positive = t == 1.0
    # A positive's term is that of a negative with the opposite logit.
    y = tl.where(positive, -x, x)
    e = tl.exp(-tl.abs(y))
    r = 1.0 / (1.0 + e)
    cost = tl.where(y < 0, 0.0, y) + log1p_of(e)
    p = tl.where(y < 0, e * r, r)
    q = tl.where(y < 0, r, e * r)
    away = 1.0 - t
    if STANDARD:
        scale = tl.where(positive, pos_weight, neg_weight * w * (away * away) * (away * away)) * (p * p)
    else:
        fall = power(away, gamma, False)
        scale = tl.where(positive, pos_weight, neg_weight * w * fall) * power(p, alpha, False)
    poison = x * 0.0  # a logit that is not finite makes loss and gradient NaN
    g = factor * (scale * (p + alpha * q * cost)) + poison
    return scale * cost + poison, tl.where(positive, -g, g)


@kernel(tensors=5, specialize=("count",), scalars=("scale",), num_warps=8)
def loss_kernel(
    logits,  # (count,)
    target,  # (count,)
    scale,  # one number, not read without HAS_SCALE
    gradient,  # (count,), not written without WITH_GRADIENT
    sums,  # (programs,)
    count,
    alpha,
    gamma,
    pos_weight,
    neg_weight,
    HAS_SCALE: tl.constexpr,
    STANDARD: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute loss and gradient of one block of cells."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    pid = tl.program_id(0)
    index = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = index < count
    x = tl.load(logits + index, mask=exists, other=0).to(COMPUTE)
    t = tl.load(target + index, mask=exists, other=0).to(COMPUTE)
    factor = tl.full((), 1.0, COMPUTE)
    if HAS_SCALE:
        factor = tl.load(scale).to(COMPUTE)
    loss, g = cells(x, t, 1.0, factor, alpha, gamma, pos_weight, neg_weight, STANDARD)
    tl.store(sums + pid, factor * tl.sum(tl.where(exists, loss, 0.0), 0))
    if WITH_GRADIENT:
        tl.store(gradient + index, g.to(gradient.dtype.element_ty), mask=exists)


def gaussian_focal_loss(
    logits: Tensor,
    target: Tensor,
    scale: Tensor | None,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Launch one program per block; arguments and meaning as in `detops.reference.gaussian_focal_loss`."""
    compute = accumulate_dtype(logits)
    logits, target = logits.contiguous(), target.contiguous()
    gradient = torch.empty_like(logits) if with_gradient else logits.new_empty(0)
    programs = cdiv(logits.numel(), BLOCK)
    if programs == 0:
        return logits.new_zeros((), dtype=compute), gradient
    sums = logits.new_empty(programs, dtype=compute)
    loss_kernel(
        (programs,),
        (logits, target, sums if scale is None else scale, gradient, sums),
        (logits.numel(), alpha, gamma, pos_weight, neg_weight),
        (scale is not None, alpha == 2 and gamma == 4, with_gradient, compute == torch.float64, BLOCK),
    )
    return sums.sum(), gradient
