"""The definition of `gaussian_focal_loss`: CenterNet's focal loss over Gaussian targets, one cell at a time."""

import math

import torch
from torch import Tensor


def gaussian_focal_loss(
    logits: Tensor,
    target: Tensor,
    scale: Tensor | None,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return the sum of the loss over all cells times `scale`, and its gradient.

    With p = sigmoid(x) of a logit x, a cell whose target t is exactly 1 is a positive; all others are negatives,
    weighted down near a centre:

        positive:  -pos_weight * (1 - p)^alpha * log(p)
        negative:  -neg_weight * (1 - t)^gamma * p^alpha * log(1 - p)

    The logarithms come from the logit, log(p) = -softplus(-x) and log(1 - p) = -softplus(x), so nothing is
    clamped and nothing overflows. A logit that is not finite makes the loss NaN. Computed in float64.

    Args:
        logits: Any shape.
        target: The same shape, 0 .. 1.
        scale: 0-d factor of sum and gradient, such as one over the number of objects; None for 1.
        alpha: Exponent that weighs down cells that are classified well already.
        gamma: Exponent that weighs down negatives near a centre.
        pos_weight: Factor of the positives.
        neg_weight: Factor of the negatives.
        with_gradient: Whether to compute the gradient; if not, an empty tensor is returned for it.

    Returns:
        0-d float64 sum, and the gradient of the sum in the shape and dtype of the logits.

    Reference:
        Law and Deng, "CornerNet", 2018, equation 1, as in MMDetection's `gaussian_focal_loss`.
    """
    total, factor = 0.0, 1.0 if scale is None else float(scale)
    gradient: list[float] = []
    for x, t in zip(logits.double().flatten().tolist(), target.double().flatten().tolist(), strict=True):
        if not math.isfinite(x):
            total, gradient = math.nan, [*gradient, math.nan]
            continue
        e = math.exp(-abs(x))
        p, q = (1 / (1 + e), e / (1 + e)) if x >= 0 else (e / (1 + e), 1 / (1 + e))
        log_p, log_q = -max(-x, 0) - math.log1p(e), -max(x, 0) - math.log1p(e)
        if t == 1:
            total += -pos_weight * q**alpha * log_p
            gradient.append(pos_weight * q**alpha * (alpha * p * log_p - q))
        else:
            weight = neg_weight * (1 - t) ** gamma * p**alpha
            total += -weight * log_q
            gradient.append(weight * (p - alpha * q * log_q))
    grad = (factor * torch.tensor(gradient, dtype=torch.float64)).to(logits).reshape(logits.shape)
    return torch.tensor(factor * total, dtype=torch.float64), grad if with_gradient else logits.new_empty(0)
