"""`set_loss` in whole-batch PyTorch, with its gradients written out, as ops run below autograd."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.arguments import accumulate_dtype
from detops.geometry.set_parts import parts_of
from detops.portable._boxes import from_cxcywh, overlap
from detops.portable._iou_loss import EPS, GIOU, iou_loss

SOFTMAX, FOCAL, VARIFOCAL, MAL, IA_BCE, VARIFOCAL_LIVE, POSITION = range(7)


def set_loss(
    class_logits: list[Tensor],
    pred_boxes: list[Tensor],
    parts: list[int],
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
    clamp: bool,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return sums and gradients; arguments and meaning as in `detops.reference.set_loss`."""
    wide = accumulate_dtype(class_logits[0])
    if gt_boxes.shape[1] == 0:
        gt_boxes, gt_labels = gt_boxes.new_zeros(len(gt_boxes), 1, 4), gt_labels.new_full((len(gt_labels), 1), -1)
        index, box_index = index.clamp(max=-1), None
    truth, labels = gt_boxes.to(wide), gt_labels.to(torch.int64)
    factors = scale.to(wide)[:, [0, 1, 1]] * torch.tensor(weights, dtype=wide, device=scale.device)
    losses, of_boxes = [], []
    of_logits = [torch.zeros_like(one) for one in class_logits if with_gradient]
    for part in parts_of(parts, len(gt_boxes)):
        x, pred = part.of(class_logits).to(wide), part.of(pred_boxes).to(wide)
        shape = x.shape[:3]
        near, far = index[part.rows].view(shape), None if box_index is None else box_index[part.rows].view(shape)
        u = None if quality is None else quality[part.rows].view(shape)
        by_class, by_l1, by_giou = factors[part.sets, None, None].unbind(-1)  # (S, 1, 1) each
        loss, gradient = _class_losses(
            x, pred.clamp(0, 1) if clamp else pred, truth, labels, near, u, kind, alpha, gamma, factor
        )
        sums, slopes = _box_losses(pred, truth, near if far is None else far, clamp)
        losses.append(torch.stack([loss, *sums], 1))
        if with_gradient:
            place = of_logits[part.tensor][part.place]
            place.copy_(gradient * by_class[..., None])
            of_boxes.append(torch.stack([by_l1[..., None] * slopes[0], by_giou[..., None] * slopes[1]]).flatten(1, 3))
    summed = (torch.cat(losses) if losses else factors) * factors
    if not with_gradient:
        return summed, [], pred_boxes[0].new_empty(0)
    flat = torch.cat(of_boxes, 1) if of_boxes else pred_boxes[0].new_zeros(2, 0, 4)
    return summed, of_logits, flat.to(pred_boxes[0].dtype)


def _class_losses(
    x: Tensor, pred: Tensor, truth: Tensor, labels: Tensor, index: Tensor, quality: Tensor | None, kind: int,
    alpha: float, gamma: float, factor: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(S,) sums of one part's class losses, and their gradient, without factors."""
    sets = len(x)
    near = index.clamp(min=0)
    label = labels.expand(sets, -1, -1).gather(2, near)
    has_label = (index >= 0) & (label >= 0) & (label < x.shape[3])
    reads = (index >= -1)[..., None]
    if kind == SOFTMAX:
        log_p = x.log_softmax(-1)
        aim = label.where(has_label, x.shape[3] - 1)[..., None]
        weight = torch.ones_like(aim, dtype=x.dtype).where(has_label[..., None], factor)
        loss = -weight * log_p.gather(3, aim)
        gradient = weight * log_p.exp()
        gradient = gradient.scatter_add(3, aim, -weight)
    else:
        quality = _iou(pred, _boxes_at(truth, near)) if quality is None else quality.to(x.dtype).clamp(0, 1)
        gradient, dense = _background(x, kind, alpha, gamma)
        aim = label.where(has_label, 0)[..., None]
        at_label, gradient_at_label = _at_label(x.gather(3, aim), quality[..., None], kind, alpha, gamma)
        background = dense.gather(3, aim)
        loss = dense.sum(-1, keepdim=True) + (at_label - background).where(has_label[..., None], 0)
        gradient = gradient.scatter(3, aim, gradient_at_label.where(has_label[..., None], gradient.gather(3, aim)))
    return loss.where(reads, 0).sum((1, 2, 3)), gradient.where(reads, 0)


def _box_losses(
    pred: Tensor, truth: Tensor, index: Tensor, clamp: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(S,) sums of one part's L1 and GIoU losses, and their gradients (S, B, Q, 4), without factors."""
    paired, target = index >= 0, _boxes_at(truth, index.clamp(min=0))
    moves = paired[..., None]
    if clamp:
        moves, pred = moves & (pred >= 0) & (pred <= 1), pred.clamp(0, 1)
    safe = torch.where(paired[..., None], pred, target)
    giou_loss, giou_gradient = iou_loss(safe, target, GIOU)
    apart = safe - target
    sums = apart.abs().sum((1, 2, 3)), giou_loss.where(paired, 0).sum((1, 2))
    return sums, (apart.sign().where(moves, 0), giou_gradient.where(moves, 0))


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
