"""`positive_losses_backward` in whole-batch PyTorch: used on devices without a kernel."""

import torch
from torch import Tensor

from detops.portable._box_distributions import at, distillation, level_at, sides_of, slots_of


def positive_losses_backward(
    bbox_preds: list[Tensor],
    soft_targets: list[Tensor],
    points: Tensor,
    boxes: Tensor,
    index: Tensor,
    weight: Tensor,
    region: Tensor | None,
    slopes: Tensor,
    factors: Tensor,
    weights: list[float],
    box_kind: int,
    temperature: float,
    margin: float,
    most: int,
) -> list[Tensor]:
    """Return the gradients; arguments and meaning as in `detops.reference.positive_losses_backward`."""
    slots, levels = slots_of(index, region, most), len(bbox_preds)
    gradients, start = [], 0
    for i, preds in enumerate(bbox_preds):
        if preds.shape[2] * preds.shape[3] == 0:
            gradients.append(torch.zeros_like(preds, memory_format=torch.contiguous_format))
            continue
        level = level_at(preds, slots, start, points, boxes, index)
        sides, wide = sides_of(level.raw, level.box, box_kind, margin), level.raw.dtype
        factor = slopes[:, i * slopes.shape[1] // levels].to(wide)
        factor = factor * factors[: len(slopes), i * factors.shape[1] // levels].to(wide)
        w = weight.to(wide).gather(1, slots).where(level.positive, 0)[..., None, None]
        total = w * (weights[0] * factor[0]) * sides.iou_loss_gradient
        if level.raw.shape[3] > 1:
            total = total + w * (weights[1] * factor[1]) * sides.dfl_gradient
        there = positive = (w != 0)[..., 0, 0]
        if soft_targets:
            soft = at(soft_targets[i], level.rows, wide).unflatten(2, level.raw.shape[2:])
            slope = distillation(level.raw, soft, temperature)[1]
            total = total + weights[2] * factor[2] * w * slope
            if region is not None:
                own = region.to(w.dtype).gather(1, slots).where(slots == level.rows + start, 0)
                there = there | (own > 0)
                total = (
                    total.where(positive[..., None, None], 0) + weights[3] * factor[3] * own[..., None, None] * slope
                )
        total = total.where(there[..., None, None], 0).flatten(2).transpose(1, 2)
        gradient = torch.zeros(*preds.shape[:2], preds.shape[2] * preds.shape[3], dtype=w.dtype, device=preds.device)
        gradient.scatter_add_(2, level.rows[:, None].expand_as(total), total)
        gradients.append(gradient.view(preds.shape).to(preds.dtype))
        start += preds.shape[2] * preds.shape[3]
    return gradients
