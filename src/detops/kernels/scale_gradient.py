"""`scale_gradient_` in Triton: each program reads the factor first, and returns if it is 1.

So the usual backward pass costs one launch and no memory traffic, and the host never reads the factor.
"""

from itertools import accumulate

import torch
import triton.language as tl
from torch import Tensor

from detops.kernels._launch import cdiv, kernel

BLOCK = 4096


@kernel(tensors=2, specialize=("count",), scalars=("factor",), num_warps=8)
def scale_kernel(gradient, factor, count, DOUBLE: tl.constexpr, BLOCK: tl.constexpr):
    """Scale one block of one of the parts of `count` elements that have a factor each."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    part = tl.program_id(1).to(tl.int64)
    f = tl.load(factor + part).to(COMPUTE)
    if f != 1.0:
        index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        at = gradient + part * count + index
        g = tl.load(at, mask=index < count, other=0).to(COMPUTE)
        tl.store(at, (g * f).to(gradient.dtype.element_ty), mask=index < count)


@kernel(tensors=2, specialize=("count",), scalars=("factors",), num_warps=8)
def scale_columns_kernel(
    gradient, factors, count, width, end_0, end_1, end_2, K: tl.constexpr, DOUBLE: tl.constexpr, BLOCK: tl.constexpr
):
    """Scale one block by a factor for each of up to four groups of columns."""
    COMPUTE: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    f_0 = tl.load(factors).to(COMPUTE)
    f_1 = tl.load(factors + 1).to(COMPUTE) if K > 1 else f_0
    f_2 = tl.load(factors + 2).to(COMPUTE) if K > 2 else f_1
    f_3 = tl.load(factors + 3).to(COMPUTE) if K > 3 else f_2
    if (f_0 != 1.0) | (f_1 != 1.0) | (f_2 != 1.0) | (f_3 != 1.0):
        index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        column = index % width
        f = tl.where(column < end_0, f_0, tl.where(column < end_1, f_1, tl.where(column < end_2, f_2, f_3)))
        g = tl.load(gradient + index, mask=index < count, other=0).to(COMPUTE)
        tl.store(gradient + index, (g * f).to(gradient.dtype.element_ty), mask=index < count)


def scale_gradient_(gradient: Tensor, factor: Tensor, columns: list[int] | None = None) -> None:
    """Launch one program per block; arguments and meaning as in `detops.reference.scale_gradient`.

    Raises:
        ValueError: There are more than four groups of columns.
    """
    if gradient.numel() == 0:
        return
    count, double = gradient.numel(), gradient.dtype == torch.float64
    if columns is None:
        parts = factor.numel()
        size = count // parts
        scale_kernel((cdiv(size, BLOCK), parts), (gradient, factor.contiguous()), (size,), (double, BLOCK))
        return
    grid = (cdiv(count, BLOCK),)
    if len(columns) > 4:
        raise ValueError(f"columns: expected at most 4 groups, got {len(columns)}")
    width = gradient.shape[-1]
    ends = [*accumulate(columns)][:-1]
    ends += [width] * (3 - len(ends))
    scale_columns_kernel(grid, (gradient, factor.contiguous()), (count, width, *ends), (len(columns), double, BLOCK))
