"""Operations on boxes that several parts of the package share."""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype


def in_order(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Sort boxes (B, N, 4) by descending score; ties go to the lower index, and a NaN counts as the lowest score.

    Returns:
        (B, N) int64 order; (B, N, 4) boxes, float32 or float64; (B, N) labels; (B, N) bool, whether a box is valid.
    """
    wide = accumulate_dtype(boxes)
    score = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    order = score.sort(dim=1, descending=True, stable=True).indices
    box = boxes.to(wide).gather(1, order[..., None].expand(-1, -1, 4))
    alive = torch.ones_like(order, dtype=torch.bool) if valid is None else valid.gather(1, order)
    return order, box, None if labels is None else labels.gather(1, order), alive


def to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert boxes (..., 4) from xyxy to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def to_xyxy(boxes: Tensor) -> Tensor:
    """Convert boxes (..., 4) from centre and size to xyxy."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], -1)


def boxes_at_points(raw: Tensor, points: Tensor) -> Tensor:
    """Decode YOLOX's raw numbers.

    Args:
        raw: (B, A, 4 or more): x and y of the centre in cells from the cell's corner, logarithms of width and height
            in cells.
        points: (A, 3): x and y of the cell's centre, and its stride, in pixels.

    Returns:
        (B, A, 4) boxes, cxcywh in pixels.
    """
    stride = points[:, 2:]
    center = raw[..., :2] * stride + (points[:, :2] - stride / 2)
    return torch.cat([center, raw[..., 2:4].exp() * stride], -1)


def corners_at_points(raw: Tensor, points: Tensor) -> Tensor:
    """Return `boxes_at_points` as xyxy."""
    half_stride = points[:, 2:] / 2
    center = raw[..., :2] * points[:, 2:] + (points[:, :2] - half_stride)
    half = raw[..., 2:4].exp() * half_stride
    return torch.cat([center - half, center + half], -1)


def overlap_of_first(boxes: Tensor, others: Tensor) -> Tensor:
    """Return (..., N, M), the fraction of each box's area that lies in each other box; 0 for a box without area.

    Args:
        boxes: (..., N, 4) xyxy.
        others: (..., M, 4) xyxy.
    """
    low = torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    high = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)[..., None]
    return ((high - low).clamp(min=0).prod(-1) / area).where(area > 0, 0)


def iou_of_pairs(boxes: Tensor, others: Tensor) -> Tensor:
    """Return (...) the IoU of boxes (..., 4) xyxy and others, pair by pair; 0 where it is not a number."""
    sides = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    inter = sides.clamp(min=0).prod(-1)
    area, other_area = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (boxes, others))
    return (inter / (area + other_area - inter)).nan_to_num(0.0, 0.0, 0.0)
