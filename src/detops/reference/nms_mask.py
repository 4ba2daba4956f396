"""The definition of `nms_mask`: greedy non-maximum suppression, one box at a time."""

import torch
from torch import Tensor


def nms_mask(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, valid: Tensor | None, iou_threshold: float
) -> Tensor:
    """Return which boxes are kept.

    Boxes are visited by descending score, ties by the lower index; a NaN counts as the lowest score. A box is
    dropped if its IoU with a kept box of its label is above the threshold. IoU and threshold are float32 (float64 for
    float64 boxes), and each operation is rounded separately:

        area = (x2 - x1) * (y2 - y1),  inter = max(0, min(x2) - max(x1)) * max(0, min(y2) - max(y1))
        iou = inter / (area_1 + area_2 - inter)

    so two empty boxes (0 / 0) and boxes with a NaN suppress nothing.

    Args:
        boxes: (B, N, 4), xyxy in any unit.
        scores: (B, N).
        labels: (B, N) integers; None if all boxes have the same.
        valid: (B, N) bool; other boxes are not kept and suppress nothing. None for all.
        iou_threshold: IoU above which the box with the lower score is dropped.

    Returns:
        (B, N) bool, in the order of the boxes.

    Reference:
        The arithmetic of torchvision's `nms` on CUDA, which compares IoU and threshold in float32. (On the CPU it
        compares a float32 IoU with the threshold in double precision.)
    """
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    keep = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    for b, box in enumerate(boxes.to(dtype)):
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        alive = torch.ones_like(keep[b]) if valid is None else valid[b].clone()
        score = torch.where(scores[b].isnan(), -torch.inf, scores[b].double()).tolist()
        for i in sorted(range(len(score)), key=lambda i: (-score[i], i)):
            if not alive[i]:
                continue
            keep[b, i], alive[i] = True, False
            sides = torch.minimum(box[i, 2:], box[:, 2:]) - torch.maximum(box[i, :2], box[:, :2])  # (N, 2)
            inter = sides.clamp(min=0).prod(1)
            dropped = inter / (area[i] + area - inter) > torch.tensor(iou_threshold, dtype=dtype)
            alive &= ~(dropped if labels is None else dropped & (labels[b] == labels[b, i]))
    return keep
