"""`positive_losses_` in whole-batch PyTorch: used on devices without a kernel."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.portable._box_distributions import at, distillation, level_at, sides_of, slots_of


class ClassLoss(NamedTuple):
    """A class loss, with p = sigmoid(x) of a logit x.

    With the target q it is (by_quality * q + constant) * |q - p|^exponent * BCE(p, q), and as background it is
    background * p^background_exponent * BCE(p, 0).
    """

    by_quality: float
    constant: float
    exponent: float
    background: float
    background_exponent: float


# Made from alpha and gamma, in the order of the reference's CLASS_KINDS.
CLASS_LOSSES: tuple[Callable[[float, float], ClassLoss], ...] = (
    lambda alpha, gamma: ClassLoss(0, 1, gamma, 1, gamma),  # quality
    lambda alpha, gamma: ClassLoss(0, 1, 0, 1, 0),  # bce
    lambda alpha, gamma: ClassLoss(1, 0, 0, alpha, gamma),  # varifocal
    lambda alpha, gamma: ClassLoss(2 * alpha - 1, 1 - alpha, gamma, 1 - alpha, gamma),  # focal
)


def class_loss(x: Tensor, q: Tensor, kind: ClassLoss) -> tuple[Tensor, Tensor]:
    """Return the loss of logits x with target q less that as background, and the gradient of the former."""
    p, cost = x.sigmoid(), F.binary_cross_entropy_with_logits(x, q, reduction="none")
    away, share = p - q, kind.by_quality * q + kind.constant
    power = away.abs().pow(kind.exponent)
    slope = kind.exponent * away.abs().pow(kind.exponent - 1) * away.sign() * p * (1 - p)
    background = kind.background * p.pow(kind.background_exponent) * F.softplus(x)
    return share * power * cost - background, share * (away * power + cost * slope.where(away != 0, 0))


def positive_losses_(
    class_gradients: list[Tensor],
    cls_scores: list[Tensor],
    bbox_preds: list[Tensor],
    soft_targets: list[Tensor],
    points: Tensor,
    boxes: Tensor,
    labels: Tensor,
    index: Tensor,
    quality: Tensor | None,
    weight: Tensor | None,
    region: Tensor | None,
    background: Tensor,
    scales: Tensor,
    box_scale: Tensor | None,
    least: float,
    eps: float,
    divide_distillation: bool,
    weights: list[float],
    class_kind: int,
    box_kind: int,
    alpha: float,
    gamma: float,
    temperature: float,
    margin: float,
    most: int,
    heads: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, factors and weights; arguments and meaning as in `detops.reference.positive_losses`."""
    wide = torch.float64 if cls_scores[0].dtype == torch.float64 else torch.float32
    slots = slots_of(index, region, most)
    groups = scales.shape[1]
    of_class = (weights[0] * scales[1].to(wide)).repeat_interleave(len(cls_scores) // groups).unbind()
    kind = CLASS_LOSSES[class_kind](alpha, gamma)
    found = torch.zeros(index.shape, dtype=torch.float32, device=index.device)
    columns, start = [], 0
    for i, (scores, preds, factor) in enumerate(zip(cls_scores, bbox_preds, of_class, strict=True)):
        if preds.shape[2] * preds.shape[3] == 0:
            columns.append(torch.zeros(6, dtype=wide, device=index.device))
            continue
        level = level_at(preds, slots, start, points, boxes, index)
        sides, z = sides_of(level.raw, level.box, box_kind, margin), at(scores, level.rows, wide)
        label = torch.zeros_like(level.chosen)
        if labels.shape[1]:
            label = labels.to(torch.int64).gather(1, level.chosen)
        positive = level.positive & (label >= 0) & (label < z.shape[2])
        label = label.where(positive, 0)
        w = z.amax(2).sigmoid() if weight is None else weight.to(wide).gather(1, slots)
        w = w.where(positive, 0)
        found.scatter_add_(1, level.rows + start, w.to(torch.float32))

        q = sides.iou if quality is None else quality.to(wide).gather(1, slots)
        correction, slope = class_loss(z.gather(2, label[..., None])[..., 0], q, kind)
        if class_gradients:
            if class_gradients[i].is_contiguous():
                gradient = class_gradients[i].flatten(1)
                place = label * preds.shape[2] * preds.shape[3] + level.rows
            else:  # channels last
                gradient = class_gradients[i].permute(0, 2, 3, 1).view(len(preds), -1)
                place = level.rows * z.shape[2] + label
            # Other slots add zeros to elements that may be a positive's. The old value is zeroed first: adding the
            # difference would lose digits of the new value in a short type.
            gradient.scatter_add_(1, place, -gradient.gather(1, place).where(positive, 0))
            gradient.scatter_add_(1, place, (factor * slope).where(positive, 0).to(gradient.dtype))
        zero = torch.zeros_like(factor)
        counts = w != 0
        rows = [factor * correction.where(positive, 0).sum(), w.sum()]
        parts = (weights[1], sides.iou_loss), (weights[2], sides.dfl)
        rows += [of_loss * (w * loss).where(counts, 0).sum() for of_loss, loss in parts]
        ld = of_region = zero
        if soft_targets:
            soft = at(soft_targets[i], level.rows, wide).unflatten(2, level.raw.shape[2:])
            loss = distillation(level.raw, soft, temperature)[0]
            ld = (w * loss).where(counts, 0).sum()
            if region is not None:
                # A slot of another level reads this level's first point, whose region must count only in its own slot.
                own = region.to(wide).gather(1, slots).where((slots == level.rows + start), 0)
                of_region = (own * loss).where(own > 0, 0).sum()
        columns.append(torch.stack([*rows, weights[3] * ld, weights[4] * of_region]))
        start += preds.shape[2] * preds.shape[3]
    losses = torch.stack(columns, 1)
    losses[0] += background
    losses = losses.view(6, heads, -1).sum(2) if heads else losses
    factors = box_factors(losses[1], groups, box_scale, least, eps, divide_distillation)
    rest = torch.cat([scales[2:], torch.ones_like(scales[2:]), factors])
    return losses * rest.repeat_interleave(losses.shape[1] // groups, 1), factors, found


def box_factors(
    weights: Tensor, groups: int, box_scale: Tensor | None, least: float, eps: float, divide_distillation: bool
) -> Tensor:
    """Return the factors (4, G) of the box losses; `weights` has the sums of w of levels or heads."""
    if box_scale is None:
        box_scale = (weights.sum().to(torch.float32).clamp(min=least) + eps).reciprocal()
    factors = box_scale.to(torch.float32).expand(4, groups)
    if divide_distillation:
        return factors.contiguous()
    return torch.cat([factors[:2], torch.ones_like(factors[2:])])
