"""What `scale_gradient_` means."""

from torch import Tensor


def scale_gradient_(gradient: Tensor, factor: Tensor) -> None:
    """Multiply a gradient by a 0-d factor, in place; a factor of 1, NaN or not, leaves the bits as they are."""
    if factor != 1:
        gradient.copy_(gradient.double() * factor.double())
