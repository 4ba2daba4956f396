"""Exact linear sum assignment of many problems at once."""

from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor


def linear_assignment(cost: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Assign rows (such as queries) to columns (such as boxes) at the least total cost, exactly, for many problems.

    Each column gets a row of its own; where there are more columns than rows, each row a column. The same optimum as
    SciPy's `linear_sum_assignment`, and where several exist, the same one every time. A cost that is not finite is the
    last resort: as few such pairs as possible are taken, and among these solutions the one whose other costs have the
    least sum; nothing raises. Problems are solved in parallel, on CUDA and ROCm by one program each without the host;
    on other devices costs go through the host, which waits for them.

    Args:
        cost: (..., Q, N) numbers.
        sizes: (...) integers, how many of the N columns each problem has; the others are padding. None for all.

    Returns:
        (..., N) int64 row of each column, -1 for none.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match.

    Example:
        >>> import torch
        >>> linear_assignment(torch.tensor([[4, 1.5], [2, 0], [3, 5]]))
        tensor([2, 1])
        >>> linear_assignment(torch.tensor([[[torch.nan, 2.0], [1, 3]]]), torch.tensor([1]))
        tensor([[ 1, -1]])

    Reference:
        Kuhn, "The Hungarian method", 1955; the shortest augmenting paths of Jonker and Volgenant, 1987.
    """
    require_tensor("cost", cost, FLOATS + INTEGERS, "numbers")
    if cost.dim() < 2:
        raise ValueError(f"cost: expected shape (..., Q, N), got {tuple(cost.shape)}")
    shape = cost.shape[:-2]
    if sizes is not None:
        require_tensor("sizes", sizes, INTEGERS, "integers")
        require_shape("sizes", sizes, tuple(shape), "to match cost")
        require_device("sizes", sizes, cost, "cost")
    problems = shape.numel()
    rows = ops.assignment(
        cost=cost.detach().reshape(problems, *cost.shape[-2:]), sizes=None if sizes is None else sizes.reshape(problems)
    )
    return rows.reshape(*shape, cost.shape[-1])
