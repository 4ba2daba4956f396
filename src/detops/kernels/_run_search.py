"""Finding the run that holds a position, for the kernels that read run lengths."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def run_at(ends, position, begin, end, steps, asked):
    """Return the first run of begin .. end that ends after each position; `end` where none does.

    `ends` are where all runs end, counted through all masks; 2 to the power of `steps` is more than their number.
    """
    low = begin + tl.zeros_like(position)
    high = end + tl.zeros_like(position)
    for _ in range(steps):
        middle = (low + high) // 2
        going = asked & (low < high)
        later = tl.load(ends + middle, mask=going, other=0) > position
        high = tl.where(going & later, middle, high)
        low = tl.where(going & (later == 0), middle + 1, low)
    return low


def search_steps(counts: Tensor) -> int:
    """Return how many halvings find one run among all."""
    return len(counts).bit_length()
