"""YOLOX's raw maps to boxes: fixed shapes, whole batches, no host synchronisation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detops import ops
from detops.decode.detections import Detections, require_options, select
from detops.geometry.levels import ImageSizes, require_strides, require_yolox_maps
from detops.geometry.ordering import top
from detops.geometry.points import kept_points
from detops.portable.decode_rows import decode_rows as portable


def decode_yolox(
    model_output: Sequence[Tensor] | tuple[object, Sequence[Tensor]],
    strides: Sequence[int] = (8, 16, 32),
    image_sizes: ImageSizes | None = None,
    *,
    score_threshold: float = 0.01,
    iou_threshold: float | None = 0.65,
    max_detections: int = 100,
    candidates: int = 1000,
) -> Detections:
    """Decode YOLOX's maps: each cell's best class, non-maximum suppression within classes, each image's best.

    The best class is that of the highest logit, also where scores round alike, and the score is
    sigmoid(objectness) * sigmoid(class). Ties go to the lower index: level, row, column, and class. A cell with a score
    or box that is not finite is not a detection.

    Args:
        model_output: Each level's raw map (B, 1, H, W, 5 + C), or a tuple whose second item is that list.
        strides: Pixels per cell of each level.
        image_sizes: Height and width that each image's boxes are clipped to, (B, 2) or a list; None for no clipping.
        score_threshold: Lowest score of a detection.
        iou_threshold: IoU above which the worse of two boxes of a class is dropped; None for no suppression.
        max_detections: Number of detections per image; if there are fewer, the rest has score 0 and label -1.
        candidates: Number of highest-scoring cells per image that suppression considers.

    Returns:
        The detections. A box without area, before or after clipping, is dropped.

    Raises:
        TypeError: The output is not a list of floating-point tensors.
        ValueError: Shapes or devices do not match, or a number is out of range.

    Example:
        >>> raw = torch.full((1, 1, 2, 2, 7), -9.0)
        >>> raw[0, 0, 1, 0] = torch.tensor([0.5, 0.5, 0, 0, 3, -2, 3])
        >>> found = decode_yolox([raw], strides=[8], max_detections=1)
        >>> found.boxes, found.labels
        (tensor([[[ 0.,  8.,  8., 16.]]]), tensor([[1]]))

    Reference:
        Ge et al., "YOLOX: Exceeding YOLO Series in 2021".
    """
    strides = require_strides(strides)
    outputs = require_yolox_maps(model_output, strides)
    require_options(max_detections, score_threshold, iou_threshold, candidates)
    points = kept_points([output[:, 0].permute(0, 3, 1, 2) for output in outputs], strides)
    op = portable if torch.compiler.is_exporting() else ops.decode_rows
    boxes, labels, logits, objectness = op(outputs=[output.detach().flatten(1, 3) for output in outputs], points=points)
    # NaN, where a number is not finite, becomes lower than every score.
    scores = (logits.sigmoid() * objectness.sigmoid()).nan_to_num(-1)
    scores, chosen = top(scores, min(candidates, scores.shape[1]), signed=False)
    boxes, labels = boxes.gather(1, chosen[..., None].expand(-1, -1, 4)), labels.gather(1, chosen)
    return select(boxes, labels, scores, score_threshold, max_detections, iou_threshold, image_sizes)
