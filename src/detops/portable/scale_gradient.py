"""`scale_gradient_` in PyTorch: what runs where there is no kernel."""

import torch
from torch import Tensor


def scale_gradient_(gradient: Tensor, factor: Tensor) -> None:
    """Multiply in place; meaning as in `detops.reference.scale_gradient`."""
    # In float32 for short types: the factor may be a loss scale of 65536, which float16 does not hold.
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    gradient.copy_(gradient.to(wide) * factor.to(wide))
