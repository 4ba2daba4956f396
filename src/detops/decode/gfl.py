"""GFL's maps to boxes: fixed shapes, whole batches, no host synchronisation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detops import ops
from detops.arguments import renamed
from detops.decode.detections import Detections, require_options, select, top_classes
from detops.geometry.levels import ImageSizes, require_maps, require_strides
from detops.geometry.points import kept_points


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
    classes, points = cls_scores[0].shape[1], kept_points(cls_scores, strides, point_offset)
    # All sorted by score, so that the boxes that suppression leaves are too.
    scores, chosen = top_classes(cls_scores, score_threshold, candidates)
    preds = [level.detach() for level in bbox_preds]
    if any(level.dtype != preds[0].dtype for level in preds):
        preds = [level.to(torch.float32) for level in preds]
    boxes = ops.decode_distances(bbox_preds=preds, points=points)
    boxes = boxes.gather(1, (chosen // classes)[..., None].expand(-1, -1, 4))
    labels = chosen % classes
    return select(boxes, labels, scores, score_threshold, max_detections, iou_threshold, image_sizes)
