"""`vlr_weights` in whole-batch PyTorch: pairs of a box and an anchor, in chunks."""

import torch
from torch import Tensor

CHUNK_VALUES = 2**21  # pairs at once
LOWEST = 0.25  # share of a box's threshold from which an anchor is near


def vlr_weights(anchors: Tensor, gt_boxes: Tensor, threshold: Tensor, valid: Tensor | None) -> Tensor:
    """Return (B, A) float32; meaning as in `detops.reference.vlr_weights`."""
    batch, count = len(gt_boxes), len(anchors)
    worth = gt_boxes.new_zeros(batch, count, dtype=torch.float32)
    step = max(1, CHUNK_VALUES // max(batch * count, 1))
    for start in range(0, gt_boxes.shape[1], step):
        part = slice(start, start + step)
        worth = torch.maximum(worth, _worth(anchors, gt_boxes[:, part], threshold[:, part]))
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
