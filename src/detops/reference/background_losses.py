"""The definition of `background_losses`: a dense head's class loss if no point has a box."""

import torch
from torch import Tensor
from torch.nn import functional as F


def background_losses(
    logits: list[Tensor], valid: Tensor | None, scale: Tensor, factor: float, gamma: float, with_gradient: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return each level's loss, and its gradient.

        scale * sum over valid points and classes of factor * p^gamma * softplus(x),    p = sigmoid(x)

    A logit that is not finite makes its level's loss NaN, and its own gradient.

    Args:
        logits: Each level's (B, C, H, W), contiguous or channels last.
        valid: (B, A) bool, points level after level, row by row; the logits of others are not read, and their gradient
            is 0. None for all.
        scale: (G,), a number for each G-th of the levels, one after another; G divides their number.
        factor: Factor of the loss.
        gamma: Exponent of the probability.
        with_gradient: Whether to compute the gradient.

    Returns:
        (L,) losses; the gradients in the shapes, dtypes and layouts of the logits, none without `with_gradient`.

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", 2017, equation 4, for a label of 0.
    """
    losses, gradients, start = [], [], 0
    for i, level in enumerate(logits):
        size, number = level.shape[2] * level.shape[3], scale.double()[i * len(scale) // len(logits)]
        x = level.detach().double().requires_grad_()
        with torch.enable_grad():
            each = factor * x.sigmoid() ** gamma * (F.softplus(x) + x.detach() * 0)
            if valid is not None:
                here = valid[:, start : start + size].view(len(level), 1, *level.shape[2:])
                each = each.where(here, 0)
            loss = number * each.sum()
        gradient = torch.autograd.grad(loss, x)[0]
        if valid is not None:
            gradient = gradient.where(here, 0)
        losses.append(loss.detach())
        gradients.append(torch.empty_like(level).copy_(gradient))
        start += size
    return torch.stack(losses), gradients if with_gradient else []
