"""`vlr_weights` in whole-batch PyTorch: pairs of a box and an anchor, in chunks."""

import torch
from torch import Tensor

from detops.portable._boxes import from_xyxy, iou

CHUNK_VALUES = 2**21  # pairs at once
NEAR = 0.25  # lowest DIoU of an anchor of the region, as a fraction of the box's threshold


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
    """Return the same for one chunk of boxes, which has at least one."""
    limit = threshold[..., None]
    anchor, box = from_xyxy(anchors.to(torch.float32)), from_xyxy(boxes[:, :, None].to(torch.float32))
    overlap = iou(anchor, box)  # (B, N, A)
    around = torch.maximum(anchor.high, box.high) - torch.minimum(anchor.low, box.low)
    apart = (anchor.low + anchor.high - box.low - box.high) / 2
    diou = overlap - apart.square().sum(-1) / around.square().sum(-1)
    inside = (diou >= NEAR * limit) & (diou < limit)  # false for a NaN
    return overlap.where(inside, 0).amax(1)
