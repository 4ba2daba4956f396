"""What `scale_gradient_` means."""

from torch import Tensor


def scale_gradient_(gradient: Tensor, factor: Tensor, columns: list[int] | None = None) -> None:
    """Multiply a gradient in place; where all factors are 1, the bits stay as they are, NaN or not.

    Args:
        gradient: Any shape, contiguous.
        factor: One number; or (K,), with columns.
        columns: K numbers with the sum of the last dimension's size: each factor is for so many elements of it.
    """
    factors = factor.double().reshape(-1)
    if columns is None:
        columns = [gradient.shape[-1]] if gradient.dim() else []
    if (factors == 1).all():
        return
    if not columns:
        gradient.copy_(gradient.double() * factors[0])
    start = 0
    for number, count in zip(factors, columns, strict=True):
        part = gradient[..., start : start + count]
        part.copy_(part.double() * number)
        start += count
