"""`assignment` in Triton: one program per problem."""

from torch import Tensor

from detops.kernels._assignment import assign_kernel, solve

__all__ = ["assign_kernel", "assignment"]


def assignment(cost: Tensor, sizes: Tensor | None) -> Tensor:
    """Launch the kernel on costs laid out by column; meaning as in `detops.reference.assignment`."""
    return solve(cost.mT.contiguous(), sizes)
