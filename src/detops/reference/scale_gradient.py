"""The definition of `scale_gradient_`."""

from torch import Tensor


def scale_gradient_(gradients: list[Tensor], factor: Tensor, columns: list[int] | None = None) -> None:
    """Multiply gradients in place; where all factors of one are 1, its bits stay as they are, NaNs included.

    Args:
        gradients: Any shapes, each contiguous.
        factor: One number; with `columns`, (K,); or (G,), one for each G-th of the gradients, one after another; or,
            for a single gradient, one per entry of its first dimension.
        columns: Sizes of K groups of columns, which make up the last dimension; each group has its own factor. None
            for one group.
    """
    factors = factor.double().reshape(-1)
    for i, gradient in enumerate(gradients):
        if len(factors) == 1 or columns is not None:
            _scale(gradient, factors, columns)
        elif len(gradients) > 1:
            _scale(gradient, factors[i * len(factors) // len(gradients)], None)
        else:
            for part, number in zip(gradient, factors, strict=True):
                part.copy_(part.double() * number)


def _scale(gradient: Tensor, factors: Tensor, columns: list[int] | None) -> None:
    if (factors == 1).all():
        return
    factors = factors.reshape(-1)
    if columns is None:
        columns = [gradient.shape[-1]] if gradient.dim() else []
    if not columns:
        gradient.copy_(gradient.double() * factors[0])
    start = 0
    for number, count in zip(factors, columns, strict=True):
        part = gradient[..., start : start + count]
        part.copy_(part.double() * number)
        start += count
