"""What `positive_losses_` means: GFL's and LD's losses at the anchors that have a box, one at a time."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.reference.yolox_loss import iou_loss

MARGIN = 0.1  # by which targets stay below the last bin


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
    """Return the losses of each level's positives, and write what they change in the gradient of the class logits.

    A positive is an anchor with a box. Its weight w is its highest class probability. With the logit x of its label,
    p = sigmoid(x), and the IoU q of the box that it says with its own:

        0  scale * (|q - p|^beta * BCE(p, q) - p^beta * BCE(p, 0))   the quality focal loss, less that as background
        1  w
        2  w * GIoU loss
        3  w * sum over sides of the distribution focal loss
        4  w * sum over sides of the distillation loss, where there is a teacher
        5  the last for every anchor of a region, with the region's number in place of w

    Args:
        class_gradients: Of the shapes of `cls_scores`, contiguous; the element of a positive's label is set to the
            derivative of scale * |q - p|^beta * BCE(p, q) by x. Empty where no gradient is wanted.
        cls_scores: Each level's (B, C, H, W) logits.
        bbox_preds: Each level's (B, 4 * bins, H, W) logits: distances to the left, top, right and bottom side are the
            means of distributions over 0 .. bins - 1 strides.
        soft_targets: Those of a teacher, or empty.
        cells: (A, 3): x and y of the anchor's centre, and its stride, in pixels.
        gt_boxes: (B, N, 4) xyxy in pixels.
        gt_labels: (B, N) integers.
        index: (B, A) int64, the box of each anchor, or -1.
        region: (B, A) float32, see above; 0 where there is none. None for no region.
        scale: One number, see above.
        beta: Exponent of the quality focal loss.
        temperature: Of the distillation.
        most: No image has more positives than this (nor a larger region), so that memory follows from shapes.

    Returns:
        (6, L), the losses summed over each level's positives; (B, A) the weights, 0 elsewhere.

    Reference:
        Li et al., "Generalized Focal Loss", 2020; Zheng et al., "Localization Distillation for Dense Object
        Detection", 2022.
    """
    losses = torch.zeros(6, len(cls_scores), dtype=torch.float64)
    weight = torch.zeros(index.shape, dtype=torch.float64)
    start = 0
    for level, scores in enumerate(cls_scores):
        size, width = scores.shape[2] * scores.shape[3], scores.shape[3]
        for b, r in places(index, region, start, size):
            y, x, a = r // width, r % width, start + r
            raw = bbox_preds[level][b, :, y, x].double().view(4, -1)
            soft = soft_targets[level][b, :, y, x].double().view(4, -1) if soft_targets else None
            if region is not None and soft is not None:
                losses[5, level] += region[b, a] * distillation(raw, soft, temperature)
            n = int(index[b, a])
            if n < 0:
                continue
            box = box_losses(raw, soft, cells[a].double(), gt_boxes[b, n].double(), temperature)
            label, z = int(gt_labels[b, n]), scores[b, :, y, x].double()
            logit = z[label].clone().requires_grad_()
            with torch.enable_grad():
                quality = (box.iou - logit.sigmoid()).abs() ** beta * F.binary_cross_entropy_with_logits(
                    logit, box.iou, reduction="sum"
                )
            background = logit.sigmoid() ** beta * F.softplus(logit)
            weight[b, a] = w = z.sigmoid().amax()
            losses[:5, level] += torch.stack(
                [scale.double().reshape(()) * (quality - background).detach(), w, w * box.giou, w * box.dfl, w * box.ld]
            )
            if class_gradients:
                class_gradients[level][b, label, y, x] = torch.autograd.grad(quality, logit)[0] * scale.item()
        start += size
    return losses, weight


class BoxLosses(NamedTuple):
    """IoU and losses of one positive, 0-d each."""

    iou: Tensor
    giou: Tensor
    dfl: Tensor
    ld: Tensor


def box_losses(raw: Tensor, soft: Tensor | None, cell: Tensor, box: Tensor, temperature: float) -> BoxLosses:
    """What the logits (4, bins) of an anchor say of its box; everything in units of its stride, from its centre."""
    bins = raw.shape[1]
    left, top, right, bottom = (raw.softmax(1) * torch.arange(bins)).sum(1)
    pred = torch.stack([(right - left) / 2, (bottom - top) / 2, left + right, top + bottom])
    x1, y1, x2, y2 = (box - cell[:2].repeat(2)) / cell[2]
    target = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
    exact = torch.stack([-x1, -y1, x2, y2]).clamp(0, bins - 1 - MARGIN)
    low, log_p = exact.floor().long(), raw.log_softmax(1)
    side = torch.arange(4)
    dfl = -((low + 1 - exact) * log_p[side, low] + (exact - low) * log_p[side, low + 1]).sum()
    giou = iou_loss(pred[None], target[None], "giou")[0]
    iou = 1 - iou_loss(pred[None].detach(), target[None], "iou")[0]
    return BoxLosses(iou, giou, dfl, 0 * dfl if soft is None else distillation(raw, soft, temperature))


def distillation(raw: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """Sum over the sides of temperature^2 * mean over bins of p_t * (log p_t - log p_s)."""
    log_s, log_t = (raw / temperature).log_softmax(1), (soft / temperature).log_softmax(1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).mean(1).sum()


def places(index: Tensor, region: Tensor | None, start: int, size: int) -> list[tuple[int, int]]:
    """Image and row, within a level, of each anchor that has a box or is in the region."""
    there = index[:, start : start + size] >= 0
    if region is not None:
        there = there | (region[:, start : start + size] > 0)
    return [(int(b), int(r)) for b, r in there.nonzero()]
