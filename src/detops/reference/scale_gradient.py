"""The definition of `scale_gradient_`."""

from torch import Tensor


def scale_gradient_(gradient: Tensor, factor: Tensor, columns: list[int] | None = None) -> None:
    """Multiply a gradient in place; where all factors are 1, the bits stay as they are, NaNs included.

    Args:
        gradient: Any shape, contiguous.
        factor: One number; with `columns`, (K,); or one per entry of the first dimension.
        columns: Sizes of K groups of columns, which make up the last dimension; each group has its own factor. None
            for one group.
    """
    factors = factor.double().reshape(-1)
    if (factors == 1).all():
        return
    if columns is None and len(factors) > 1:
        for part, number in zip(gradient, factors, strict=True):
            part.copy_(part.double() * number)
        return
    if columns is None:
        columns = [gradient.shape[-1]] if gradient.dim() else []
    if not columns:
        gradient.copy_(gradient.double() * factors[0])
    start = 0
    for number, count in zip(factors, columns, strict=True):
        part = gradient[..., start : start + count]
        part.copy_(part.double() * number)
        start += count
