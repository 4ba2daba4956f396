"""`Detections`, the result of every decoder, and their common steps: sorting, clipping, suppression, padding."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.geometry.levels import ImageSizes, image_sizes_tensor
from detops.geometry.ordering import true_first
from detops.inference.nms import nms_mask


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
    exists: Tensor,
    max_detections: int,
    iou_threshold: float | None,
    image_sizes: ImageSizes | None = None,
) -> Detections:
    """Turn candidates, the highest score first, into detections: clip, drop boxes without area, suppress, pad.

    Args:
        boxes: (B, M, 4) xyxy.
        labels: (B, M) integers.
        scores: (B, M), descending among those that exist.
        exists: (B, M) bool, which candidates are real.
        max_detections: K.
        iou_threshold: IoU above which the worse of two boxes of a class is dropped; None for no suppression.
        image_sizes: Sizes that boxes are clipped to; None for no clipping.
    """
    if image_sizes is not None:
        sides = image_sizes_tensor(image_sizes, boxes.shape[0], boxes.device).to(boxes.dtype)
        boxes = torch.minimum(boxes.clamp(min=0), sides.flip(1).repeat(1, 2)[:, None])
    # False for a NaN too.
    exists = exists & (boxes[..., 2:] > boxes[..., :2]).all(-1) & are_finite(boxes)
    kept = exists
    if iou_threshold is not None:
        kept = nms_mask(boxes, scores, iou_threshold, labels=labels, valid=exists)
    order = true_first(kept)
    gathered = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return padded(kept.gather(1, order), gathered, labels.gather(1, order), scores.gather(1, order), max_detections)


def top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest of each row (B, M) of float32 without NaN, and their indices; ties to the lower index.

    An exported program has `topk` alone, because not every runtime can read bits; ONNX's gives ties to the lower index.
    """
    if torch.compiler.is_exporting():
        found = values.topk(k, 1)
        return found.values, found.indices
    best = _index_of(_keys(values).topk(k, 1).values)
    return values.gather(1, best), best


def top_of_parts(values: Tensor, parts: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest of each part of each row, all parts' together in descending order, and their indices.

    Args:
        values: (B, M) float32 without NaN; ties go to the lower index.
        parts: How many values each part has, in order; their sum is M.
        k: How many of each; all, if a part has fewer.
    """
    if torch.compiler.is_exporting():
        starts = [sum(parts[:i]) for i in range(len(parts))]
        found = [part.topk(min(k, part.shape[1]), 1) for part in values.split(list(parts), 1)]
        index = torch.cat([one.indices + start for one, start in zip(found, starts, strict=True)], 1)
        best = torch.cat([one.values for one in found], 1)
        order = best.topk(best.shape[1], 1)
        return order.values, index.gather(1, order.indices)
    keys = _keys(values).split(list(parts), 1)
    best = _index_of(torch.cat([part.topk(min(k, part.shape[1]), 1).values for part in keys], 1).sort(1, True).values)
    return values.gather(1, best), best


def _keys(values: Tensor) -> Tensor:
    """Return int64 (B, M) that sort as float32 values do, and equal ones by their index, the lowest last.

    `torch.topk` does not define which of equal values it takes; these are all different: the bits of the value, changed
    so that they sort as integers, less the index.
    """
    bits = (values + 0.0).view(torch.int32)  # + 0.0 turns -0 into 0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    index = torch.arange(0, -values.shape[1], -1, device=values.device)
    return torch.add(index, bits, alpha=2**32)


def _index_of(keys: Tensor) -> Tensor:
    return -keys & (2**32 - 1)


def are_finite(boxes: Tensor) -> Tensor:
    """Return (B, M) bool, which boxes (B, M, 4) have finite coordinates, by fewer kernels than `isfinite` takes."""
    return (boxes - boxes == 0).all(-1)


def padded(exists: Tensor, boxes: Tensor, labels: Tensor, scores: Tensor, max_detections: int) -> Detections:
    """Take the first `max_detections` of each image; those that do not exist are 0, with label -1."""
    count = min(max_detections, scores.shape[1])
    exists, boxes, labels, scores = (t[:, :count] for t in (exists, boxes, labels, scores))
    missing = max_detections - count
    boxes, labels, scores = boxes.where(exists[..., None], 0), labels.where(exists, -1), scores.where(exists, 0)
    if missing:
        boxes, scores = F.pad(boxes, (0, 0, 0, missing)), F.pad(scores, (0, missing))
        labels = F.pad(labels, (0, missing), value=-1)
    return Detections(boxes, labels, scores)


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
