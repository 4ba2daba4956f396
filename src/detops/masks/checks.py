"""Checks of the arguments of `InstanceMasks`, and reading them: fields by name, the mask of the predicted class."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.diagnostics.checked import is_checked

LEAST_THRESHOLD = torch.finfo(torch.float32).smallest_normal  # anything smaller may be 0 in float32


def masks_of_labels(masks: Tensor, labels: Tensor, empty: float) -> Tensor:
    """Pick each instance's mask of its own label.

    Args:
        masks: (N, C, h, w) per class, or (N, 1, h, w) where all classes share one mask.
        labels: (N,) integers.
        empty: Value that fills a mask whose label is not a class.

    Returns:
        (N, h, w).

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match; in checked mode, a label is not a class.
    """
    require_tensor("masks", masks, FLOATS, "a floating-point tensor")
    require_tensor("labels", labels, INTEGERS, "integers")
    if masks.dim() != 4 or not masks.shape[1]:
        raise ValueError(f"masks: expected shape (N, C, h, w) with C at least 1, got {tuple(masks.shape)}")
    require_shape("labels", labels, (masks.shape[0],), "to match masks")
    require_device("labels", labels, masks, "masks")
    classes = masks.shape[1]
    if classes == 1:
        return masks[:, 0]
    valid = (labels >= 0) & (labels < classes)
    if is_checked() and not valid.all():
        n = int(valid.logical_not().nonzero()[0, 0])
        raise ValueError(f"labels: instance {n} has {int(labels[n])}, expected a value in 0 .. {classes - 1}")
    own = masks[torch.arange(len(masks), device=masks.device), labels.to(torch.int64).clamp(0, classes - 1)]
    return own.where(valid[:, None, None], empty)


def fields_of(source: Any, names: tuple[str, ...], argument: str) -> list[Any]:
    """Return the values of some keys of a mapping, or of some attributes of an object.

    Raises:
        ValueError: One is missing; the message names it and the argument.
    """
    found = []
    for name in names:
        value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
        if value is None:
            raise ValueError(f"{argument}: expected {', '.join(names)}, found no {name}")
        found.append(value)
    return found


def height_and_width(image_size: Any) -> tuple[int, int]:
    """Return an image size as two Python integers.

    Raises:
        TypeError: It is not a pair of integers.
        ValueError: It has another length, or a side is out of range.
    """
    expected = "image_size: expected a height and a width of at least 1, below 2^31 pixels"
    try:
        height, width = map(operator.index, image_size)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{expected}, got {image_size!r}") from None
    if min(height, width) < 1 or height * width >= 2**31:
        raise ValueError(f"{expected}, got {image_size!r}")
    return height, width


def check_threshold(threshold: Any) -> None:
    """Check the probability at which a mask is cut.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not above 0.
    """
    try:
        above = float(threshold) >= LEAST_THRESHOLD
    except (TypeError, ValueError) as error:
        raise type(error)(f"threshold: expected a number above 0, got {threshold!r}") from None
    if not above:
        raise ValueError(f"threshold: expected a number above 0, got {threshold!r}")


def check_mode(mode: Any) -> None:
    """Check the rule by which masks are placed in their boxes.

    Raises:
        ValueError: It is not one of the two.
    """
    if mode not in ("detectron2", "torchvision"):
        raise ValueError(f'mode: expected "detectron2" or "torchvision", got {mode!r}')


def check_names(labels: Sequence[int], names: Sequence[Any] | Mapping[int, Any], kind: str) -> None:
    """Check that each label has an entry among the names, or the ids, of categories.

    Raises:
        ValueError: A label has none.
    """
    for label in labels:
        if isinstance(names, Mapping):
            if label not in names:
                raise ValueError(f"labels: expected one that has a {kind}, got {label}")
        elif not 0 <= label < len(names):
            raise ValueError(f"labels: expected 0 .. {len(names) - 1}, one per {kind}, got {label}")


def check_fields(boxes: Tensor, labels: Tensor, scores: Tensor, masks: Tensor) -> None:
    """Check the tensors of an `InstanceMasks`.

    Raises:
        TypeError: One has the wrong type or dtype.
        ValueError: Shapes or devices do not match; in checked mode, a box has a number that is not finite.
    """
    require_tensor("boxes", boxes, FLOATS, "a floating-point tensor")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: expected shape (N, 4), got {tuple(boxes.shape)}")
    require_tensor("labels", labels, INTEGERS, "integers")
    require_tensor("scores", scores, FLOATS, "a floating-point tensor")
    require_tensor("masks", masks, FLOATS, "a floating-point tensor")
    count = boxes.shape[0]
    for name, value in (("labels", labels), ("scores", scores)):
        require_shape(name, value, (count,), "to match boxes")
    if masks.dim() != 3 or masks.shape[0] != count or 0 in masks.shape[1:]:
        raise ValueError(f"masks: expected shape ({count}, h, w) with h and w at least 1, got {tuple(masks.shape)}")
    for name, value in (("labels", labels), ("scores", scores), ("masks", masks)):
        require_device(name, value, boxes, "boxes")
    if is_checked() and not boxes.isfinite().all():
        n = int(boxes.isfinite().all(1).logical_not().nonzero()[0, 0])
        raise ValueError(f"boxes: instance {n} has {boxes[n].tolist()}, expected finite numbers")
