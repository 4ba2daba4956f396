"""The definition of `positive_losses_`: the losses at the points that have a box, one point at a time."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.reference.yolox_loss import KINDS as BOX_KINDS
from detops.reference.yolox_loss import iou_loss

CLASS_KINDS = ("quality", "bce", "varifocal", "focal")


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
    """Return the losses of each level or head, and set the gradient of the positives' class logits, in place.

    A positive is a point with a box. It has a quality q, the target of its class logit, and a weight w of its box
    losses. Where w is 0, it has no box losses and its box logits are not read for them.

        0  scale * weights[0] * (class loss of its label's logit with target q - that of the same logit as background);
           with the background's loss and times the rest of the scale
        1  w
        2  weights[1] * w * IoU loss of the predicted box
        3  weights[2] * w * sum over sides of the distribution focal loss
        4  weights[3] * w * sum over sides of the distillation loss; 0 without a teacher
        5  weights[4] * the loss of row 4 for every point of a region, with the region's weight in place of w

    Rows 2 to 5 are then multiplied by the factor of the box losses, which is given, or follows from the sum of all w:

        1 / (max(sum of w, least) + eps)

    Args:
        class_gradients: Tensors of the shapes of `cls_scores`, contiguous or channels last. The element of a positive's
            label is set to the derivative of scale * weights[0] * class loss with target q by the logit. Empty to
            compute no gradient.
        cls_scores: Each level's (B, C, H, W) logits.
        bbox_preds: Each level's (B, 4 * bins, H, W) logits: distances to the left, top, right and bottom side are the
            means of distributions over 0 .. bins - 1 strides. With one bin they are the distances themselves, without a
            distribution focal loss or a teacher.
        soft_targets: A teacher's logits in the shapes of `bbox_preds`; empty without a teacher.
        points: (A, 3): x, y and stride of each point, in pixels.
        boxes: (B, N, 4) xyxy in pixels.
        labels: (B, N) integers.
        index: (B, A) int64, the box of each point; negative for none.
        quality: (B, A) q, a constant; None for the IoU of the predicted box.
        weight: (B, A) w, a constant; None for the highest class probability.
        region: (B, A) float32, the weight of each point of the region, 0 for all others. None for no region.
        background: (L,) class loss of each level if no point had a box, which row 0 begins with.
        scales: (3, G) float32: row 1 is the scale of the class loss for each G-th of the levels, one after another, and
            row 2 the rest, as `background_losses` returns them; G divides the number of levels.
        box_scale: (G,) the factor of the box losses; None for that of the sum of all w.
        least: Lowest sum of w to divide by.
        eps: Added to this divisor.
        divide_distillation: Whether rows 4 and 5 have the factor of the box losses, too; else it is 1 for them.
        weights: Factors of the five losses.
        class_kind: Kind of the class loss, an index into `CLASS_KINDS`; see `class_loss`.
        box_kind: Kind of the IoU loss, an index into `BOX_KINDS`. CIoU's alpha is v / (1 - IoU + v) at every IoU, as in
            torchvision; MMDetection's is 0 up to an IoU of 0.5.
        alpha: Factor in the class loss.
        gamma: Exponent in the class loss.
        temperature: Softmax temperature of the distillation.
        margin: How far the targets of the distributions stay below the last bin, in bins.
        most: Upper bound of the points of an image that are positive or in the region; bounds the memory.
        heads: Sum over the levels of each of that many heads, whose levels follow one another; a multiple of G. 0 for
            sums by level.

    Returns:
        (6, L) or (6, heads), the rows above, summed over each level's or head's positives; (4, G) float32, the factors
        of rows 2 to 5; (B, A), the weights w, 0 at all other points.

    Reference:
        Li et al., "Generalized Focal Loss", 2020; Zheng et al., "Localization Distillation for Dense Object
        Detection", 2022.
    """
    losses = torch.zeros(6, len(cls_scores), dtype=torch.float64)
    losses[0] = background
    found = torch.zeros(index.shape, dtype=torch.float64)
    start, groups = 0, scales.shape[1]
    for level, scores in enumerate(cls_scores):
        size, width = scores.shape[2] * scores.shape[3], scores.shape[3]
        for b, r in places(index, region, start, size):
            y, x, a = r // width, r % width, start + r
            raw = bbox_preds[level][b, :, y, x].double().view(4, -1)
            soft = soft_targets[level][b, :, y, x].double().view(4, -1) if soft_targets else None
            if region is not None and soft is not None:
                losses[5, level] += weights[4] * region[b, a] * distillation(raw, soft, temperature)
            n = int(index[b, a])
            if n < 0:
                continue
            box = box_losses(raw, soft, points[a].double(), boxes[b, n].double(), box_kind, temperature, margin)
            label, z = int(labels[b, n]), scores[b, :, y, x].double()
            w = z.sigmoid().amax() if weight is None else weight[b, a].double()
            found[b, a] = w
            if w != 0:
                factors = torch.tensor([1, *weights[1:4]], dtype=torch.float64)
                losses[1:5, level] += factors * torch.stack([w, w * box.iou_loss, w * box.dfl, w * box.ld])
            q = box.iou if quality is None else quality[b, a].double()
            logit = z[label].clone().requires_grad_()
            factor = weights[0] * scales[1].double()[level * groups // len(cls_scores)]
            with torch.enable_grad():
                loss, background = class_loss(logit, q, CLASS_KINDS[class_kind], alpha, gamma)
            losses[0, level] += factor * (loss - background).detach()
            if class_gradients:
                class_gradients[level][b, label, y, x] = torch.autograd.grad(loss, logit)[0] * factor
        start += size
    if heads:
        losses = losses.view(6, heads, -1).sum(2)
    inverse = 1 / (losses[1].sum().clamp(min=least) + eps) if box_scale is None else box_scale.double()
    factors = inverse.expand(4, groups).clone()
    if not divide_distillation:
        factors[2:] = 1
    for column in range(losses.shape[1]):
        group = column * groups // losses.shape[1]
        losses[0, column] *= scales[2, group]
        losses[2:, column] *= factors[:, group]
    return losses, factors, found


def class_loss(x: Tensor, q: Tensor, kind: str, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the class loss of a logit x with target q in 0 .. 1, and that of the same logit as background.

    Reference:
        Li et al., "Generalized Focal Loss", 2020, equation 5 (quality); Zhang et al., "VarifocalNet", 2021, equation 2
        (varifocal; its case q = 0 is the background); Lin et al., "Focal Loss", 2017, equation 5, extended to any q
        (focal).
    """
    p, bce, negative = x.sigmoid(), F.binary_cross_entropy_with_logits(x, q, reduction="sum"), F.softplus(x)
    if kind == "quality":
        return (q - p).abs() ** gamma * bce, p**gamma * negative
    if kind == "bce":
        return bce, negative
    if kind == "varifocal":
        return q * bce, alpha * p**gamma * negative
    return (alpha * q + (1 - alpha) * (1 - q)) * (q - p).abs() ** gamma * bce, (1 - alpha) * p**gamma * negative


class BoxLosses(NamedTuple):
    """IoU and losses of one positive, each 0-d."""

    iou: Tensor
    iou_loss: Tensor
    dfl: Tensor
    ld: Tensor


def box_losses(
    raw: Tensor, soft: Tensor | None, point: Tensor, box: Tensor, kind: int, temperature: float, margin: float
) -> BoxLosses:
    """Return the losses of the box that a point's logits (4, bins) predict, in units of its stride, relative to it."""
    bins = raw.shape[1]
    left, top, right, bottom = raw[:, 0] if bins == 1 else (raw.softmax(1) * torch.arange(bins)).sum(1)
    pred = torch.stack([(right - left) / 2, (bottom - top) / 2, left + right, top + bottom])
    x1, y1, x2, y2 = (box - point[:2].repeat(2)) / point[2]
    target = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
    loss = iou_loss(pred[None], target[None], BOX_KINDS[kind])[0]
    iou = 1 - iou_loss(pred[None].detach(), target[None], "iou")[0]
    if bins == 1:
        return BoxLosses(iou, loss, 0 * loss, 0 * loss)
    exact = torch.stack([-x1, -y1, x2, y2]).clamp(0, bins - 1 - margin)
    low, log_p = exact.floor().long().clamp(max=bins - 2), raw.log_softmax(1)
    side = torch.arange(4)
    dfl = -((low + 1 - exact) * log_p[side, low] + (exact - low) * log_p[side, low + 1]).sum()
    return BoxLosses(iou, loss, dfl, 0 * dfl if soft is None else distillation(raw, soft, temperature))


def distillation(raw: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """Return the sum over the sides of temperature^2 * mean over bins of p_t * (log p_t - log p_s)."""
    log_s, log_t = (raw / temperature).log_softmax(1), (soft / temperature).log_softmax(1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).mean(1).sum()


def places(index: Tensor, region: Tensor | None, start: int, size: int) -> list[tuple[int, int]]:
    """Return the image and the row within a level of each point that has a box or is in the region."""
    there = index[:, start : start + size] >= 0
    if region is not None:
        there = there | (region[:, start : start + size] > 0)
    return [(int(b), int(r)) for b, r in there.nonzero()]
