"""`Detections`, the result of every decoder, and their common steps: sorting, clipping, suppression, padding."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detops import ops
from detops.geometry.levels import ImageSizes, dense_map, image_sizes_tensor


class Detections(NamedTuple):
    """Detections of a batch, the highest score first; K is the same for every image.

    Attributes:
        boxes: (B, K, 4) float32, xyxy in pixels of the network's input; of `detops.load`, in pixels of each image.
        labels: (B, K) int64, -1 for no detection.
        scores: (B, K) float32, 0 for no detection.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor

    def to_list(self) -> list[dict[str, Tensor]]:
        """Return torchvision's results: a dict of "boxes", "labels" and "scores" per image, without padding.

        Waits for the device, because the number of detections determines the shapes.
        """
        counts = (self.labels >= 0).sum(1).tolist()
        return [
            {"boxes": boxes[:count], "labels": labels[:count], "scores": scores[:count]}
            for boxes, labels, scores, count in zip(*self, counts, strict=True)
        ]


def select(
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    least: float,
    max_detections: int,
    iou_threshold: float | None,
    image_sizes: ImageSizes | None = None,
) -> Detections:
    """Turn candidates, the highest score first, into detections: clip, drop boxes without area, suppress, pad.

    Args:
        boxes: (B, M, 4) xyxy, float32.
        labels: (B, M) integers.
        scores: (B, M) float32, descending; NaN and what is below `least` is no candidate.
        least: Lowest score of a detection.
        max_detections: K.
        iou_threshold: IoU above which the worse of two boxes of a class is dropped; None for no suppression.
        image_sizes: Sizes that boxes are clipped to; None for no clipping.
    """
    if image_sizes is not None:
        image_sizes = image_sizes_tensor(image_sizes, boxes.shape[0], boxes.device)
    found = ops.select_detections(
        boxes=boxes,
        labels=labels,
        scores=scores,
        image_sizes=image_sizes,
        least=float(least),
        iou_threshold=math.inf if iou_threshold is None else float(iou_threshold),
        max_detections=max_detections,
    )
    return Detections(*found)


def top_classes(levels: Sequence[Tensor], score_threshold: float, count: int) -> tuple[Tensor, Tensor]:
    """Return the highest scores of each level by their logits, all levels' together in descending order.

    Args:
        levels: Each level's (B, C, H, W) class logits.
        score_threshold: Lowest score that matters; others may be left out, and are NaN.
        count: How many of each level; all, if one has fewer. Ties go to the lower index.

    Returns:
        (B, K) float32 scores, NaN for none. (B, K) indices, of a point times C plus the class.
    """
    if torch.compiler.is_exporting():
        return _exported_top_classes(levels, count)
    least = -math.inf
    if score_threshold > 0:
        # A little lower than the logit of the threshold: the scores themselves are compared with it later.
        least = math.log(score_threshold) - math.log1p(-min(score_threshold, 1 - 1e-9)) - 0.01
    if any(level.dtype != levels[0].dtype for level in levels):
        levels = [level.to(torch.float32) for level in levels]
    found, index = ops.top_logits(logits=[dense_map(level.detach()) for level in levels], least=least, count=count)
    return found.sigmoid(), index


def _exported_top_classes(levels: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
    best, index, start = [], [], 0
    for level in levels:
        flat = level.to(torch.float32).flatten(2).transpose(1, 2).flatten(1).nan_to_num(-math.inf, math.inf, -math.inf)
        found = flat.topk(min(count, flat.shape[1]), 1)
        best.append(found.values)
        index.append(found.indices + start)
        start += flat.shape[1]
    order = torch.cat(best, 1).topk(sum(part.shape[1] for part in best), 1)
    return order.values.sigmoid(), torch.cat(index, 1).gather(1, order.indices)


def padded(exists: Tensor, boxes: Tensor, labels: Tensor, scores: Tensor, max_detections: int) -> Detections:
    """Take the first `max_detections` of each image; those that do not exist are 0, with label -1."""
    count = min(max_detections, scores.shape[1])
    exists, boxes, labels, scores = (t[:, :count] for t in (exists, boxes, labels, scores))
    missing = max_detections - count
    return Detections(
        F.pad(boxes.where(exists[..., None], 0), (0, 0, 0, missing)),
        F.pad(labels.where(exists, -1), (0, missing), value=-1),
        F.pad(scores.where(exists, 0), (0, missing)),
    )


def require_options(
    max_detections: int, score_threshold: float = 0.0, iou_threshold: float | None = None, candidates: int = 1
) -> None:
    """Check the options that decoders share.

    Raises:
        ValueError: One is out of range.
    """
    for name, value in (("max_detections", max_detections), ("candidates", candidates)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value!r}")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold: expected 0 .. 1, got {score_threshold!r}")
    if iou_threshold is not None and not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold: expected 0 .. 1 or None, got {iou_threshold!r}")
