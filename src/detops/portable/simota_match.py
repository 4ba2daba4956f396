"""`simota_match` in whole-batch PyTorch: used on devices without a kernel.

Boxes are processed in chunks, so that memory is bounded whatever their number. Ranks are one int64, unique to each cell
or box, so that ties go to the lower index: [not among the best | cost | index].
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.geometry.boxes import boxes_at_points, to_cxcywh
from detops.portable._boxes import from_cxcywh, iou
from detops.portable._search import labelled, logits_of, parts

INDEX_BITS = 29
NEVER = torch.iinfo(torch.int64).max
LOG_FLOOR, LOG_EPS = -100.0, 1e-8


def simota_match(
    outputs: list[Tensor],
    objectness: Tensor | None,
    pred_boxes: Tensor | None,
    cells: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    sample_sizes: Tensor | None,
    radius: float,
    center_only: bool,
    own_candidates: bool,
    topk: int,
    k_scale: float,
    iou_weight: float,
    class_weight: float,
    cxcywh: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return box and IoU of each cell, and a count; arguments and meaning as in `detops.reference.simota_match`."""
    batch, num_cells, device = len(outputs[0]), len(cells), cells.device
    if batch == 0 or num_cells == 0 or gt_boxes.shape[1] == 0:
        nothing = torch.full((batch, num_cells), -1, dtype=torch.int64, device=device)
        return nothing, torch.zeros_like(nothing, dtype=torch.float32), torch.zeros_like(nothing[:0]).sum()
    cells, boxes = cells.to(torch.float32), gt_boxes.to(torch.float32)
    if not cxcywh:
        boxes = to_cxcywh(boxes)
    if objectness is None or pred_boxes is None:
        raw = torch.cat([output[..., :5].to(torch.float32) for output in outputs], 1)
        objectness, pred_boxes = raw[..., 4], boxes_at_points(raw, cells)
        outputs = [output[..., 5:] for output in outputs]
    pred, objectness, class_logits = pred_boxes.to(torch.float32), objectness.to(torch.float32), outputs
    of_cell = class_weight * _cost_of_all_classes(class_logits, objectness)  # (B, A)
    valid = boxes.isfinite().all(2) & (boxes[..., 2:] >= 0).all(2)
    valid = valid & labelled(gt_labels, sample_sizes, class_logits[0].shape[2])

    candidate = torch.zeros_like(objectness, dtype=torch.bool)
    present = []
    for part in parts(batch, boxes.shape[1], num_cells):
        own, _ = _regions(cells, boxes[:, part], valid[:, part], radius, center_only)
        candidate = candidate | own.any(1)
        present.append(own.any(2))
    has_own = torch.cat(present, 1)  # (B, N): boxes with candidates of their own

    most = min(max(1, math.floor(topk * k_scale)), num_cells)
    taken = torch.full_like(objectness, NEVER, dtype=torch.int64)  # key of the cheapest box
    times = torch.zeros_like(taken)  # how many boxes picked the cell
    cheapest = taken.clone()  # key of the cheapest box of all, whether it picked the cell or not
    for part in parts(batch, boxes.shape[1], num_cells):
        own, best = _regions(cells, boxes[:, part], valid[:, part], radius, center_only)
        iou = _iou(boxes[:, part, None], pred[:, None])  # (B, n, A)
        of_class = class_weight * _cost_of_labels(class_logits, objectness, gt_labels[:, part])
        of_box = of_class - iou_weight * (iou + LOG_EPS).log()
        allowed = own if own_candidates else candidate[:, None] & has_own[:, part, None]
        highest = iou.masked_fill(~allowed, 0).topk(min(topk, num_cells), dim=2).values
        k = (k_scale * highest.sum(2)).clamp(1, most).to(torch.int64)  # (B, n)
        by_cell = _key(~best, of_box + of_cell[:, None], torch.arange(num_cells, device=device))
        ranked = by_cell.masked_fill(~allowed, NEVER).topk(most, dim=2, largest=False)
        picked = (ranked.values != NEVER) & (torch.arange(most, device=device) < k[..., None])  # (B, n, most)

        number = torch.arange(part.start, part.stop, device=device)
        by_box = _key(~best, of_box, number[:, None])
        of_pick = by_box.gather(2, ranked.indices).masked_fill(~picked, NEVER).flatten(1)
        place = ranked.indices.flatten(1)
        taken = taken.scatter_reduce(1, place, of_pick, "amin")
        times = times.scatter_add(1, place, picked.flatten(1).to(torch.int64))
        cheapest = torch.minimum(cheapest, by_box.masked_fill(~has_own[:, part, None], NEVER).amin(1))
    if not own_candidates:
        taken = torch.where(times > 1, cheapest, taken)
    found = times > 0
    index = (taken & (2**INDEX_BITS - 1)).where(found, 0)
    iou = _iou(boxes.gather(1, index[..., None].expand(-1, -1, 4)), pred)
    return index.where(found, -1), iou.where(found, 0), found.sum()


