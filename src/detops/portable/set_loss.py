"""`set_loss` in whole-batch PyTorch, with its gradients written out, as ops run below autograd."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.arguments import accumulate_dtype
from detops.portable._boxes import from_cxcywh, overlap
from detops.portable._iou_loss import EPS, GIOU, iou_loss

SOFTMAX, FOCAL, VARIFOCAL, MAL, IA_BCE, VARIFOCAL_LIVE, POSITION = range(7)


def set_loss(
    class_logits: Tensor,
    pred_boxes: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    index: Tensor,
    box_index: Tensor | None,
    quality: Tensor | None,
    scale: Tensor,
    weights: list[float],
    kind: int,
    alpha: float,
    gamma: float,
    factor: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums and gradients; arguments and meaning as in `detops.reference.set_loss`."""
    sets, wide = len(class_logits), accumulate_dtype(class_logits)
    if gt_boxes.shape[1] == 0:
        gt_boxes, gt_labels = gt_boxes.new_zeros(len(gt_boxes), 1, 4), gt_labels.new_full((len(gt_labels), 1), -1)
        index, box_index = index.clamp(max=-1), None
    by_class, by_boxes = scale.to(wide).unbind(1)
    factors = torch.stack([by_class * weights[0], by_boxes * weights[1], by_boxes * weights[2]], 1)
    by_class, by_l1, by_giou = factors[:, None, None].unbind(-1)  # (S, 1, 1) each
    x, pred, truth = class_logits.to(wide), pred_boxes.to(wide), gt_boxes.to(wide)
    has_box = index >= 0
    near = index.clamp(min=0)
    label = gt_labels.to(torch.int64).expand(sets, -1, -1).gather(2, near)
    has_label = has_box & (label >= 0) & (label < x.shape[3])
    target = _boxes_at(truth, near)
    reads = (index >= -1)[..., None]
    if kind == SOFTMAX:
        log_p = x.log_softmax(-1)
        aim = label.where(has_label, x.shape[3] - 1)[..., None]
        weight = torch.ones_like(aim, dtype=wide).where(has_label[..., None], factor)
        loss = -weight * log_p.gather(3, aim)
        gradient = weight * log_p.exp()
        gradient = gradient.scatter_add(3, aim, -weight)
    else:
        quality = _iou(pred, target) if quality is None else quality.to(wide).clamp(0, 1)
        gradient, dense = _background(x, kind, alpha, gamma)
        aim = label.where(has_label, 0)[..., None]
        at_label, gradient_at_label = _at_label(x.gather(3, aim), quality[..., None], kind, alpha, gamma)
        background = dense.gather(3, aim)
        loss = dense.sum(-1, keepdim=True) + (at_label - background).where(has_label[..., None], 0)
        gradient = gradient.scatter(3, aim, gradient_at_label.where(has_label[..., None], gradient.gather(3, aim)))
    class_loss = loss.where(reads, 0).sum((1, 2, 3))
    paired = has_box if box_index is None else box_index >= 0
    if box_index is not None:
        target = _boxes_at(truth, box_index.clamp(min=0))
    safe = torch.where(paired[..., None], pred, target)
    giou_loss, giou_gradient = iou_loss(safe, target, GIOU)
    apart = safe - target
    sums = torch.stack([
        class_loss, apart.abs().sum((1, 2, 3)), giou_loss.where(paired, 0).sum((1, 2))
    ], 1)  # fmt: skip
    losses = sums * factors
    if not with_gradient:
        return losses, class_logits.new_empty(0), pred_boxes.new_empty(0)
    of_logits = torch.empty_like(class_logits)
    of_logits.copy_((gradient * by_class[..., None]).where(reads, 0))
    of_boxes = torch.stack([by_l1[..., None] * apart.sign(), by_giou[..., None] * giou_gradient])
    return losses, of_logits, of_boxes.where(paired[..., None], 0).to(pred_boxes.dtype)


def _boxes_at(boxes: Tensor, index: Tensor) -> Tensor:
    """(S, B, Q, 4) boxes (B, N, 4) by their index (S, B, Q)."""
    return boxes.expand(len(index), -1, -1, -1).gather(2, index[..., None].expand(-1, -1, -1, 4))


def _iou(pred: Tensor, target: Tensor) -> Tensor:
    inter, union = overlap(from_cxcywh(pred), from_cxcywh(target))
    return (inter / (union + EPS)).clamp(0, 1)


def _background(x: Tensor, kind: int, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Gradient and loss of logits that no box has."""
    factor, exponent = (1.0, 2.0) if kind == IA_BCE else (1 - alpha, gamma)
    fixed = kind in (VARIFOCAL, MAL)
    if fixed:
        factor = alpha
    p, cost = x.sigmoid(), -F.logsigmoid(-x)
    weight = factor * (p * p if exponent == 2 else p**exponent)
    return weight * (p if fixed else p + exponent * (-x).sigmoid() * cost), weight * cost


def _at_label(x: Tensor, u: Tensor, kind: int, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Loss and gradient of logits at the labels of boxes of IoU u."""
    p, q, cost = x.sigmoid(), (-x).sigmoid(), -F.logsigmoid(-x)
    if kind == FOCAL:
        weight, low = alpha * q**gamma, -F.logsigmoid(x)
        return weight * low, -weight * (q + gamma * p * low)
    if kind in (MAL, IA_BCE):
        target = u**gamma if kind == MAL else (p**alpha * u ** (1 - alpha)).clamp(min=0.01)
        return cost - target * x, p - target
    loss, slope = cost - u * x, p - u
    if kind == POSITION:
        apart = slope.abs()
        factor = alpha * (u > 0) + (1 - alpha) * (u <= 0)
        power = apart**gamma
        turn = (gamma * power / apart * slope.sign()).where(apart > 0, 0)
        return factor * power * loss, factor * (turn * p * q * loss + power * slope)
    if kind == VARIFOCAL_LIVE:
        gradient, bare = _background(x, kind, alpha, gamma)
        return torch.where(u > 0, u * loss, bare), torch.where(u > 0, u * slope, gradient)
    return u * loss, u * slope
