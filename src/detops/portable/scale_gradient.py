"""`scale_gradient_` in PyTorch: used on devices without a kernel."""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype


def scale_gradient_(gradients: list[Tensor], factor: Tensor, columns: list[int] | None = None) -> None:
    """Multiply in place; meaning as in `detops.reference.scale_gradient`."""
    if columns is not None or factor.numel() == 1 or len(gradients) == 1:
        parts = [factor] * len(gradients)
    else:
        numbers = factor.unbind()
        parts = [number for number in numbers for _ in range(len(gradients) // len(numbers))]
    for gradient, number in zip(gradients, parts, strict=True):
        # In float32 for short types: the factor may be a loss scale of 65536, which overflows float16.
        wide = accumulate_dtype(gradient)
        if columns is not None:
            pairs = zip(number.unbind(), columns, strict=True)
            number = torch.cat([one.expand(count) for one, count in pairs])
        elif number.numel() != 1:
            number = number.view(-1, *[1] * (gradient.dim() - 1))
        gradient.copy_(gradient.to(wide) * number.to(wide))
