"""IoU losses of boxes with their gradient written out, as ops run below autograd."""

import math

import torch
from torch import Tensor

EPS = 1e-16
SQUARED, PLAIN, GIOU, DIOU, CIOU = range(5)


def iou_loss(pred: Tensor, target: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    """Return the loss (...,) of cxcywh boxes (..., 4), and its gradient by (cx, cy, w, h) of the prediction."""
    center, size = pred[..., :2], pred[..., 2:]
    low, high = center - size / 2, center + size / 2
    other_low, other_high = target[..., :2] - target[..., 2:] / 2, target[..., :2] + target[..., 2:] / 2
    sides = torch.minimum(high, other_high) - torch.maximum(low, other_low)
    # Derivatives of the overlap by the upper and the lower side; equal sides get half each, as in PyTorch's minimum.
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
    around_center, around_size = upper - lower, (upper + lower) / 2  # of the hull, by axis
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
    """Return 1 where `high` is higher, 1/2 where both are equal, else 0."""
    return (high > low).to(high.dtype) + 0.5 * (high == low).to(high.dtype)
