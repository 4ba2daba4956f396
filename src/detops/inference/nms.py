"""Non-maximum suppression: torchvision's two functions, and a batched form of fixed shape.

All forms of the op compute the IoU in float32 (float64 for float64 boxes) and round the threshold to the same dtype, so
that every device keeps the same boxes.
"""

import math
from typing import Any

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
    """Mark the boxes that greedy non-maximum suppression keeps, for a whole batch and without host synchronisation.

    Boxes are visited by descending score, ties by the lower index, a NaN as the lowest score. A box is dropped if its
    IoU with a kept box of the same label is above the threshold. Boxes without area and boxes with a NaN suppress
    nothing.

    Args:
        boxes: (B, N, 4) or (N, 4), xyxy, floating point; computed in float32, or float64 for float64.
        scores: (B, N) or (N,).
        iou_threshold: IoU above which the box of the lower score is dropped; rounded to the dtype of the IoU.
        labels: (B, N) or (N,) integers; only boxes of the same label suppress each other. None for one label.
        valid: (B, N) or (N,) bool; other boxes are not kept and suppress nothing. None for all.

    Returns:
        (B, N) or (N,) bool, in the order of the boxes.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or the threshold is NaN.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
        >>> nms_mask(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5)
        tensor([False,  True,  True])

    Reference:
        torchvision's `nms`, as its CUDA kernel computes it.
    """
    return _mask(boxes, scores, iou_threshold, labels, valid, "labels")


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Suppress boxes that overlap one of a higher score, with the signature and the result of torchvision's `nms`.

    The number of kept boxes depends on their values, so the host waits for it once. `nms_mask` does not wait.

    torchvision has two rules for an IoU that equals the threshold up to rounding. Its CUDA kernel compares both in
    float32, and so does this function on every device. Its CPU kernel compares the float32 IoU with the threshold in
    double precision: of [0, 0, 10, 10] and [0, 0, 2, 10] at a threshold of 0.2 it keeps one, because 0.2 in float32 is
    above 0.2; here and on CUDA both are kept, because an IoU of 0.2 is not above 0.2. (For float64 boxes both sides are
    float64 here, while torchvision's CUDA kernel rounds the threshold to float32.)

    Args:
        boxes: (N, 4), xyxy, floating point; computed in float32, or float64 for float64.
        scores: (N,).
        iou_threshold: IoU above which the box of the lower score is dropped.

    Returns:
        int64 indices of the kept boxes, by descending score, ties by the lower index.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or the threshold is NaN.

    Example:
        >>> nms(torch.tensor([[0.0, 0, 10, 10], [0, 0, 2, 10]]), torch.tensor([0.9, 0.8]), 0.2)
        tensor([0, 1])
    """
    return _kept(boxes, scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Apply `nms` within each label, with the signature and the result of torchvision's `batched_nms`.

    Labels are compared. torchvision may instead shift the boxes of different labels apart, which rounds their
    coordinates.

    Args:
        boxes: (N, 4), xyxy, floating point; computed in float32, or float64 for float64.
        scores: (N,).
        idxs: (N,) integers, the label of each box.
        iou_threshold: IoU above which the box of the lower score is dropped.

    Returns:
        int64 indices of the kept boxes of all labels, by descending score, ties by the lower index.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or the threshold is NaN.
    """
    return _kept(boxes, scores, idxs, iou_threshold)


def _kept(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    require_tensor("boxes", boxes, FLOATS, "a floating-point tensor")
    if boxes.dim() != 2:
        raise ValueError(f"boxes: expected shape (N, 4), got {tuple(boxes.shape)}")
    keep = _mask(boxes, scores, iou_threshold, idxs, None, "idxs")
    order = scores.where(~scores.isnan(), -torch.inf).sort(descending=True, stable=True).indices
    return order[keep[order]]


def _mask(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    labels: Tensor | None,
    valid: Tensor | None,
    labels_name: str,
) -> Tensor:
    """Check the arguments and call the op; `labels_name` is the name of the caller's argument."""
    require_tensor("boxes", boxes, FLOATS, "a floating-point tensor")
    if boxes.dim() not in (2, 3) or boxes.shape[-1] != 4:
        raise ValueError(f"boxes: expected shape (B, N, 4) or (N, 4), got {tuple(boxes.shape)}")
    for name, value, dtypes, form in (
        ("scores", scores, FLOATS, "a floating-point tensor"),
        (labels_name, labels, INTEGERS, "integers"),
        ("valid", valid, (torch.bool,), "a bool tensor"),
    ):
        if value is not None or name == "scores":
            value = require_tensor(name, value, dtypes, form)
            require_shape(name, value, tuple(boxes.shape[:-1]), "to match boxes")
            require_device(name, value, boxes, "boxes")
    threshold = _number("iou_threshold", iou_threshold)
    is_batch = boxes.dim() == 3
    if not is_batch:
        boxes, scores = boxes[None], scores[None]
        labels, valid = (None if value is None else value[None] for value in (labels, valid))
    keep = ops.nms_mask(
        boxes=boxes.detach(), scores=scores.detach(), labels=labels, valid=valid, iou_threshold=threshold
    )
    return keep if is_batch else keep[0]


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None
    if math.isnan(number):
        raise ValueError(f"{name}: expected a number, got nan")
    return number
