"""Which box trains a cell, for several Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def box_of_cells(index, used, cell, N, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the box of one image that uses each of BLOCK cells; -1 for none."""
    found = tl.full((BLOCK,), -1, tl.int32)
    for begin in range(0, N, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        counts = tl.load(used + n, mask=n < N, other=0) != 0
        place = tl.load(index + n, mask=n < N, other=-1)
        here = counts[None, :] & (place[None, :] == cell[:, None])
        found = tl.maximum(found, tl.max(tl.where(here, n[None, :], -1), 1))
    return found
