"""What `set_loss` means: the losses of the DETR family, one set of outputs, image and query at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F

SOFTMAX, FOCAL, VARIFOCAL, MAL, IA_BCE, VARIFOCAL_LIVE, POSITION = range(7)
EPS = 1e-16  # in place of a union or a hull of 0


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
    """Return the sums of three losses of each set, and their gradients.

    Query q of an image is trained towards box `index[s, b, q]` of it, or towards "no object". With x a logit, p its
    sigmoid, u the IoU of the predicted box with the true one (a constant) and D what counts as one:

        kind                   at the query's label                                       at all other classes
        0 softmax              -log softmax(x)[label], or -factor * log softmax(x)[last] for "no object"
        1 focal                alpha (1 - p)^gamma BCE(x, 1)                              (1 - alpha) p^gamma BCE(x, 0)
        2 varifocal            u BCE(x, u)                                                alpha D(p)^gamma BCE(x, 0)
        3 mal                  BCE(x, u^gamma)                                            alpha D(p)^gamma BCE(x, 0)
        4 ia_bce               BCE(x, max(D(p)^alpha u^(1 - alpha), 0.01))                p^2 BCE(x, 0)
        5 varifocal of RF-DETR u BCE(x, u), for u = 0 as at other classes                 (1 - alpha) p^gamma BCE(x, 0)
        6 position             a |u - p|^gamma BCE(x, u), a = alpha if u > 0, else 1 - alpha
                                                                                          (1 - alpha) p^gamma BCE(x, 0)

    `quality` takes the place of u where it is given. The box losses are those of the queries that `box_index` gives a
    box: the sum of the four |differences| of cxcywh, and 1 - GIoU.

    Args:
        class_logits: (S, B, Q, C).
        pred_boxes: (S, B, Q, 4) cxcywh.
        gt_boxes: (B, N, 4) cxcywh.
        gt_labels: (B, N) integers.
        index: (S, B, Q) int64 box of each query; -1 for none; below it, the query's logits are not read.
        box_index: The same for the box losses; None for `index`.
        quality: (S, B, Q); None for the IoU.
        scale: (S, 2) factors of the class loss and of both box losses.
        weights: Further factors of the class loss, the L1 loss and the GIoU loss.
        kind: See above.
        alpha: See above.
        gamma: See above.
        factor: See above.
        with_gradient: Whether the gradients are wanted; if not they come back empty.

    Returns:
        (S, 3) sums; gradient of the class loss by the logits; (2, S, B, Q, 4) gradients of the two box losses.

    Reference:
        DETR (softmax), Deformable DETR (focal), RT-DETR (varifocal with the IoU), DEIM (matching aware loss),
        Align-DETR and LW-DETR (IoU-aware BCE).
    """
    sets, batch, count, _ = class_logits.shape
    dtype = torch.float64 if class_logits.dtype == torch.float64 else torch.float32
    logits = class_logits.detach().double().requires_grad_()
    boxes = pred_boxes.detach().double().requires_grad_()
    for_boxes = index if box_index is None else box_index
    rows = []
    with torch.enable_grad():
        for s in range(sets):
            sums = [logits.new_zeros(()), logits.new_zeros(()), logits.new_zeros(())]
            for b in range(batch):
                for q in range(count):
                    n = int(index[s, b, q])
                    if n >= -1:
                        label = int(gt_labels[b, n]) if n >= 0 else -1
                        u = iou_and_giou(boxes[s, b, q].detach(), gt_boxes[b, n].double())[0].item() if n >= 0 else 0.0
                        if n >= 0 and quality is not None:
                            u = quality[s, b, q].item()
                        u = min(max(u, 0.0), 1.0)
                        sums[0] = sums[0] + class_loss(logits[s, b, q], label, u, kind, alpha, gamma, factor)
                    n = int(for_boxes[s, b, q])
                    if n >= 0:
                        target = gt_boxes[b, n].double()
                        sums[1] = sums[1] + (boxes[s, b, q] - target).abs().sum()
                        sums[2] = sums[2] + 1 - iou_and_giou(boxes[s, b, q], target)[1]
            rows.append(torch.stack(sums))
        losses = (
            torch.stack(rows) * scale.double()[:, [0, 1, 1]] * torch.tensor(weights).double()
            if rows
            else logits.new_zeros(0, 3)
        )
        parts = losses.sum(0)
    none = class_logits.new_empty(0), pred_boxes.new_empty(0)
    if not with_gradient:
        return losses.detach().to(dtype), *none
    zeros = torch.zeros_like(logits), torch.zeros_like(boxes)
    gradients = [
        zeros[i > 0] if not parts[i].requires_grad else
        torch.autograd.grad(parts[i], (logits, boxes)[i > 0], retain_graph=True, allow_unused=True)[0]
        for i in range(3)
    ]  # fmt: skip
    filled = [zeros[i > 0] if gradient is None else gradient for i, gradient in enumerate(gradients)]
    of_boxes = torch.stack(filled[1:]).to(pred_boxes.dtype)
    return losses.detach().to(dtype), filled[0].to(class_logits.dtype), of_boxes


def class_loss(x: Tensor, label: int, u: float, kind: int, alpha: float, gamma: float, factor: float) -> Tensor:
    """The class loss of one query's logits (C,), whose label is -1 for "no object"."""
    if kind == SOFTMAX:
        log_p = x.log_softmax(0)
        return -log_p[label] if label >= 0 else -factor * log_p[-1]
    p = x.sigmoid()
    fixed = p.detach()
    weights = {
        FOCAL: (1 - alpha) * p**gamma,
        VARIFOCAL: alpha * fixed**gamma,
        MAL: alpha * fixed**gamma,
        IA_BCE: p**2,
    }
    others = weights.get(kind, (1 - alpha) * p**gamma) * F.softplus(x)
    if label < 0:
        return others.sum()
    own, y = p[label], x[label]
    if kind == FOCAL:
        at_label = alpha * (1 - own) ** gamma * F.softplus(-y)
    elif kind == VARIFOCAL or (kind == VARIFOCAL_LIVE and u > 0):
        at_label = u * bce(y, u)
    elif kind == MAL:
        at_label = bce(y, u**gamma)
    elif kind == IA_BCE:
        at_label = bce(y, max(own.item() ** alpha * u ** (1 - alpha), 0.01))
    elif kind == POSITION:
        at_label = (alpha if u > 0 else 1 - alpha) * (u - own).abs() ** gamma * bce(y, u)
    else:
        at_label = others[label]
    return others.sum() - others[label] + at_label if label >= 0 else others.sum()


def bce(x: Tensor, target: float) -> Tensor:
    """Binary cross entropy of a logit towards a number in 0 .. 1."""
    return F.softplus(x) - target * x


def iou_and_giou(box: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of two boxes (4,), cxcywh."""
    low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
    other_low, other_high = target[:2] - target[2:] / 2, target[:2] + target[2:] / 2
    inter = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod()
    hull = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod()
    union = box[2:].prod() + target[2:].prod() - inter
    iou = inter / (union + EPS)
    return iou, iou - (hull - union) / hull.clamp(min=EPS)
