"""The definition of `vlr_weights`: the valuable localization region, one image, box and anchor at a time."""

import torch
from torch import Tensor

NEAR = 0.25  # lowest DIoU of an anchor of the region, as a fraction of the box's threshold


def vlr_weights(anchors: Tensor, gt_boxes: Tensor, threshold: Tensor, valid: Tensor | None) -> Tensor:
    """Return the weight of each anchor in distillation: its IoU with the box in whose region it lies, 0 in none.

    An anchor lies in a box's region if its DIoU with the box is below the threshold by which ATSS chose positives, and
    at least a quarter of it. In the regions of several boxes, the highest IoU counts. A positive may lie in a region
    too: ATSS compares its IoU, which is not below its DIoU, with the threshold, and it may be near another box.

    Args:
        anchors: (A, 4) xyxy in pixels.
        gt_boxes: (B, N, 4) xyxy in pixels.
        threshold: (B, N), ATSS's threshold of each box; infinite for a box without a region.
        valid: (B, A) bool, which anchors take part in each image; None for all.

    Returns:
        (B, A) weights, 0 .. 1.

    Reference:
        Zheng et al., "Localization Distillation for Object Detection", 2023, algorithm 1.
    """
    worth = torch.zeros(len(gt_boxes), len(anchors), dtype=torch.float64)
    for b, boxes in enumerate(gt_boxes.double()):
        for n, box in enumerate(boxes):
            limit = threshold[b, n].double()
            for a, anchor in enumerate(anchors.double()):
                iou, diou = overlaps(anchor, box)
                if NEAR * limit <= diou < limit and (valid is None or valid[b, a]):  # false for a NaN
                    worth[b, a] = max(worth[b, a], iou)
    return worth


def overlaps(anchor: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and DIoU of two boxes."""
    sides = torch.minimum(anchor[2:], box[2:]) - torch.maximum(anchor[:2], box[:2])
    inter = sides.clamp(min=0).prod()
    iou = inter / ((anchor[2:] - anchor[:2]).prod() + (box[2:] - box[:2]).prod() - inter)
    hull = torch.maximum(anchor[2:], box[2:]) - torch.minimum(anchor[:2], box[:2])
    apart = (anchor[:2] + anchor[2:] - box[:2] - box[2:]) / 2
    return iou, iou - apart.square().sum() / hull.square().sum()
