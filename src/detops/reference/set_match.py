"""What `set_match` means: the matching of the DETR family, one set of outputs, image and group of queries at a time."""

import math

import torch
from torch import Tensor

from detops.reference.assignment import assignment

SOFTMAX, FOCAL = range(2)


def set_match(
    class_logits: list[Tensor],
    pred_boxes: list[Tensor],
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    num_classes: int,
    groups: int,
    kind: int,
    alpha: float,
    gamma: float,
    eps: float,
    class_cost: float,
    box_cost: float,
    giou_cost: float,
    extra_cost: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the query of each box and the box of each query, by the assignment of both that costs least.

        cost = box_cost * (sum of the four |differences| of cxcywh) + class_cost * class - giou_cost * GIoU + extra
        class = -softmax(x)[label]                                                                       (softmax)
        class = alpha (1 - p)^gamma (-log(p + eps)) - (1 - alpha) p^gamma (-log(1 - p + eps)), p = sigmoid(x[label])

    Queries fall into `groups` of Q // groups in a row; each box is matched in each group. A predicted size below 0
    counts as 0, and of two boxes without area IoU and GIoU count as 0. A box takes no part if its label is no class, a
    number of it is not finite, or a size is below 0. Costs that are not finite are the last resort (`assignment`).

    Args:
        class_logits: Parts (S, B, Q, C) of S sets of outputs each, such as the layers of a decoder, and its encoder.
        pred_boxes: As many parts (S, B, Q, 4), cxcywh.
        gt_boxes: (B, N, 4) cxcywh.
        gt_labels: (B, N) integers.
        sample_sizes: (B,) number of boxes per image; None for N.
        num_classes: Labels are below it; C may have one more column for "no object".
        groups: G.
        kind: 0 softmax, 1 focal.
        alpha: Of the focal cost.
        gamma: Of the focal cost.
        eps: Of the focal cost.
        class_cost: Weight.
        box_cost: Weight.
        giou_cost: Weight.
        extra_cost: (S, B, Q, N) of the first part, added; None for 0.

    Returns:
        (R, G, B, N) int64 query of each box in the sets of all parts, counted through all groups, or -1; int64 box of
        each query, or -1, of the parts (S, B, Q) one after the other; (B, N) bool, which boxes take part.

    Reference:
        Carion et al., "End-to-End Object Detection with Transformers", 2020, 3.1; the focal cost of Deformable DETR.
    """
    batch, most = gt_labels.shape
    rows = []
    for b in range(batch):
        size = most if sample_sizes is None else int(sample_sizes[b])
        rows.append([n for n in range(size) if _takes_part(gt_boxes[b, n], int(gt_labels[b, n]), num_classes)])
    valid = torch.tensor([[n in part for n in range(most)] for part in rows]).view(batch, most)
    queries, indices = [torch.zeros(0, groups, batch, most, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for i, (part_logits, part_boxes) in enumerate(zip(class_logits, pred_boxes, strict=True)):
        sets, _, count, _ = part_logits.shape
        each = count // groups
        found = torch.full((sets, groups, batch, most), -1, dtype=torch.int64)
        index = torch.full((sets, batch, count), -1, dtype=torch.int64)
        for s, b in [(s, b) for s in range(sets) for b in range(batch) if rows[b]]:
            logits, boxes = part_logits[s, b].double(), part_boxes[s, b].double()
            costs = torch.stack([
                box_cost * (boxes - gt_boxes[b, n].double()).abs().sum(1)
                + class_cost * _class_cost(logits, int(gt_labels[b, n]), kind, alpha, gamma, eps)
                - giou_cost * giou(boxes, gt_boxes[b, n].double())
                + (0 if extra_cost is None or i > 0 else extra_cost[s, b, :, n].double())
                for n in rows[b]
            ], 1)  # fmt: skip
            for g in range(groups):
                first = g * each
                chosen = assignment(costs[None, first : first + each], None)[0]
                for n, q in zip(rows[b], chosen.tolist(), strict=True):
                    if q >= 0:
                        found[s, g, b, n], index[s, b, first + q] = first + q, n
        queries.append(found)
        indices.append(index.flatten())
    return torch.cat(queries), torch.cat(indices), valid.bool()


def _takes_part(box: Tensor, label: int, num_classes: int) -> bool:
    numbers = box.tolist()
    return 0 <= label < num_classes and all(map(math.isfinite, numbers)) and numbers[2] >= 0 and numbers[3] >= 0


def _class_cost(logits: Tensor, label: int, kind: int, alpha: float, gamma: float, eps: float) -> Tensor:
    if kind == SOFTMAX:
        return -logits.softmax(1)[:, label]
    x = logits[:, label].clamp(-1e4, 1e4)
    if eps > 0:
        log_p, log_q = (x.sigmoid() + eps).log(), ((-x).sigmoid() + eps).log()
    else:
        log_p, log_q = torch.nn.functional.logsigmoid(x), torch.nn.functional.logsigmoid(-x)
    return -alpha * (-x).sigmoid() ** gamma * log_p + (1 - alpha) * x.sigmoid() ** gamma * log_q


def giou(boxes: Tensor, target: Tensor) -> Tensor:
    """GIoU (Q,) of boxes (Q, 4) with one box (4,), cxcywh; 0 in place of 0 / 0."""
    size, other = boxes[:, 2:].clamp(min=0), target[2:]
    low, high = boxes[:, :2] - size / 2, boxes[:, :2] + size / 2
    other_low, other_high = target[:2] - other / 2, target[:2] + other / 2
    inter = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(1)
    hull = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).prod(1)
    union = size.prod(1) + other.prod() - inter
    iou = (inter / union).where(union != 0, 0)
    return iou - ((hull - union) / hull).where(hull != 0, 0)
