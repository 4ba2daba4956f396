"""GFL's maps to boxes: fixed shapes, whole batches, no host synchronisation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detops.arguments import renamed
from detops.decode.detections import Detections, require_options, select, top
from detops.geometry.distances import distances_to_boxes, distribution_to_distances
from detops.geometry.levels import ImageSizes, require_maps, require_strides
from detops.geometry.points import grid_points


@renamed(image_shapes="image_sizes")
def decode_gfl(
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    strides: Sequence[int] = (8, 16, 32, 64, 128),
    image_sizes: ImageSizes | None = None,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float | None = 0.6,
    max_detections: int = 100,
    candidates: int = 1000,
    point_offset: float = 0.0,
) -> Detections:
    """Decode GFL's maps: each level's best scores, the means of their distributions, suppression within classes.

    A cell may be a detection of several classes. Ties go to the lower index: level, then row, column and class. A score
    or box that is not finite is not a detection.

    Args:
        cls_scores: Each level's (B, C, H, W) logits.
        bbox_preds: Each level's (B, 4 * (reg_max + 1), H, W) logits: left, top, right, bottom. With 4 channels they
            are the distances themselves, in strides.
        strides: Pixels per cell of each level.
        image_sizes: Height and width that each image's boxes are clipped to, (B, 2) or a list; None for no clipping.
        score_threshold: Lowest score of a detection.
        iou_threshold: IoU above which the worse of two boxes of a class is dropped; None for no suppression.
        max_detections: Number of detections per image; if there are fewer, the rest has score 0 and label -1.
        candidates: Number of highest scores per level that suppression considers.
        point_offset: Where in its cell a point lies, as in `grid_points`: 0 for GFL and TOOD, 0.5 for PP-YOLOE,
            YOLO-NAS and YOLOv8 to v10. A head trained to predict each box once needs `iou_threshold=None`.

    Returns:
        The detections. A box without area, before or after clipping, is dropped.

    Raises:
        TypeError: The maps are not lists of floating-point tensors.
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
    require_maps("bbox_preds", bbox_preds, None, len(strides), cls_scores, "cls_scores")
    channels = bbox_preds[0].shape[1]
    if channels < 4 or channels % 4:
        raise ValueError(f"bbox_preds: expected 4 * (reg_max + 1) channels, got {channels}")
    require_maps("bbox_preds", bbox_preds, channels, len(strides), cls_scores, "cls_scores")
    strides = require_strides(strides)
    require_options(max_detections, score_threshold, iou_threshold, candidates)
    levels = [
        _level(scores.detach(), preds.detach(), stride, score_threshold, candidates, point_offset)
        for scores, preds, stride in zip(cls_scores, bbox_preds, strides, strict=True)
    ]
    scores, boxes, labels = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
    # Sorted by score, so that the boxes that suppression leaves are too.
    scores, order = top(scores, scores.shape[1])
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return select(
        boxes, labels.gather(1, order), scores, scores > -torch.inf, max_detections, iou_threshold, image_sizes
    )


def _level(
    scores: Tensor, preds: Tensor, stride: int, score_threshold: float, candidates: int, point_offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores (B, K), boxes (B, K, 4) and labels (B, K) of a level; a score of minus infinity marks none."""
    classes, height, width = scores.shape[1:]
    probability = scores.permute(0, 2, 3, 1).flatten(1).to(torch.float32).sigmoid()  # by cell, then class
    probability = probability.where(probability >= score_threshold, -torch.inf)  # false for a NaN
    best, chosen = top(probability, min(candidates, probability.shape[1]))
    cell, label = chosen // classes, chosen % classes
    sides = preds.flatten(2).gather(2, cell[:, None].expand(-1, preds.shape[1], -1)).transpose(1, 2)
    distances = sides.to(torch.float32)
    if preds.shape[1] > 4:
        distances = distribution_to_distances(distances, preds.shape[1] // 4 - 1)
    points = grid_points([(height, width)], [stride], scores.device, offset=point_offset)[cell]
    boxes = distances_to_boxes(points[..., :2], distances * stride)
    finite = boxes.isfinite().all(-1)
    return best.where(finite, -torch.inf), boxes.where(finite[..., None], 0), label
