"""log(1 + e) and log(1 + e^x), accurate for small values too, and powers, for several Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def log1p_of(e):
    """Return log(1 + e) for 0 <= e <= 1: 2 atanh(z), z = e / (2 + e) <= 1 / 3, by the best polynomial of its degree."""
    z = e / (2.0 + e)
    s = z * z
    p = 0.28178335 * s + 0.27960603
    p = p * s + 0.4002491
    p = p * s + 0.66666315
    p = p * s + 2.0
    return z * p


@triton.jit
def softplus(x):
    """Return log(1 + e^x) and the sigmoid of x; both are NaN where x is not finite."""
    e = tl.exp(-tl.abs(x))
    r = 1 / (1 + e)
    poison = x * 0
    return tl.maximum(x, 0.0) + log1p_of(e) + poison, tl.where(x < 0, e * r, r) + poison


@triton.jit
def power(x, exponent, SQUARE: tl.constexpr):
    """Return x^exponent for x >= 0, where 0^0 is 1; with SQUARE the exponent is 2."""
    if SQUARE:
        result = x * x
    else:
        at_zero = tl.where(exponent == 0, 1.0, 0.0)
        result = tl.where(x > 0, tl.exp(exponent * tl.log(tl.where(x > 0, x, 1.0))), at_zero)
    return result
