"""`nms_mask` in whole-batch PyTorch: what runs where there is no kernel.

All pairs at once, then as many short steps as there are boxes: whether a box is dropped depends on all before it.
"""

import torch
from torch import Tensor

from detops.geometry.boxes import in_order


def nms_mask(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, valid: Tensor | None, iou_threshold: float
) -> Tensor:
    """Which boxes are kept; arguments and meaning as in `detops.reference.nms_mask`."""
    order, box, label, alive = in_order(boxes, scores, labels, valid)
    low, high = box[..., :2], box[..., 2:]
    area = (high - low).prod(-1)
    sides = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])
    inter = sides.clamp(min=0).prod(-1)  # (B, N, N)
    drops = inter / (area[:, :, None] + area[:, None] - inter) > iou_threshold
    if label is not None:
        drops = drops & (label[:, :, None] == label[:, None])
    drops = drops.triu(1)
    for i in range(box.shape[1]):
        alive = alive & ~(drops[:, i] & alive[:, i : i + 1])
    return torch.zeros_like(alive).scatter(1, order, alive)
