"""`scale_gradient_` in PyTorch: used on devices without a kernel."""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype


def scale_gradient_(gradient: Tensor, factor: Tensor, columns: list[int] | None = None) -> None:
    """Multiply in place; meaning as in `detops.reference.scale_gradient`."""
    # In float32 for short types: the factor may be a loss scale of 65536, which overflows float16.
    wide = accumulate_dtype(gradient)
    factor = factor.to(wide)
    if columns is None:
        if factor.numel() != 1:
            factor = factor.view(-1, *[1] * (gradient.dim() - 1))
        gradient.copy_(gradient.to(wide) * factor)
        return
    parts = [number.expand(count) for number, count in zip(factor.unbind(), columns, strict=True)]
    gradient.copy_(gradient.to(wide) * torch.cat(parts))
