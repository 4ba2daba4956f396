"""Where points lie on maps, for the kernels that read maps at points and that hand gradients back."""

import triton
import triton.language as tl


@triton.jit
def position_of(point, size, BORDER: tl.constexpr):
    """Return where points lie along an axis of `size` cells, counted from the centre of the first.

    Without `BORDER` it is -2 where a point is not near any cell. Products and sums are rounded apart.
    """
    position = point * size - 0.5
    if BORDER:
        last = (size - 1).to(position.dtype)
        return tl.where(position > 0, tl.where(position < last, position, last), 0.0)  # 0 for NaN
    return tl.where((position > -1) & (position < size), position, -2.0)