def _regions(cells: Tensor, boxes: Tensor, valid: Tensor, radius: float, center_only: bool) -> tuple[Tensor, Tensor]:
    """Return (B, n, A) bool each: a box's own candidates, and the best of them."""
    center, half = boxes[..., None, :2], boxes[..., None, 2:] / 2  # (B, n, 1, 2)
    near = ((cells[:, :2] - center).abs() < radius * cells[:, 2:]).all(-1) & valid[..., None]
    if center_only:
        return near, near
    in_box = ((cells[:, :2] > center - half) & (cells[:, :2] < center + half)).all(-1) & valid[..., None]
    return in_box | near, in_box & near


def _iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU of cxcywh boxes that broadcast against each other; 0 where it is not finite."""
    return iou(from_cxcywh(first), from_cxcywh(second)).nan_to_num(0.0, 0.0, 0.0)


def _key(worse: Tensor, cost: Tensor, index: Tensor) -> Tensor:
    """Pack a rank into one integer; `cost` is ordered by its bits, with NaN as infinity."""
    bits = cost.nan_to_num(torch.inf, torch.inf).view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64) + 2**31
    return (worse.to(torch.int64) << 62) | (ordered << INDEX_BITS) | index


def _log_rest(logits: Tensor, objectness: Tensor) -> Tensor:
    """Return the logarithm of 1 - p for p = sqrt(sigmoid(logits) * sigmoid(objectness)), as (1 - p^2) / (1 + p)."""
    known, sure = logits.sigmoid(), objectness.sigmoid()
    # 1 - p^2 = sigmoid(-a) + sigmoid(a) sigmoid(-b)
    rest = (-logits).sigmoid_().addcmul_(known, (-objectness).sigmoid()).log_()
    return rest.sub_(known.mul_(sure).sqrt_().log1p_()).clamp_(min=LOG_FLOOR)


def _cost_of_all_classes(class_logits: list[Tensor], objectness: Tensor) -> Tensor:
    """Return (B, A): the binary cross entropy summed over classes, as if none were the label."""
    parts = objectness.split([level.shape[1] for level in class_logits], 1)
    return torch.cat(
        [
            -_log_rest(level.to(torch.float32), part[..., None]).sum(2)
            for level, part in zip(class_logits, parts, strict=True)
        ],
        1,
    )


def _cost_of_labels(class_logits: list[Tensor], objectness: Tensor, labels: Tensor) -> Tensor:
    """Return (B, n, A): the change of the class cost when the class of a box (B, n) is the label."""
    own, sure = logits_of(class_logits, labels).to(torch.float32), objectness[..., None]
    log_p = ((F.logsigmoid(own) + F.logsigmoid(sure)) / 2).clamp(min=LOG_FLOOR)
    return (_log_rest(own, sure) - log_p).transpose(1, 2)
