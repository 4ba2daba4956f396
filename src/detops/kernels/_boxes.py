"""The overlap of boxes, for several Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def overlap(x1, y1, x2, y2, area, u1, v1, u2, v2, other_area):
    """Return the areas of the intersection and the union of boxes, from their corners and areas."""
    width = tl.maximum(tl.minimum(x2, u2) - tl.maximum(x1, u1), 0.0)
    height = tl.maximum(tl.minimum(y2, v2) - tl.maximum(y1, v1), 0.0)
    inter = width * height
    return inter, area + other_area - inter
