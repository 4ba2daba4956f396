"""The definition of `background_losses`: a dense head's class loss if no point has a box."""

import torch
from torch import Tensor
from torch.nn import functional as F


def background_losses(
    logits: list[Tensor],
    valid: Tensor | None,
    counts: Tensor,
    least: float,
    eps: float,
    kept: float,
    factor: float,
    gamma: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return each level's loss, the factors of the losses, and the gradients.

        scale * sum over valid points and classes of factor * p^gamma * softplus(x),    p = sigmoid(x)

    A head is a G-th of the levels, which follow one another. Its loss is divided by the sum of its counts, each at
    least `least`, plus `eps`. So small a factor would make most gradients 0 in float16: with `kept`, a head's scale is
    only a part of it, and the rest is left to the caller, the same for all heads.

    A logit that is not finite makes its level's loss NaN, and its own gradient.

    Args:
        logits: Each level's (B, C, H, W), contiguous or channels last.
        valid: (B, A) bool, points level after level, row by row; the logits of others are not read, and their gradient
            is 0. None for all.
        counts: (G, M) numbers, those of each head; G divides the number of levels.
        least: Lowest value of a count.
        eps: Added to the sum of a head's counts.
        kept: Scale of the head that has the largest factor; 0 for its whole factor, and so for all heads.
        factor: Factor of the loss.
        gamma: Exponent of the probability.
        with_gradient: Whether to compute the gradient.

    Returns:
        (L,) losses; (3, G) float32: each head's whole factor, scale, and what the scale is to be multiplied by; the
        gradients in the shapes, dtypes and layouts of the logits, none without `with_gradient`.

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", 2017, equation 4, for a label of 0.
    """
    whole = 1 / (counts.float().clamp(min=least).sum(1) + eps)
    rest = whole.amax() / kept if kept else torch.ones(())
    scale, losses, gradients, start = whole / rest, [], [], 0
    for i, level in enumerate(logits):
        size, number = level.shape[2] * level.shape[3], scale[i * len(scale) // len(logits)].double()
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
    scales = torch.stack([whole, scale, rest.expand_as(scale)])
    return torch.stack(losses), scales, gradients if with_gradient else []
