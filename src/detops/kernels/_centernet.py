"""The factors of CenterNet's losses, for several Triton kernels."""

import triton
import triton.language as tl

EPS = tl.constexpr(1.1920928955078125e-07)  # float32's


@triton.jit
def scale_of(count, least, multiple, weight, COMPUTE: tl.constexpr):
    """The weight of a loss over a multiple of the number of centres."""
    divisor = tl.maximum(tl.load(count).to(COMPUTE), tl.cast(least, COMPUTE))
    return weight / (divisor * multiple + EPS)


@triton.jit
def factor_of(scale, kept):
    """The factor of a gradient: what is kept of the scale, or all if that is 0."""
    return tl.where(kept == 0, scale, tl.cast(kept, scale.dtype))
