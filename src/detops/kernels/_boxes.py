"""Boxes and their overlap, for several Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def overlap(x1, y1, x2, y2, area, u1, v1, u2, v2, other_area):
    """Return the areas of the intersection and the union of boxes, from their corners and areas."""
    width = tl.maximum(tl.minimum(x2, u2) - tl.maximum(x1, u1), 0.0)
    height = tl.maximum(tl.minimum(y2, v2) - tl.maximum(y1, v1), 0.0)
    inter = width * height
    return inter, area + other_area - inter


@triton.jit
def box_of(place, mask, side, CXCYWH: tl.constexpr):
    """Load boxes as centre and size, from corners without CXCYWH; where masked, all numbers are finite."""
    a = tl.load(place, mask=mask, other=0.0)
    b = tl.load(place + 1, mask=mask, other=0.0)
    c = tl.load(place + 2, mask=mask, other=side)
    d = tl.load(place + 3, mask=mask, other=side)
    if not CXCYWH:
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    return a, b, c, d
