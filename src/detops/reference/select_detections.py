"""The definition of `select_detections`: candidates to detections, one candidate at a time."""

import math

import torch
from torch import Tensor


def select_detections(
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    image_sizes: Tensor | None,
    least: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Clip candidates, drop those that are none, suppress within labels, and keep the first.

    A candidate is none if its score is below `least` or NaN, or if its clipped box has no width or height or a
    coordinate that is not finite. It is suppressed if its IoU with a detection of its label is above the threshold, in
    the arithmetic of `nms_mask`.

    Args:
        boxes: (B, M, 4) float32, xyxy in pixels, in the order of the scores.
        labels: (B, M) integers.
        scores: (B, M) float32, descending among the candidates.
        image_sizes: (B, 2) height and width that boxes are clipped to; None for no clipping.
        least: Lowest score of a detection.
        iou_threshold: IoU above which a candidate is suppressed; infinity for no suppression.
        max_detections: K, at least 1.

    Returns:
        (B, K, 4) float32 boxes, (B, K) int64 labels and (B, K) float32 scores in the order of the candidates; the rest
        has box 0, label -1 and score 0.
    """
    batch = len(boxes)
    found = torch.zeros(batch, max_detections, 4)
    names = torch.full((batch, max_detections), -1)
    values = torch.zeros(batch, max_detections)
    limit = torch.tensor(iou_threshold, dtype=torch.float32)
    for b in range(batch):
        count = 0
        for box, label, score in zip(boxes[b], labels[b], scores[b], strict=True):
            if image_sizes is not None:
                height, width = image_sizes[b].float()
                box = torch.minimum(box.clamp(min=0), torch.stack([width, height, width, height]))
            exists = score >= least and box.isfinite().all() and box[2] > box[0] and box[3] > box[1]
            if count == max_detections or not exists:
                continue
            if iou_threshold < math.inf:
                others = found[b, :count]
                sides = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp(min=0)
                inter = sides[:, 0] * sides[:, 1]
                areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
                iou = inter / (areas + (box[2] - box[0]) * (box[3] - box[1]) - inter)
                if ((iou > limit) & (names[b, :count] == label)).any():
                    continue
            found[b, count], names[b, count], values[b, count] = box, label, score
            count += 1
    return found, names, values
