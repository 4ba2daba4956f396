"""`positive_losses_` in whole-batch PyTorch: what runs where there is no kernel."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.portable._box_distributions import at, distillation, level_at, sides_of, slots_of


def positive_losses_(
    class_gradients: list[Tensor],
    cls_scores: list[Tensor],
    bbox_preds: list[Tensor],
    soft_targets: list[Tensor],
    cells: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    index: Tensor,
    region: Tensor | None,
    scale: Tensor,
    beta: float,
    temperature: float,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Losses and weights; arguments and meaning as in `detops.reference.positive_losses`."""
    wide = torch.float64 if cls_scores[0].dtype == torch.float64 else torch.float32
    slots, scale = slots_of(index, region, most), scale.to(wide).reshape(())
    weights = torch.zeros(index.shape, dtype=torch.float32, device=index.device)
    columns, start = [], 0
    for i, (scores, preds) in enumerate(zip(cls_scores, bbox_preds, strict=True)):
        if preds.shape[2] * preds.shape[3] == 0:
            columns.append(torch.zeros(6, dtype=wide, device=index.device))
            continue
        level = level_at(preds, slots, start, cells, gt_boxes, index)
        sides, z = sides_of(level.raw, level.box), at(scores, level.rows, wide)
        label = torch.zeros_like(level.chosen)
        if gt_labels.shape[1]:
            label = gt_labels.to(torch.int64).gather(1, level.chosen)
        positive = level.positive & (label >= 0) & (label < z.shape[2])
        label = label.where(positive, 0)
        w = z.amax(2).sigmoid().where(positive, 0)
        weights.scatter_add_(1, level.rows + start, w.to(torch.float32))

        x, quality = z.gather(2, label[..., None])[..., 0], sides.iou
        p = x.sigmoid()
        away, cost = quality - p, F.binary_cross_entropy_with_logits(x, quality, reduction="none")
        power = away.abs().pow(beta)
        correction = scale * (power * cost - p.pow(beta) * F.softplus(x))
        if class_gradients:
            slope = beta * away.abs().pow(beta - 1) * -away.sign() * p * (1 - p)
            wanted = scale * (-away * power + cost * slope.where(away != 0, 0))
            gradient = class_gradients[i].flatten(1)
            place = label * preds.shape[2] * preds.shape[3] + level.rows
            # Other slots add zeros to elements that may be a positive's. What was there goes first: a difference would
            # round the new number to what the old one leaves of a short type.
            gradient.scatter_add_(1, place, -gradient.gather(1, place).where(positive, 0))
            gradient.scatter_add_(1, place, wanted.where(positive, 0).to(gradient.dtype))
        zero = torch.zeros_like(scale)
        rows = [correction.where(positive, 0).sum(), w.sum(), *((w * t).where(positive, 0).sum() for t in sides[1:3])]
        ld = of_region = zero
        if soft_targets:
            soft = at(soft_targets[i], level.rows, wide).unflatten(2, level.raw.shape[2:])
            loss = distillation(level.raw, soft, temperature)[0]
            ld = (w * loss).where(positive, 0).sum()
            if region is not None:
                # A slot of another level reads this level's first anchor, which counts for its own slot alone.
                own = region.to(wide).gather(1, slots).where((slots == level.rows + start), 0)
                of_region = (own * loss).where(own > 0, 0).sum()
        columns.append(torch.stack([*rows, ld, of_region]))
        start += preds.shape[2] * preds.shape[3]
    return torch.stack(columns, 1), weights
