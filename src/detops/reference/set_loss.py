"""What `set_loss` means: the losses of the DETR family, one set of outputs, image and query at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F

SOFTMAX, FOCAL, VARIFOCAL, MAL, IA_BCE, VARIFOCAL_LIVE, POSITION = range(7)
EPS = 1e-16  # in place of a union or a hull of 0


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
    """Return the sums of three losses of each set of outputs, and their gradients.

    A part is some sets and some queries of one of the tensors, such as the denoising queries of all layers. Its query q
    of an image is trained towards box `index[s, b, q]` of it, or towards "no object". With x a logit, p its
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
        class_logits: Tensors (S, B, Q, C).
        pred_boxes: As many tensors (S, B, Q, 4), cxcywh.
        parts: Five numbers of each part: its tensor, first set, number of sets, first query, number of queries. No set
            and query is in two parts.
        gt_boxes: (B, N, 4) cxcywh.
        gt_labels: (B, N) integers.
        index: int64 box of each query, of the parts (sets, B, queries) one after the other; -1 for none; below it, the
            query's logits are not read.
        box_index: The same for the box losses; None for `index`.
        quality: The same, in place of the IoU; None for that.
        scale: (R, 2) factors of the class loss and of both box losses, of the sets of all parts.
        weights: Further factors of the class loss, the L1 loss and the GIoU loss.
        kind: See above.
        alpha: See above.
        gamma: See above.
        factor: See above.
        clamp: Whether predicted numbers are limited to 0 .. 1, beyond which they have no gradient.
        with_gradient: Whether the gradients are wanted; if not they come back empty.

    Returns:
        (R, 3) sums; gradients of the class losses by the logits, of the tensors' shapes, 0 where no part is;
        (2, rows, 4) gradients of the two box losses by the boxes, in the order of `index`.

    Reference:
        DETR (softmax), Deformable DETR (focal), RT-DETR (varifocal with the IoU), DEIM (matching aware loss),
        Align-DETR and LW-DETR (IoU-aware BCE).
    """
    dtype = torch.float64 if class_logits[0].dtype == torch.float64 else torch.float32
    logits = [one.detach().double().requires_grad_() for one in class_logits]
    boxes = [one.detach().double().requires_grad_() for one in pred_boxes]
    for_boxes = index if box_index is None else box_index
    rows, places, at = [], [], 0
    with torch.enable_grad():
        for tensor, first_set, sets, first, count in zip(*[iter(parts)] * 5, strict=True):
            for s in range(first_set, first_set + sets):
                sums = [index.new_zeros((), dtype=torch.float64) for _ in range(3)]
                for b in range(logits[tensor].shape[1]):
                    for q in range(first, first + count):
                        places.append((tensor, s, b, q))
                        box = boxes[tensor][s, b, q].clamp(0, 1) if clamp else boxes[tensor][s, b, q]
                        n = int(index[at])
                        if n >= -1:
                            label = int(gt_labels[b, n]) if n >= 0 else -1
                            u = iou_and_giou(box.detach(), gt_boxes[b, n].double())[0].item() if n >= 0 else 0.0
                            if n >= 0 and quality is not None:
                                u = quality[at].item()
                            u = min(max(u, 0.0), 1.0)
                            x = logits[tensor][s, b, q]
                            sums[0] = sums[0] + class_loss(x, label, u, kind, alpha, gamma, factor)
                        n = int(for_boxes[at])
                        if n >= 0:
                            target = gt_boxes[b, n].double()
                            sums[1] = sums[1] + (box - target).abs().sum()
                            sums[2] = sums[2] + 1 - iou_and_giou(box, target)[1]
                        at += 1
                rows.append(torch.stack(sums))
        losses = torch.stack([*rows, torch.zeros(3, dtype=torch.float64)])[:-1]
        losses = losses * scale.double()[:, [0, 1, 1]] * torch.tensor(weights).double()
    if not with_gradient:
        return losses.detach().to(dtype), [], pred_boxes[0].new_empty(0)
    totals = losses.sum(0)
    of_logits = [_gradient(totals[0], one).to(class_logits[0].dtype) for one in logits]
    of_boxes = torch.zeros(2, len(index), 4, dtype=pred_boxes[0].dtype)
    for i in range(2):
        gradients = [_gradient(totals[i + 1], one) for one in boxes]
        for row, (tensor, *place) in enumerate(places):
            of_boxes[i, row] = gradients[tensor][tuple(place)]
    return losses.detach().to(dtype), of_logits, of_boxes


def _gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    if not loss.requires_grad:
        return torch.zeros_like(leaf)
    found = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(leaf) if found is None else found


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
