"""Non-maximum suppression: torchvision's two functions, and a batched form of fixed shape."""

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor


def nms_mask(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    labels: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Say which boxes greedy non-maximum suppression keeps, for a whole batch and without host synchronisation.

    Boxes are visited by descending score, ties by the lower index, a NaN as the lowest; a box is dropped if its
    IoU with a kept one of its label is above the threshold. Empty boxes and boxes with a NaN suppress nothing.

    Args:
        boxes: (B, N, 4) or (N, 4), xyxy, floating point; computed in float32, or float64 for float64.
        scores: (B, N) or (N,).
        iou_threshold: IoU above which the lower box is dropped.
        labels: Likewise integers; boxes of different labels do not meet. None where all are of one.
        valid: Likewise bool; others are neither kept nor suppress. None for all.

    Returns:
        (B, N) or (N,) bool, in the order of the boxes.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or the threshold is NaN.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        >>> nms_mask(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5)
        tensor([False,  True,  True])
    """
    require_tensor("boxes", boxes, FLOATS, "a floating-point tensor")
    if boxes.dim() not in (2, 3) or boxes.shape[-1] != 4:
        raise ValueError(f"boxes: expected shape (B, N, 4) or (N, 4), got {tuple(boxes.shape)}")
    for name, value, dtypes, form in (
        ("scores", scores, FLOATS, "a floating-point tensor"),
        ("labels", labels, INTEGERS, "integers"),
        ("valid", valid, (torch.bool,), "a bool tensor"),
    ):
        if value is not None:
            require_tensor(name, value, dtypes, form)
            require_shape(name, value, tuple(boxes.shape[:-1]), "to match boxes")
            require_device(name, value, boxes, "boxes")
    if iou_threshold != iou_threshold:
        raise ValueError("iou_threshold: expected a number, got nan")
    is_batch = boxes.dim() == 3
    if not is_batch:
        boxes, scores = boxes[None], scores[None]
        labels, valid = (None if value is None else value[None] for value in (labels, valid))
    keep = ops.nms_mask(
        boxes=boxes.detach(), scores=scores.detach(), labels=labels, valid=valid, iou_threshold=float(iou_threshold)
    )
    return keep if is_batch else keep[0]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression, with the signature and the result of torchvision's `nms`.

    How many boxes are kept depends on their values, so the result's shape is read back: one host synchronisation.
    `nms_mask` has none.

    Args:
        boxes: (N, 4), xyxy.
        scores: (N,).
        iou_threshold: IoU above which the lower box is dropped.

    Returns:
        int64 indices of the kept boxes, by descending score.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match.
    """
    return _kept(boxes, scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` among the boxes of each label alone, with the signature and the result of torchvision's `batched_nms`.

    Labels are compared, where torchvision may shift boxes apart instead, which rounds their coordinates.

    Args:
        boxes: (N, 4), xyxy.
        scores: (N,).
        idxs: (N,) integers, the label of each box.
        iou_threshold: IoU above which the lower box is dropped.

    Returns:
        int64 indices of the kept boxes of all labels, by descending score.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match.
    """
    return _kept(boxes, scores, idxs, iou_threshold)


def _kept(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float) -> Tensor:
    if boxes.dim() != 2:
        raise ValueError(f"boxes: expected shape (N, 4), got {tuple(boxes.shape)}")
    keep = nms_mask(boxes, scores, iou_threshold, labels=labels)
    order = scores.where(~scores.isnan(), -torch.inf).sort(descending=True, stable=True).indices
    return order[keep[order]]
