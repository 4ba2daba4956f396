"""`tal_match` in whole-batch PyTorch: what runs where there is no kernel.

Boxes are taken a chunk at a time, so that memory is bounded whatever their number. What is to be ranked becomes one
int64, unique to each point or box, so that ties go to the lower index: [number | all ones - index].
"""

import math

import torch
from torch import Tensor

from detops.geometry.boxes import iou_of_pairs
from detops.portable._search import LOW, bits, labelled, logits_of, parts

TINY = torch.finfo(torch.float32).tiny
CIOU_EPS = 1e-7


def tal_match(
    class_logits: list[Tensor],
    pred_boxes: Tensor,
    points: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    valid: Tensor | None,
    alpha: float,
    beta: float,
    topk: int,
    ciou: bool,
    all_points: bool,
    all_boxes: bool,
    fallback: bool,
    margin: float,
    reach: float,
    min_side: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The box of each point and its quality; arguments and meaning as in `detops.reference.tal_match`."""
    (batch, count), boxes, device = pred_boxes.shape[:2], gt_boxes.shape[1], pred_boxes.device
    nothing = torch.full((batch, count), -1, dtype=torch.int64, device=device)
    if batch == 0 or count == 0 or boxes == 0:
        return nothing, torch.zeros(batch, count, dtype=torch.float32, device=device)
    box, pred, point = (t.to(torch.float32) for t in (gt_boxes, pred_boxes, points))
    known = box.isfinite().all(2) & (box[..., 2:] >= box[..., :2]).all(2)
    known = known & labelled(gt_labels, sample_sizes, class_logits[0].shape[2])
    lanes = torch.arange(count, device=device)
    best, anyones = nothing, nothing  # ranks of the boxes of each point: of those that took it, and of all
    times = torch.zeros_like(nothing)  # how many boxes took it
    for part in parts(batch, boxes, count):
        u = _overlap(box[:, part, None], pred[:, None], ciou)  # (B, n, A)
        m = _metric(logits_of(class_logits, gt_labels[:, part]).transpose(1, 2), u, alpha, beta)
        inside = _inside(point, box[:, part], margin, reach, min_side)
        possible = (m > 0) & known[:, part, None]
        if valid is not None:
            possible = possible & valid[:, None]
        rank = (bits(m) << 32) | (LOW - lanes)
        first = rank.masked_fill(~(possible if all_points else possible & inside), -1).topk(min(topk, count), dim=2)
        taken = (first.values >= 0) & inside.gather(2, first.indices)
        place = first.indices
        if fallback:
            highest, at = rank.masked_fill(~possible, -1).max(2, keepdim=True)
            taken = torch.cat([taken, ~taken.any(2, keepdim=True) & (highest >= 0)], 2)
            place = torch.cat([place, at], 2)
        number = torch.arange(part.start, part.stop, device=device)[:, None]
        by_box = (bits(u) << 32) | (LOW - number)
        offered = by_box.gather(2, place).masked_fill(~taken, -1)
        best = best.scatter_reduce(1, place.flatten(1), offered.flatten(1), "amax")
        times = times.scatter_add(1, place.flatten(1), taken.flatten(1).to(torch.int64))
        if all_boxes:
            anyones = torch.maximum(anyones, by_box.masked_fill(~known[:, part, None], -1).amax(1))
    if all_boxes:
        best = torch.where(times > 1, anyones, best)
    found = times > 0
    index = (LOW - (best & LOW)).where(found, 0)
    u = _overlap(box.gather(1, index[..., None].expand(-1, -1, 4)), pred, ciou)
    m = _metric(_logits_at(class_logits, gt_labels.gather(1, index)), u, alpha, beta)
    u, m = u.where(found, 0), m.where(found, 0)
    most = torch.zeros(2, batch, boxes, dtype=torch.float32, device=device)
    most = most.scatter_reduce(2, index.expand(2, -1, -1), torch.stack([m, u]), "amax").gather(
        2, index.expand(2, -1, -1)
    )
    return index.where(found, -1), (m / (most[0] + eps) * most[1]).where(found, 0)


def _inside(points: Tensor, boxes: Tensor, margin: float, reach: float, min_side: float) -> Tensor:
    """(B, n, A) bool."""
    xy, stride = points[:, :2], points[:, 2:]
    low, high = boxes[..., None, :2], boxes[..., None, 2:]  # (B, n, 1, 2)
    if min_side > 0:
        grown = ((min_side * stride - (high - low)) / 2).clamp(min=0)
        least = torch.minimum(xy - (low - grown), high + grown - xy).amin(-1)
    else:
        least = torch.minimum(xy - low, high - xy).amin(-1)
    inside = least >= margin
    if math.isinf(reach):
        return inside
    return inside & (torch.maximum(xy - low, high - xy).amax(-1) / stride[:, 0] <= reach)


def _metric(logits: Tensor, u: Tensor, alpha: float, beta: float) -> Tensor:
    p = logits.to(torch.float32).sigmoid()
    square = u * u
    m = (p if alpha == 1 else p.pow(alpha)) * (square * square * square if beta == 6 else u.pow(beta))
    return m.where(m >= TINY, 0)  # 0 for NaN


def _logits_at(class_logits: list[Tensor], labels: Tensor) -> Tensor:
    """(B, A) logits of the labels (B, A) of points."""
    index = labels.to(torch.int64).clamp(0, class_logits[0].shape[2] - 1)[..., None]
    parts = index.split([level.shape[1] for level in class_logits], 1)
    return torch.cat([level.gather(2, part) for level, part in zip(class_logits, parts, strict=True)], 1)[..., 0]


def _overlap(first: Tensor, second: Tensor, ciou: bool) -> Tensor:
    """IoU, or complete IoU, of boxes that broadcast against each other; 0 where it is not a number."""
    u = iou_of_pairs(first, second).clamp(min=0)
    if not ciou:
        return u
    apart = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    distance = apart.square().sum(-1) / (hull.square().sum(-1) + CIOU_EPS)
    aspect = 4 / math.pi**2 * (_angle(first) - _angle(second)).square()
    weight = aspect / (aspect - u + 1 + CIOU_EPS)
    return (u - distance - weight * aspect).nan_to_num(0.0).clamp(0, 1).where(u > 0, 0)


def _angle(boxes: Tensor) -> Tensor:
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides[..., 0] / (sides[..., 1] + CIOU_EPS)).atan()
