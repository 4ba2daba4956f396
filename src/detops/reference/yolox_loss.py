"""The definition of `yolox_loss`: YOLOX's four losses, image by image, and their gradient by autograd."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-16  # added to the union; lower bound of other divisors
LOG_EPS = 1e-8  # added to a size in cells before its logarithm
LONGEST = 1e18  # side of a predicted box, in pixels
IGNORED = -2  # index of an ignored cell
KINDS = ("iou_squared", "iou", "giou", "diou", "ciou")


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
    """Return the losses of matched outputs, weighted and not, and the gradient of their weighted sum.

    A row of an output is t = (x, y, w, h, objectness, classes). With the cell's column and row g in its level and its
    side s, it predicts the box ((t_x + g_x) s, (t_y + g_y) s, e^t_w s, e^t_h s), cxcywh, where no side is longer than
    `LONGEST`: products of sides are finite in float32, and so is every gradient of a finite loss; beyond, it is 0. A
    positive is a cell with a box. The target of its class logits is the IoU of the match for the box's label and 0 for
    all other classes. The objectness of every cell is trained, except that of ignored cells.

        iou = scale_0 * sum over positives of the IoU loss
        obj = scale_1 * sum over cells that are not ignored of BCE(objectness, 1 for a positive, else 0)
        cls = scale_0 * sum over positives and classes of BCE(class, IoU for the label, else 0)
        l1  = scale_0 * sum over positives of |t - the t that predicts the box exactly|; 0 without `use_l1`

    Args:
        outputs: Each level's (B, A_l, 5 + C); A is the sum of the A_l.
        cells: (A, 3): x and y of the cell's centre, and its side, in pixels.
        gt_boxes: (B, N, 4) in pixels, cxcywh or xyxy.
        gt_labels: (B, N) integers.
        index: (B, A) int64, the box of each cell, -1 for background, or -2 for an ignored cell.
        iou: (B, A), IoU of the match.
        scale: (2,), scale_0 and scale_1.
        class_pos_weight: (C,) factors of the positive part of each class's BCE, or None.
        kind: Kind of the IoU loss, an index into `KINDS`.
        use_l1: Add the L1 loss.
        iou_weight: Factor of the IoU loss in the sum; that of L1 is 1.
        obj_weight: Factor of the objectness loss in the sum.
        cls_weight: Factor of the class loss in the sum.
        with_gradient: Whether to compute the gradients; if not, empty tensors are returned for them.
        cxcywh: Whether the boxes are given as centre and size, not as corners.

    Returns:
        (3,) iou_weight * iou + l1, obj_weight * obj, cls_weight * cls; (4,) iou, obj, cls, l1, without these factors;
        gradients of the sum of the former, in the shapes of the outputs.

    Reference:
        Ge et al., "YOLOX: Exceeding YOLO Series in 2021".
    """
    leaves = [output.detach().double().requires_grad_() for output in outputs]
    scale, cell, gt_boxes = scale.double(), cells.double(), gt_boxes.double()
    if not cxcywh:
        gt_boxes = torch.cat([(gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2, gt_boxes[..., 2:] - gt_boxes[..., :2]], -1)
    with torch.enable_grad():
        rows = torch.cat(leaves, 1)  # (B, A, 5 + C)
        total = torch.zeros(4, dtype=torch.float64) + 0 * rows[:0].sum()  # differentiable even with an empty batch
        for b in range(len(rows)):
            positive, counted = index[b] >= 0, index[b] != IGNORED
            t, side = rows[b][positive], cell[positive, 2:]
            grid = cell[positive, :2] / side - 0.5
            target, label = gt_boxes[b, index[b][positive]], gt_labels[b].long()[index[b][positive]]
            sides = (t[:, 2:4].clamp(max=600).exp() * side).clamp(max=LONGEST) + 0 * t[:, 2:4]  # inf becomes NaN
            pred = torch.cat([(t[:, :2] + grid) * side, sides], 1)
            wanted = F.one_hot(label, rows.shape[2] - 5) * iou[b][positive].double()[:, None]
            exact = torch.cat([target[:, :2] / side - grid, (target[:, 2:] / side + LOG_EPS).log()], 1)
            pos_weight = None if class_pos_weight is None else class_pos_weight.double()
            total = total + torch.stack([
                iou_loss(pred, target, KINDS[kind]).sum() * scale[0],
                F.binary_cross_entropy_with_logits(rows[b, counted, 4], positive[counted].double(), reduction="sum")
                * scale[1],
                F.binary_cross_entropy_with_logits(t[:, 5:], wanted, pos_weight=pos_weight, reduction="sum") * scale[0],
                (t[:, :4] - exact).abs().sum() * scale[0] * use_l1,
            ])  # fmt: skip
        losses = torch.stack([iou_weight * total[0] + total[3], obj_weight * total[1], cls_weight * total[2]])
        if not with_gradient:
            return losses.detach(), total.detach(), [output.new_empty(0) for output in outputs]
        return losses.detach(), total.detach(), list(torch.autograd.grad(losses.sum(), leaves))


def iou_loss(pred: Tensor, target: Tensor, kind: str) -> Tensor:
    """Return the loss of each pair of cxcywh boxes, (n,).

    Reference:
        Yu et al., "UnitBox", 2016; Rezatofighi et al., "Generalized Intersection over Union", 2019; Zheng et al.,
        "Distance-IoU Loss", 2020 (DIoU and CIoU).
    """
    low, high = pred[:, :2] - pred[:, 2:] / 2, pred[:, :2] + pred[:, 2:] / 2
    target_low, target_high = target[:, :2] - target[:, 2:] / 2, target[:, :2] + target[:, 2:] / 2
    inter = (torch.minimum(high, target_high) - torch.maximum(low, target_low)).clamp(min=0).prod(1)
    union = pred[:, 2:].prod(1) + target[:, 2:].prod(1) - inter
    iou = inter / (union + EPS)
    if kind == "iou_squared":
        return 1 - iou**2
    if kind == "iou":
        return 1 - iou
    around = torch.maximum(high, target_high) - torch.minimum(low, target_low)  # sides of the enclosing box
    if kind == "giou":
        area = around.prod(1)
        return 1 - (iou - (area - union) / area.clamp(min=EPS)).clamp(-1, 1)
    distance = (pred[:, :2] - target[:, :2]).square().sum(1) / (around.square().sum(1) + EPS)
    if kind == "diou":
        return 1 - iou + distance
    turn = (target[:, 2] / (target[:, 3] + EPS)).atan() - (pred[:, 2] / (pred[:, 3] + EPS)).atan()
    aspect = 4 / math.pi**2 * turn.square()
    return 1 - iou + distance + (aspect / (1 - iou + aspect + EPS)).detach() * aspect
