"""GFL's maps to boxes: fixed shapes, whole batches, no host synchronisation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detops.decode.detections import Detections, padded, suppress, top
from detops.geometry.distances import distances_to_boxes, distribution_to_distances
from detops.geometry.levels import image_sides, require_maps
from detops.geometry.points import grid_anchors


def decode_gfl(
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    strides: Sequence[int] = (8, 16, 32, 64, 128),
    image_shapes: Tensor | Sequence[tuple[int, int]] | None = None,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.6,
    max_detections: int = 100,
    candidates: int = 1000,
) -> Detections:
    """Decode GFL's maps: each level's best scores, the means of their distributions, suppression within classes.

    A cell may be a detection of several classes. Ties go to the lower index: level, then row, column and class. A score
    or box that is not finite is no detection.

    Args:
        cls_scores: Each level's (B, C, H, W) logits.
        bbox_preds: Each level's (B, 4 * (reg_max + 1), H, W) logits: left, top, right, bottom.
        strides: Pixels a cell of each level.
        image_shapes: Height and width that each image's boxes are clipped to, (B, 2) or a list; None for no clipping.
        score_threshold: Lowest score of a detection.
        iou_threshold: IoU above which the worse of two boxes of a class is dropped.
        max_detections: How many detections an image; where there are fewer, the rest has score 0 and label -1.
        candidates: How many scores of each level, the best, suppression considers.

    Returns:
        The detections.

    Raises:
        TypeError: The maps are no lists of floating-point tensors.
        ValueError: Shapes or devices do not match, or a number is out of range.

    Example:
        >>> scores, sides = torch.full((1, 2, 2, 2), -9.0), torch.zeros(1, 4 * 3, 2, 2)
        >>> scores[0, 1, 1, 0] = 3.0
        >>> found = decode_gfl([scores], [sides], strides=[8], max_detections=1)
        >>> found.boxes, found.labels
        (tensor([[[-8.,  0.,  8., 16.]]]), tensor([[1]]))

    Reference:
        Li et al., "Generalized Focal Loss", 2020; the order of steps is that of MMDetection's `GFLHead`.
    """
    require_maps("cls_scores", cls_scores, None, len(strides))
    require_maps("cls_scores", cls_scores, cls_scores[0].shape[1], len(strides))
    require_maps("bbox_preds", bbox_preds, None, len(strides), cls_scores)
    sides = bbox_preds[0].shape[1]
    if sides < 8 or sides % 4:
        raise ValueError(f"bbox_preds: expected 4 * (reg_max + 1) channels, got {sides}")
    require_maps("bbox_preds", bbox_preds, sides, len(strides), cls_scores)
    for name, value in (("max_detections", max_detections), ("candidates", candidates)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value!r}")
    if not all(isinstance(stride, int) and stride >= 1 for stride in strides):
        raise ValueError(f"strides: expected whole numbers of pixels, the same along x and y, got {strides!r}")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold: expected 0 .. 1, got {score_threshold!r}")
    levels = [
        _level(scores.detach(), preds.detach(), stride, score_threshold, candidates)
        for scores, preds, stride in zip(cls_scores, bbox_preds, strides, strict=True)
    ]
    scores, boxes, labels = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
    boxes, exists = _clipped(boxes, image_shapes), scores > -torch.inf
    # Best first, so that what suppression leaves is in order.
    scores, order = top(scores, scores.shape[1])
    boxes, labels, exists = (
        boxes.gather(1, order[..., None].expand(-1, -1, 4)), labels.gather(1, order), exists.gather(1, order)
    )  # fmt: skip
    return padded(*suppress(boxes, scores, labels, exists, iou_threshold), max_detections)


def _level(
    scores: Tensor, preds: Tensor, stride: int, score_threshold: float, candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (B, K), boxes (B, K, 4) and labels (B, K) of a level; the score of what is none is minus infinity."""
    classes, height, width = scores.shape[1:]
    probability = scores.permute(0, 2, 3, 1).flatten(1).to(torch.float32).sigmoid()  # by cell, then class
    probability = probability.where(probability >= score_threshold, -torch.inf)  # false for a NaN
    best, chosen = top(probability, min(candidates, probability.shape[1]))
    cell, label = chosen // classes, chosen % classes
    sides = preds.flatten(2).gather(2, cell[:, None].expand(-1, preds.shape[1], -1)).transpose(1, 2)
    distances = distribution_to_distances(sides.to(torch.float32), preds.shape[1] // 4 - 1) * stride
    anchor = grid_anchors([(height, width)], [stride], device=scores.device)[cell]
    boxes = distances_to_boxes((anchor[..., :2] + anchor[..., 2:]) / 2, distances)
    finite = boxes.isfinite().all(-1)
    return best.where(finite, -torch.inf), boxes.where(finite[..., None], 0), label


def _clipped(boxes: Tensor, image_shapes: Tensor | Sequence[tuple[int, int]] | None) -> Tensor:
    if image_shapes is None:
        return boxes
    sides = image_sides(image_shapes, len(boxes), boxes.device).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), sides.flip(1).repeat(1, 2)[:, None])
