"""YOLOX's raw maps to boxes: fixed shapes, whole batches, no host synchronisation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detops.decode.detections import Detections, padded, suppress, top
from detops.geometry.boxes import boxes_at_cells, to_xyxy
from detops.geometry.levels import require_levels
from detops.geometry.points import grid_cells


def decode_yolox(
    model_output: Sequence[Tensor] | tuple[object, Sequence[Tensor]],
    strides: Sequence[int] = (8, 16, 32),
    score_threshold: float = 0.01,
    iou_threshold: float = 0.65,
    max_detections: int = 100,
    candidates: int = 1000,
) -> Detections:
    """Decode YOLOX's maps: each cell's best class, non-maximum suppression within classes, the best of an image.

    The score is sigmoid(objectness) * sigmoid(class). Ties go to the lower index: level, row, column, and class. A cell
    with a score or box that is not finite is no detection.

    Args:
        model_output: Each level's raw map (B, 1, H, W, 5 + C), or a tuple whose second item is that list.
        strides: Pixels a cell of each level.
        score_threshold: Lowest score of a detection.
        iou_threshold: IoU above which the worse of two boxes of a class is dropped.
        max_detections: How many detections an image; where there are fewer, the rest has score 0 and label -1.
        candidates: How many cells of an image, the best by score, suppression considers.

    Returns:
        The detections; boxes are not clipped to the image.

    Raises:
        TypeError: The output is no list of floating-point tensors.
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
    outputs = require_levels(model_output, strides)
    if min(strides) < 1:
        raise ValueError(f"strides: expected at least 1 pixel each, got {strides!r}")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold: expected 0 .. 1, got {score_threshold!r}")
    for name, value in (("max_detections", max_detections), ("candidates", candidates)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value!r}")
    rows = torch.cat([output.detach().flatten(1, 3).to(torch.float32) for output in outputs], 1)  # (B, A, 5 + C)
    cells = grid_cells([(output.shape[2], output.shape[3]) for output in outputs], strides, rows.device)
    scores, labels = (rows[..., 5:].sigmoid() * rows[..., 4:5].sigmoid()).max(2)
    boxes = to_xyxy(boxes_at_cells(rows, cells))
    exists = (scores >= score_threshold) & boxes.isfinite().all(-1)  # false for a NaN
    scores, chosen = top(scores.where(exists, -torch.inf), min(candidates, rows.shape[1]))
    boxes = boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
    exists = scores > -torch.inf
    boxes = boxes.where(exists[..., None], 0)
    return padded(*suppress(boxes, scores, labels.gather(1, chosen), exists, iou_threshold), max_detections)
