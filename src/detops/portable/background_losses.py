"""`background_losses` in whole-batch PyTorch: used on devices without a kernel."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.arguments import accumulate_dtype


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
    """Return losses, factors and gradients; arguments and meaning as in `detops.reference.background_losses`."""
    wide = accumulate_dtype(logits[0])
    whole = (counts.to(torch.float32).clamp(min=least).sum(1) + eps).reciprocal()
    rest = whole.amax() / kept if kept else whole.new_ones(())
    scale = whole / rest
    numbers = scale.to(wide).repeat_interleave(len(logits) // len(scale))
    losses, gradients, start = [], [], 0
    for number, level in zip(numbers, logits, strict=True):
        size, x, here = level.shape[2] * level.shape[3], level.to(wide), None
        if valid is not None:
            here = valid[:, start : start + size].view(len(level), 1, *level.shape[2:])
            x = x.where(here, 0)
        start += size
        p, cost = x.sigmoid(), F.softplus(x) + x * 0  # NaN where a logit is not finite
        power = factor * p.pow(gamma)
        loss = power * cost
        losses.append((loss if here is None else loss.where(here, 0)).sum())
        if with_gradient:
            slope = number * power * (p + gamma * (1 - p) * cost)
            gradients.append(torch.empty_like(level).copy_(slope if here is None else slope.where(here, 0)))
    return numbers * torch.stack(losses), torch.stack([whole, scale, rest.expand_as(scale)]), gradients
