"""The valuable localization region: anchors near a box, mostly no positives, but where a teacher's box is worth it."""

import torch
from torch import Tensor

CHUNK_VALUES = 2**21  # pairs of a box and an anchor at once
LOWEST = 0.25  # share of a box's threshold from which an anchor is near


def localization_region(anchors: Tensor, boxes: Tensor, threshold: Tensor, valid: Tensor | None) -> Tensor:
    """Return how much each anchor is worth: its IoU with the box whose region it is in, 0 in none.

    An anchor is in a box's region if its DIoU with the box is below the threshold by which ATSS chose positives, and at
    least a quarter of it. Of several boxes the highest IoU counts. A positive can be among them: ATSS asks for its IoU,
    which is above the DIoU, and another box may be near.

    Args:
        anchors: (A, 4) xyxy.
        boxes: (B, N, 4) xyxy.
        threshold: (B, N), of each box; infinite for one without a region.
        valid: (B, A) bool, anchors that exist; None for all.

    Returns:
        (B, A) float32.

    Reference:
        Zheng et al., "Localization Distillation for Object Detection", 2023, algorithm 1.
    """
    batch, count = len(boxes), len(anchors)
    worth = torch.zeros(batch, count, device=boxes.device)
    if torch.compiler.is_compiling() and boxes.shape[1]:
        # A loop would be traced anew for each number of boxes; a compiler that fuses stores no pairs.
        worth = _worth(anchors, boxes, threshold)
    else:
        step = max(1, CHUNK_VALUES // max(batch * count, 1))
        for start in range(0, boxes.shape[1], step):
            part = slice(start, start + step)
            worth = torch.maximum(worth, _worth(anchors, boxes[:, part], threshold[:, part]))
    return worth if valid is None else worth.where(valid, 0)


def _worth(anchors: Tensor, boxes: Tensor, threshold: Tensor) -> Tensor:
    """The same of some boxes, at least one."""
    limit = threshold[..., None]
    iou, diou = _overlaps(anchors.to(torch.float32), boxes[:, :, None].to(torch.float32))  # (B, N, A)
    inside = (diou >= LOWEST * limit) & (diou < limit)  # false for a NaN
    return iou.where(inside, 0).amax(1)


def _overlaps(anchor: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and DIoU of boxes that broadcast against each other."""
    low, high = torch.maximum(anchor[..., :2], box[..., :2]), torch.minimum(anchor[..., 2:], box[..., 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    areas = (anchor[..., 2:] - anchor[..., :2]).prod(-1) + (box[..., 2:] - box[..., :2]).prod(-1)
    iou = inter / (areas - inter)
    around = torch.maximum(anchor[..., 2:], box[..., 2:]) - torch.minimum(anchor[..., :2], box[..., :2])
    apart = (anchor[..., :2] + anchor[..., 2:] - box[..., :2] - box[..., 2:]) / 2
    return iou, iou - apart.square().sum(-1) / around.square().sum(-1)
