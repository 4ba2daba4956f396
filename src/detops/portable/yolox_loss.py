"""`yolox_loss` in whole-batch PyTorch: what runs where there is no kernel.

The gradient is written out, as an op runs below autograd.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-16
SQUARED, PLAIN, GIOU, DIOU, CIOU = range(5)


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
) -> tuple[Tensor, list[Tensor]]:
    """Losses and gradients; arguments and meaning as in `detops.reference.yolox_loss`."""
    wide = torch.float64 if outputs[0].dtype == torch.float64 else torch.float32
    boxes, labels, cells, scale = gt_boxes.to(wide), gt_labels.to(torch.int64), cells.to(wide), scale.to(wide)
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
        grid = cell[:, :2] / side - 0.5
        # Where there is no box, one that fits: no number below is other than finite for want of one.
        fitting = torch.cat([(grid + 0.5) * side, side, side], 1)
        target = torch.where(positive[..., None], target, fitting)
        t = torch.where(positive[..., None], rows[..., :4], 0)
        pred = torch.cat([(t[..., :2] + grid) * side, t[..., 2:].exp() * side], -1)
        box_loss, box_gradient = _iou_loss(pred, target, kind)
        box_gradient = box_gradient * torch.cat([side.expand_as(pred[..., :2]), pred[..., 2:]], -1)
        box_gradient = box_gradient * iou_weight

        away = t - torch.cat([target[..., :2] / side - grid, (target[..., 2:] / side + 1e-8).log()], -1)
        if use_l1:
            box_gradient = box_gradient + away.sign()
        logit, wanted = rows[..., 4], positive.to(wide)
        matched = iou[:, start:end].to(wide)
        known = labels.new_zeros(*label.shape, rows.shape[2] - 5).scatter(2, label[..., None], 1)  # (B, R, C)
        share = known * matched[..., None]
        pos_weight = 1.0 if class_pos_weight is None else class_pos_weight.to(wide)
        up, down = F.softplus(-rows[..., 5:]), F.softplus(rows[..., 5:])
        class_loss = pos_weight * share * up + (1 - share) * down

        one, other = scale[0], scale[1]
        total = total + torch.stack([
            box_loss.where(positive, 0).sum() * one,
            (F.softplus(logit) - wanted * logit).sum() * other,
            class_loss.sum(2).where(positive, 0).sum() * one,
            away.abs().sum(2).where(positive, 0).sum() * one if use_l1 else torch.zeros_like(one),
        ])  # fmt: skip
        if with_gradient:
            p = rows[..., 5:].sigmoid()
            class_gradient = cls_weight * one * ((1 - share) * p - pos_weight * share * (1 - p))
            gradient = torch.cat([
                (box_gradient * one).where(positive[..., None], 0),
                (obj_weight * other * (logit.sigmoid() - wanted))[..., None],
                class_gradient.where(positive[..., None], 0),
            ], 2)  # fmt: skip
            gradients.append(gradient.to(output.dtype))
        else:
            gradients.append(output.new_empty(0))
        start = end
    return total, gradients


def _iou_loss(pred: Tensor, target: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    """Loss (...,) of cxcywh boxes (..., 4), and its gradient by (cx, cy, w, h) of the prediction."""
    center, size = pred[..., :2], pred[..., 2:]
    low, high = center - size / 2, center + size / 2
    other_low, other_high = target[..., :2] - target[..., 2:] / 2, target[..., :2] + target[..., 2:] / 2
    sides = torch.minimum(high, other_high) - torch.maximum(low, other_low)
    # How the overlap grows with the upper and the lower side; equal sides share it, as in PyTorch's minimum.
    open_ = (sides >= 0).to(pred.dtype)
    upper, lower = _share(other_high, high) * open_, _share(low, other_low) * open_
    sides = sides.clamp(min=0)
    inter = sides.prod(-1, keepdim=True)
    inter_center, inter_size = sides.flip(-1) * (upper - lower), sides.flip(-1) * (upper + lower) / 2
    union = size.prod(-1, keepdim=True) + target[..., 2:].prod(-1, keepdim=True) - inter
    union_center, union_size = -inter_center, size.flip(-1) - inter_size
    iou = inter / (union + EPS)
    iou_gradient = torch.cat([
        (inter_center - iou * union_center) / (union + EPS), (inter_size - iou * union_size) / (union + EPS)
    ], -1)  # fmt: skip
    if kind == SQUARED:
        return (1 - iou**2)[..., 0], -2 * iou * iou_gradient
    if kind == PLAIN:
        return (1 - iou)[..., 0], -iou_gradient
    around = torch.maximum(high, other_high) - torch.minimum(low, other_low)
    upper, lower = _share(high, other_high), _share(other_low, low)
    around_center, around_size = upper - lower, (upper + lower) / 2  # of each side, by its own axis
    if kind == GIOU:
        area = around.prod(-1, keepdim=True)
        least = area.clamp(min=EPS)
        flip = around.flip(-1)
        area_gradient = torch.cat([flip * around_center, flip * around_size], -1)
        union_gradient = torch.cat([union_center, union_size], -1)
        empty = (area - union) / least
        moving = (area >= EPS).to(pred.dtype)
        giou = iou - empty
        gradient = iou_gradient - (area_gradient - union_gradient - moving * empty * area_gradient) / least
        return (1 - giou.clamp(-1, 1))[..., 0], -gradient * ((giou >= -1) & (giou <= 1))
    apart = center - target[..., :2]
    diagonal = around.square().sum(-1, keepdim=True) + EPS
    distance = apart.square().sum(-1, keepdim=True) / diagonal
    gradient = -iou_gradient + torch.cat([
        (2 * apart - distance * 2 * around * around_center) / diagonal, -distance * 2 * around * around_size / diagonal
    ], -1)  # fmt: skip
    loss = 1 - iou + distance
    if kind == DIOU:
        return loss[..., 0], gradient
    w, h = size[..., :1], size[..., 1:] + EPS
    turn = (target[..., 2:3] / (target[..., 3:] + EPS)).atan() - (w / h).atan()
    aspect = 4 / math.pi**2 * turn.square()
    alpha = aspect / (1 - iou + aspect + EPS)
    slope = -8 / math.pi**2 * turn / (h * h + w * w) * alpha
    gradient = gradient + torch.cat([torch.zeros_like(apart), slope * h, -slope * w], -1)
    return (loss + alpha * aspect)[..., 0], gradient


def _share(high: Tensor, low: Tensor) -> Tensor:
    """1 where `high` is higher, 1/2 where both are equal, else 0."""
    return (high > low).to(high.dtype) + 0.5 * (high == low).to(high.dtype)
