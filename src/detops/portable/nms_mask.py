"""`nms_mask` in whole-batch PyTorch: used on devices without a kernel.

It compares all pairs at once, then takes one short step per box: whether a box is dropped depends on all before it.
"""

import torch
from torch import Tensor

from detops.geometry.boxes import in_order
from detops.portable._boxes import from_xyxy, iou


def nms_mask(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, valid: Tensor | None, iou_threshold: float
) -> Tensor:
    """Return which boxes are kept; arguments and meaning as in `detops.reference.nms_mask`."""
    order, box, label, alive = in_order(boxes, scores, labels, valid)
    drops = iou(from_xyxy(box[:, :, None]), from_xyxy(box[:, None])) > iou_threshold  # (B, N, N)
    if label is not None:
        drops = drops & (label[:, :, None] == label[:, None])
    drops = drops.triu(1)
    for i in range(box.shape[1]):
        alive = alive & ~(drops[:, i] & alive[:, i : i + 1])
    return torch.zeros_like(alive).scatter(1, order, alive)
