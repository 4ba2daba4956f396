"""`gaussian_focal_loss` in whole-tensor PyTorch: used on devices without a kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.arguments import accumulate_dtype


def gaussian_focal_loss(
    logits: Tensor,
    target: Tensor,
    scale: Tensor | None,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    with_gradient: bool,
    negative_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return sum and gradient; arguments and meaning as in `detops.reference.gaussian_focal_loss`.

    `negative_weight` broadcasts against the logits; where it is 0, negatives are not read.

    Returns:
        0-d sum, float64 for float64 logits, else float32; gradient like the logits, empty without `with_gradient`.
    """
    x = logits.to(accumulate_dtype(logits))
    t = target.to(x.dtype)
    positive = t == 1
    if negative_weight is not None:
        x = x.where(positive | (negative_weight != 0), 0)
    # One term for both kinds of cells: a positive's is that of a negative with the opposite logit.
    y = torch.where(positive, -x, x)
    p, q, cost = y.sigmoid(), (-y).sigmoid(), -F.logsigmoid(-y)  # softplus(y); F.softplus is cut off at 20
    fall = neg_weight * (1 - t).pow(gamma)
    if negative_weight is not None:
        fall = fall * negative_weight
    weight = torch.where(positive, pos_weight, fall) * p.pow(alpha)
    factor = torch.ones((), dtype=x.dtype, device=x.device) if scale is None else scale.to(x.dtype)
    total = (weight * cost + 0 * x).sum() * factor  # an infinite logit gives NaN
    if not with_gradient:
        return total, logits.new_empty(0)
    gradient = factor * (weight * (p + alpha * q * cost)) + 0 * x
    return total, torch.where(positive, -gradient, gradient).to(logits.dtype)
