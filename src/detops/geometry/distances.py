"""Boxes as distances from a point to their sides, which GFL regresses."""

from typing import cast

import torch
from torch import Tensor

from detops.arguments import FLOATS, accumulate_dtype, require_device, require_tensor
from detops.geometry.levels import ImageSizes, Size, image_sizes_tensor


def boxes_to_distances(points: Tensor, boxes: Tensor, max_distance: float | None = None, eps: float = 0.1) -> Tensor:
    """Return how far the left, top, right and bottom side of a box are from a point.

    Args:
        points: (..., 2) x and y, floating point.
        boxes: (..., 4) xyxy, in the same units; the leading dimensions broadcast.
        max_distance: If given, distances are clamped to 0 .. max_distance - eps, so that they lie below the last bin
            of a distribution up to max_distance.
        eps: Distance that `max_distance` is lowered by.

    Returns:
        (..., 4) distances.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape or device does not match.

    Example:
        >>> boxes_to_distances(torch.tensor([5.0, 5.0]), torch.tensor([0.0, -20, 7, 30]), max_distance=16)
        tensor([ 5.0000, 15.9000,  2.0000, 15.9000])

    Reference:
        MMDetection's `bbox2distance`.
    """
    _check(points, "boxes", boxes)
    distances = torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)
    return distances if max_distance is None else distances.clamp(0, max_distance - eps)


def distances_to_boxes(points: Tensor, distances: Tensor, max_shape: Size | ImageSizes | None = None) -> Tensor:
    """Return the boxes with these sides; the inverse of `boxes_to_distances`.

    Args:
        points: (..., 2) x and y, floating point.
        distances: (..., 4) left, top, right, bottom, in the same units; the leading dimensions broadcast.
        max_shape: If given, height and width that boxes are clipped to: one pair, or one per image (B, 2), where images
            are the first dimension of the boxes.

    Returns:
        (..., 4) boxes, xyxy.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape or device does not match.

    Example:
        >>> distances_to_boxes(torch.tensor([5.0, 5.0]), torch.tensor([5.0, 2, 2, 9]), max_shape=(10, 20))
        tensor([ 0.,  3.,  7., 10.])

    Reference:
        MMDetection's `distance2bbox`.
    """
    _check(points, "distances", distances)
    low, high = points - distances[..., :2], points + distances[..., 2:]
    if max_shape is not None:
        if isinstance(max_shape, Tensor) or not isinstance(max_shape[0], int | float):
            sizes = image_sizes_tensor(cast(ImageSizes, max_shape), len(low), low.device).to(low.dtype)
            limit = sizes.flip(1).view(-1, *(1,) * (low.dim() - 2), 2)
            low, high = (torch.minimum(corner.clamp(min=0), limit) for corner in (low, high))
        else:
            height, width = cast(Size, max_shape)
            low, high = (
                torch.stack([corner[..., 0].clamp(0, width), corner[..., 1].clamp(0, height)], -1)
                for corner in (low, high)
            )
    return torch.cat([low, high], -1)


def distribution_to_distances(logits: Tensor, reg_max: int = 16) -> Tensor:
    """Return the mean of each side's distribution over the distances 0, 1, .. `reg_max`.

    Args:
        logits: (..., 4 * (reg_max + 1)), the bins of the left, top, right and bottom side.
        reg_max: Largest distance.

    Returns:
        (..., 4) distances; float32, or float64 for float64.

    Raises:
        TypeError: `logits` is not a floating-point tensor.
        ValueError: The last dimension has another size.

    Example:
        >>> distribution_to_distances(torch.zeros(1, 68))
        tensor([[8., 8., 8., 8.]])

    Reference:
        Li et al., "Generalized Focal Loss", 2020, equation 4.
    """
    require_tensor("logits", logits, FLOATS, "a floating-point tensor")
    if reg_max < 1:
        raise ValueError(f"reg_max: expected at least 1, got {reg_max!r}")
    if logits.dim() < 1 or logits.shape[-1] != 4 * (reg_max + 1):
        raise ValueError(f"logits: expected shape (..., {4 * (reg_max + 1)}), got {tuple(logits.shape)}")
    x = logits.to(accumulate_dtype(logits))
    bins = torch.arange(reg_max + 1, dtype=x.dtype, device=x.device)
    sides: Tensor = x.unflatten(-1, (4, reg_max + 1)).softmax(-1)
    return (sides * bins).sum(-1)


def _check(points: Tensor, name: str, value: Tensor) -> None:
    require_tensor("points", points, FLOATS, "a floating-point tensor")
    require_tensor(name, value, FLOATS, "a floating-point tensor")
    for what, tensor, last in (("points", points, 2), (name, value, 4)):
        if tensor.dim() < 1 or tensor.shape[-1] != last:
            raise ValueError(f"{what}: expected shape (..., {last}), got {tuple(tensor.shape)}")
    ours, theirs = points.shape[:-1][::-1], value.shape[:-1][::-1]
    if any(a != b and a != 1 and b != 1 for a, b in zip(ours, theirs, strict=False)):
        raise ValueError(
            f"{name}: expected a shape that broadcasts to points {tuple(points.shape)}, got {tuple(value.shape)}"
        )
    require_device(name, value, points, "points")
