"""`yolox_loss` in whole-batch PyTorch: used on devices without a kernel.

The gradient is written out, because an op runs below autograd.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.arguments import accumulate_dtype
from detops.geometry.boxes import to_cxcywh
from detops.portable._iou_loss import iou_loss

LOG_EPS, IGNORED, LONGEST = 1e-8, -2, 1e18


def yolox_loss(
    outputs: list[Tensor],
    cells: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    index: Tensor,
    iou: Tensor,
    scale: Tensor,
    class_pos_weight: Tensor | None,
    kind: int,
    use_l1: bool,
    iou_weight: float,
    obj_weight: float,
    cls_weight: float,
    with_gradient: bool,
    cxcywh: bool = True,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return losses and gradients; arguments and meaning as in `detops.reference.yolox_loss`."""
    wide = accumulate_dtype(outputs[0])
    boxes, labels, cells, scale = gt_boxes.to(wide), gt_labels.to(torch.int64), cells.to(wide), scale.to(wide)
    if not cxcywh:
        boxes = to_cxcywh(boxes)
    total = torch.zeros(4, dtype=wide, device=index.device)
    gradients, start = [], 0
    for output in outputs:
        end = start + output.shape[1]
        rows, cell, chosen = output.to(wide), cells[start:end], index[:, start:end]
        positive = chosen >= 0
        read = chosen.clamp(min=0)
        if boxes.shape[1]:
            target = boxes.gather(1, read[..., None].expand(-1, -1, 4))  # (B, R, 4)
            label = labels.gather(1, read)
        else:
            target, label = boxes.new_ones(*read.shape, 4), torch.zeros_like(read)
        side = cell[:, 2:]
        # Relative to the centre of the cell, so that a small box far from the origin keeps its digits. Cells without a
        # box get one that fits, so that all numbers below are finite.
        target = target - torch.cat([cell[:, :2], torch.zeros_like(cell[:, :2])], 1)
        fitting = torch.cat([torch.zeros_like(cell[:, :2]), side, side], 1)
        target = torch.where(positive[..., None], target, fitting)
        t = torch.where(positive[..., None], rows[..., :4], 0)
        sides = t[..., 2:].exp() * side
        # Products of sides stay finite; infinite logits show as NaN.
        pred = torch.cat([(t[..., :2] - 0.5) * side, sides.clamp(max=LONGEST) + 0 * t[..., 2:]], -1)
        box_loss, box_gradient = iou_loss(pred, target, kind)
        slope = torch.cat([side.expand_as(sides), pred[..., 2:].where(sides <= LONGEST, 0)], -1)
        box_gradient = box_gradient * slope
        box_gradient = box_gradient * iou_weight

        away = t - torch.cat([target[..., :2] / side + 0.5, (target[..., 2:] / side + LOG_EPS).log()], -1)
        if use_l1:
            box_gradient = box_gradient + away.sign()
        counted = chosen != IGNORED
        logit, wanted = rows[..., 4].where(counted, 0), positive.to(wide)
        matched = iou[:, start:end].to(wide)
        known = labels.new_zeros(*label.shape, rows.shape[2] - 5).scatter(2, label[..., None], 1)  # (B, R, C)
        share = known * matched[..., None]
        pos_weight = 1.0 if class_pos_weight is None else class_pos_weight.to(wide)
        up, down = F.softplus(-rows[..., 5:]), F.softplus(rows[..., 5:])
        class_loss = pos_weight * share * up + (1 - share) * down

        one, other = scale[0], scale[1]
        total = total + torch.stack([
            box_loss.where(positive, 0).sum() * one,
            (F.softplus(logit) - wanted * logit).where(counted, 0).sum() * other,
            class_loss.sum(2).where(positive, 0).sum() * one,
            away.abs().sum(2).where(positive, 0).sum() * one if use_l1 else torch.zeros_like(one),
        ])  # fmt: skip
        if with_gradient:
            p = rows[..., 5:].sigmoid()
            class_gradient = cls_weight * one * ((1 - share) * p - pos_weight * share * (1 - p))
            gradient = torch.cat([
                (box_gradient * one).where(positive[..., None], 0),
                (obj_weight * other * (logit.sigmoid() - wanted)).where(counted, 0)[..., None],
                class_gradient.where(positive[..., None], 0),
            ], 2)  # fmt: skip
            gradients.append(gradient.to(output.dtype))
        else:
            gradients.append(output.new_empty(0))
        start = end
    iou_loss_sum, objectness, classes, l1 = total.unbind()
    losses = torch.stack([iou_weight * iou_loss_sum + l1, obj_weight * objectness, cls_weight * classes])
    return losses, total, gradients
