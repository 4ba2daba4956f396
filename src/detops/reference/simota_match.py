"""The definition of `simota_match`: SimOTA, one image and one box at a time."""

import torch
from torch import Tensor

LOG_FLOOR = -100.0  # no logarithm of a probability is lower
LOG_EPS = 1e-8  # added to an IoU before its logarithm


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
    """Return the box of each cell, its IoU with the prediction there, and how many cells have a box.

    Without `pred_boxes` the outputs are raw: a row is t = (x, y, w, h, objectness, classes). With the cell's column and
    row g in its level and its side s, it predicts the box ((t_x + g_x) s, (t_y + g_y) s, e^t_w s, e^t_h s), cxcywh.

    A box's own candidates are the cells whose centre lies in it, or within `radius` cells of its centre; the best of
    these are those for which both holds. Boxes without own candidates, with a negative side, with a coordinate that is
    not finite, or with a label that is no class are not assigned.

        k     = trunc(k_scale * sum of the `topk` highest IoUs), at least 1
        picks = the k cheapest cells, where the box's best candidates come before all other cells

    both over the candidates of all boxes of the image, or with `own_candidates` over the box's own. A cell that several
    boxes picked gets the cheapest of all boxes of the image, or with `own_candidates` the cheapest that picked it. Ties
    go to the lower index. A cost that is NaN counts as infinite, an IoU that is NaN as 0.

    Args:
        outputs: Each level's class logits (B, A_l, C), or raw (B, A_l, 5 + C); A is the sum of the A_l.
        objectness: (B, A) logits; None for raw outputs.
        pred_boxes: (B, A, 4) cxcywh in pixels; None for raw outputs.
        cells: (A, 3): x and y of the cell's centre, and its side, in pixels.
        gt_boxes: (B, N, 4) in pixels, cxcywh or xyxy.
        gt_labels: (B, N) integers.
        sample_sizes: (B,) number of boxes per image; None for N.
        radius: Greatest distance from the box's centre along each axis, in cells.
        center_only: Own candidates, and the best of them, are only the cells near the centre.
        own_candidates: A box picks only among its own candidates, and only boxes that picked a cell contest it.
        topk: Number of IoUs that are summed for k.
        k_scale: Factor of that sum.
        iou_weight: Factor of the cost -log(IoU + 1e-8).
        class_weight: Factor of the binary cross entropy of sqrt(sigmoid(class) * sigmoid(objectness)) and the box's
            label, summed over classes.
        cxcywh: Whether the boxes are given as centre and size, not as corners.

    Returns:
        (B, A) int64 index of the box, -1 for none; (B, A) IoU, 0 for none; 0-d int64 number of cells that have a box.

    Reference:
        Ge et al., "YOLOX: Exceeding YOLO Series in 2021", and its code, which instead adds 1e5 to the
        cost of cells that are not among the best.
    """
    if not cxcywh:
        gt_boxes = torch.cat([(gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2, gt_boxes[..., 2:] - gt_boxes[..., :2]], -1)
    if objectness is None or pred_boxes is None:
        rows = torch.cat(outputs, 1).double()
        side = cells[:, 2:]
        center = (rows[..., :2] - 0.5) * side + cells[:, :2]  # the corner of a cell is half its side from the centre
        pred_boxes = torch.cat([center, rows[..., 2:4].exp() * side], -1)
        objectness, outputs = rows[..., 4], [output[..., 5:] for output in outputs]
    index = torch.full(objectness.shape, -1, dtype=torch.int64)
    matched = torch.zeros(objectness.shape, dtype=torch.float64)
    for b in range(len(objectness)):
        count = gt_boxes.shape[1] if sample_sizes is None else int(sample_sizes[b])
        scores = torch.cat([level[b] for level in outputs])
        own, best = regions(cells, gt_boxes[b, :count], gt_labels[b, :count], scores.shape[1], radius, center_only)
        iou = pair_iou(gt_boxes[b, :count], pred_boxes[b])  # (n, A)
        cost = costs(scores, objectness[b], gt_labels[b, :count], iou, iou_weight, class_weight)
        picked = torch.zeros_like(own)
        for n in range(count):
            allowed = own[n] if own_candidates else own.any(0)
            if not own[n].any():
                continue
            highest = iou[n][allowed].sort(descending=True).values[:topk]
            k = max(1, int(k_scale * highest.sum()))
            ranked = sorted(allowed.nonzero()[:, 0].tolist(), key=lambda a: (not best[n, a], cost[n, a].item(), a))
            picked[n, ranked[:k]] = True
        for a in picked.any(0).nonzero()[:, 0].tolist():
            boxes = picked[:, a].nonzero()[:, 0].tolist()
            if len(boxes) > 1 and not own_candidates:
                boxes = own.any(1).nonzero()[:, 0].tolist()
            winner = min(boxes, key=lambda n: (not best[n, a], cost[n, a].item(), n))
            index[b, a], matched[b, a] = winner, iou[winner, a]
    return index, matched, (index >= 0).sum()


def regions(
    cells: Tensor, boxes: Tensor, labels: Tensor, num_classes: int, radius: float, center_only: bool
) -> tuple[Tensor, Tensor]:
    """Return (n, A) bool each: own candidates of each box, and the best of them."""
    valid = boxes.isfinite().all(1) & (boxes[:, 2:] >= 0).all(1) & (labels >= 0) & (labels < num_classes)
    away = (cells[None, :, :2] - boxes[:, None, :2]).abs()  # (n, A, 2)
    low, high = boxes[:, None, :2] - boxes[:, None, 2:] / 2, boxes[:, None, :2] + boxes[:, None, 2:] / 2
    in_box = ((cells[:, :2] > low) & (cells[:, :2] < high)).all(-1)
    near = (away < radius * cells[None, :, 2:]).all(-1)
    own, best = (near, near) if center_only else (in_box | near, in_box & near)
    return own & valid[:, None], best & valid[:, None]


def pair_iou(gt_boxes: Tensor, pred_boxes: Tensor) -> Tensor:
    """Return the IoU of all pairs, (n, A) float64."""
    gt, pred = gt_boxes.double()[:, None], pred_boxes.double()[None]
    low = torch.maximum(gt[..., :2] - gt[..., 2:] / 2, pred[..., :2] - pred[..., 2:] / 2)
    high = torch.minimum(gt[..., :2] + gt[..., 2:] / 2, pred[..., :2] + pred[..., 2:] / 2)
    inter = (high - low).clamp(min=0).prod(-1)
    iou = inter / (gt[..., 2:].prod(-1) + pred[..., 2:].prod(-1) - inter)
    return iou.nan_to_num(0.0, 0.0, 0.0)


def costs(
    scores: Tensor, objectness: Tensor, labels: Tensor, iou: Tensor, iou_weight: float, class_weight: float
) -> Tensor:
    """Return the costs, (n, A) float64; that a box's best candidates come first is not part of them."""
    a, b = scores.double(), objectness.double()[:, None]  # (A, C), (A, 1)
    log_p = (torch.nn.functional.logsigmoid(a) + torch.nn.functional.logsigmoid(b)) / 2
    # 1 - p = (1 - p^2) / (1 + p), and 1 - sigmoid(a) sigmoid(b) = sigmoid(-a) + sigmoid(a) sigmoid(-b).
    log_q = (torch.sigmoid(-a) + torch.sigmoid(a) * torch.sigmoid(-b)).log() - log_p.exp().log1p()
    log_p, log_q = log_p.clamp(min=LOG_FLOOR), log_q.clamp(min=LOG_FLOOR)
    label = labels.long().clamp(0, a.shape[1] - 1)
    own = (log_q - log_p)[:, label].T  # (n, A)
    cost = class_weight * (own - log_q.sum(1)) - iou_weight * (iou + LOG_EPS).log()
    return cost.nan_to_num(torch.inf, torch.inf)
