"""What every decoder returns, and the steps they share: the best, suppression, padding."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.inference.nms import nms_mask


class Detections(NamedTuple):
    """Detections of a batch, the best first; K is the same for every image.

    Attributes:
        boxes: (B, K, 4) float32, xyxy in pixels of the network's input.
        scores: (B, K) float32, 0 where there is no detection.
        labels: (B, K) int64, -1 where there is no detection.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each row (B, M) of float32 without NaN, and where they are; ties to the lower index.

    `torch.topk` leaves open which of equal values it takes. So it is given integers that are all different: the
    value's bits in an order that integers have too, then the index.
    """
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes one zero of the two
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    index = torch.arange(values.shape[1], device=values.device)
    keys = (bits.to(torch.int64) << 32) | (2**32 - 1 - index)
    best = 2**32 - 1 - (keys.topk(k, 1).values & (2**32 - 1))
    return values.gather(1, best), best


def suppress(
    boxes: Tensor, logits: Tensor, labels: Tensor, exists: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Drop by NMS, and bring what is left to the front."""
    kept = nms_mask(boxes, logits, iou_threshold, labels=labels, valid=exists)
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    gathered = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return kept.gather(1, order), gathered, logits.gather(1, order), labels.gather(1, order)


def padded(exists: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, max_detections: int) -> Detections:
    """The first so many of each image; what does not exist is 0, with label -1."""
    count = min(max_detections, scores.shape[1])
    exists, boxes, scores, labels = (t[:, :count] for t in (exists, boxes, scores, labels))
    missing = max_detections - count
    return Detections(
        F.pad(boxes.where(exists[..., None], 0), (0, 0, 0, missing)),
        F.pad(scores.where(exists, 0), (0, missing)),
        F.pad(labels.where(exists, -1), (0, missing), value=-1),
    )
