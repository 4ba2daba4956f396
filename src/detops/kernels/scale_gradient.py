"""`scale_gradient_` in Triton: one launch, of which each program reads its factor first, and returns if it is 1.

So the usual backward pass costs one launch and no memory traffic, and the host never reads the factor.
"""

from itertools import accumulate

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._launch import cdiv, kernel, level_of, map_of, number_of

BLOCK = 4096


@kernel(tensors=2, scalars=("factor",), num_warps=8)
def scale_kernel(
    gradients,  # a tuple
    factor,
    counts,  # tuples: elements of each part of a gradient
    firsts,  # the first program of each gradient
    LEVELS: tl.constexpr,
    GROUPS: tl.constexpr,  # how many factors the gradients have, one after another; 0 if each part has one
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scale one block of a gradient, or of one of its parts that have a factor each."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    which = level_of(tl.program_id(0), firsts, LEVELS)
    part = which * GROUPS // LEVELS if GROUPS > 0 else tl.program_id(1)
    f = tl.load(factor + part).to(COMPUTE)
    if f != 1.0:
        count = number_of(counts, which, LEVELS, 1, 0)
        program = tl.program_id(0) - number_of(firsts, which, LEVELS, 1, 0)
        index = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        at = map_of(gradients, which, LEVELS) + tl.program_id(1).to(tl.int64) * count + index
        g = tl.load(at, mask=index < count, other=0).to(COMPUTE)
        tl.store(at, (g * f).to(at.dtype.element_ty), mask=index < count)


@kernel(tensors=2, scalars=("factors",), num_warps=8)
def scale_columns_kernel(
    gradients,  # a tuple
    factors,
    counts,  # tuples: elements of each gradient
    firsts,  # its first program
    width,
    end_0,
    end_1,
    end_2,
    LEVELS: tl.constexpr,
    K: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scale one block by a factor for each of up to four groups of columns."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    f_0 = tl.load(factors).to(COMPUTE)
    f_1 = tl.load(factors + 1).to(COMPUTE) if K > 1 else f_0
    f_2 = tl.load(factors + 2).to(COMPUTE) if K > 2 else f_1
    f_3 = tl.load(factors + 3).to(COMPUTE) if K > 3 else f_2
    if (f_0 != 1.0) | (f_1 != 1.0) | (f_2 != 1.0) | (f_3 != 1.0):
        which = level_of(tl.program_id(0), firsts, LEVELS)
        count = number_of(counts, which, LEVELS, 1, 0)
        program = tl.program_id(0) - number_of(firsts, which, LEVELS, 1, 0)
        index = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        column = index % width
        f = tl.where(column < end_0, f_0, tl.where(column < end_1, f_1, tl.where(column < end_2, f_2, f_3)))
        at = map_of(gradients, which, LEVELS) + index
        g = tl.load(at, mask=index < count, other=0).to(COMPUTE)
        tl.store(at, (g * f).to(at.dtype.element_ty), mask=index < count)


def scale_gradient_(gradients: list[Tensor], factor: Tensor, columns: list[int] | None = None) -> None:
    """Launch one program per block; arguments and meaning as in `detops.reference.scale_gradient`.

    Raises:
        ValueError: There are more than four groups of columns.
    """
    groups = factor.numel() if columns is None and (factor.numel() == 1 or len(gradients) > 1) else 0
    parts = 1 if columns is not None or groups else factor.numel()
    counts = tuple(gradient.numel() // max(parts, 1) for gradient in gradients)
    *firsts, programs = accumulate((cdiv(count, BLOCK) for count in counts), initial=0)
    if programs == 0:
        return
    tensors, numbers = (tuple(gradients), factor.contiguous()), (counts, tuple(firsts))
    double = gradients[0].dtype == torch.float64
    if columns is None:
        scale_kernel((programs, parts), tensors, numbers, (len(gradients), groups, double, BLOCK))
        return
    if len(columns) > 4:
        raise ValueError(f"columns: expected at most 4 groups, got {len(columns)}")
    width = gradients[0].shape[-1]
    ends = [*accumulate(columns)][:-1]
    ends += [width] * (3 - len(ends))
    constants = (len(gradients), len(columns), double, BLOCK)
    scale_columns_kernel((programs,), tensors, (*numbers, width, *ends), constants)
