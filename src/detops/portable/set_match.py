"""`set_match` in whole-batch PyTorch: the costs of all sets, images and groups at once, then `assignment`."""

import torch
from torch import Tensor

from detops.geometry.ordering import true_first
from detops.portable._boxes import from_cxcywh, overlap
from detops.portable._search import labelled
from detops.portable.assignment import assignment

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
    """Return queries, boxes and which are valid; arguments and meaning as in `detops.reference.set_match`."""
    batch, most = gt_labels.shape
    order, boxes, labels, there = _valid_first(gt_boxes, gt_labels, sample_sizes, num_classes)
    costs = []
    for i, (part_logits, part_boxes) in enumerate(zip(class_logits, pred_boxes, strict=True)):
        sets, _, count, _ = part_logits.shape
        used = count // groups * groups
        logits, pred = part_logits[:, :, :used].to(torch.float32), part_boxes[:, :, :used].to(torch.float32)
        if kind == SOFTMAX:
            logits = logits - logits.logsumexp(-1, keepdim=True)
        x = logits.gather(3, labels[None, :, None].expand(sets, -1, used, -1))  # (S, B, Q, N)
        l1 = (pred[..., None, :] - boxes[:, None]).abs().sum(-1)
        cost = (
            box_cost * l1
            + class_cost * (-x.exp() if kind == SOFTMAX else _focal_cost(x, alpha, gamma, eps))
            - giou_cost * _giou(pred, boxes)
        )
        if extra_cost is not None and i == 0:
            cost = cost + extra_cost[:, :, :used].to(torch.float32).gather(3, order[None, :, None].expand_as(cost))
        # (S, B, G, Q, N) -> (S G B, Q, N)
        costs.append(cost.unflatten(2, (groups, used // groups)).transpose(1, 2).flatten(0, 2))
    queries, indices = [], []
    for logits, query in zip(class_logits, _assigned(costs, there.sum(1)), strict=True):
        sets, _, count, _ = logits.shape
        query = query.view(sets, groups, batch, most)
        first = torch.arange(groups, device=query.device)[:, None, None] * (count // groups)
        query = (query + first).where(query >= 0, -1)
        query = torch.empty_like(query).scatter_(3, order.expand_as(query), query)
        queries.append(query)
        # Boxes without a query write into one more place, which is cut off.
        index = torch.full((sets, batch, count + 1), -1, dtype=torch.int64, device=query.device)
        spread = query.transpose(1, 2).reshape(sets, batch, groups * most)
        box = torch.arange(most, device=query.device).repeat(groups).expand_as(spread)
        index.scatter_(2, spread.where(spread >= 0, count), box)
        indices.append(index[..., :count].flatten())
    valid = torch.empty_like(there).scatter_(1, order, there)
    return torch.cat(queries), torch.cat(indices), valid


def _assigned(costs: list[Tensor], sizes: Tensor) -> list[Tensor]:
    """(P, N) query of each box, of each part's problems (P, Q, N); parts of as many queries are solved together."""
    batch = max(len(sizes), 1)
    every = [sizes.repeat(len(cost) // batch) for cost in costs]
    if len({cost.shape[1] for cost in costs}) > 1:
        return [assignment(cost, size) for cost, size in zip(costs, every, strict=True)]
    return list(assignment(torch.cat(costs), torch.cat(every)).split([len(cost) for cost in costs]))


def _valid_first(
    boxes_cxcywh: Tensor, labels: Tensor, sample_sizes: Tensor | None, num_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bring the boxes that take part to the front of each image, in their order.

    Returns:
        (B, N) int64, where each came from; (B, N, 4) float32 boxes and (B, N) int64 labels, both 0 where a box takes no
        part; (B, N) bool, which take part.
    """
    valid = boxes_cxcywh.isfinite().all(-1) & (boxes_cxcywh[..., 2:] >= 0).all(-1)
    valid = valid & labelled(labels, sample_sizes, num_classes)
    order = true_first(valid)
    there = valid.gather(1, order)
    boxes = boxes_cxcywh.to(torch.float32).gather(1, order[..., None].expand(-1, -1, 4))
    label = labels.to(torch.int64).gather(1, order).where(there, 0)
    return order, boxes.where(there[..., None], 0), label, there


def _focal_cost(logits: Tensor, alpha: float, gamma: float, eps: float) -> Tensor:
    x = logits.clamp(-1e4, 1e4)
    p, q = x.sigmoid(), (-x).sigmoid()
    if eps > 0:
        log_p, log_q = (p + eps).log(), (q + eps).log()
    else:
        log_p, log_q = torch.nn.functional.logsigmoid(x), torch.nn.functional.logsigmoid(-x)
    return (1 - alpha) * p**gamma * log_q - alpha * q**gamma * log_p


def _giou(pred: Tensor, boxes: Tensor) -> Tensor:
    """(S, B, Q, N) GIoU of boxes (S, B, Q, 4) and (B, N, 4), cxcywh; 0 in place of 0 / 0."""
    pred = torch.cat([pred[..., :2], pred[..., 2:].clamp(min=0)], -1)
    first, second = from_cxcywh(pred[..., None, :]), from_cxcywh(boxes[:, None])
    inter, union = overlap(first, second)
    hull = (torch.maximum(first.high, second.high) - torch.minimum(first.low, second.low)).prod(-1)
    return (inter / union).where(union != 0, 0) - ((hull - union) / hull).where(hull != 0, 0)
