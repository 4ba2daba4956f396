"""What `InstanceMasks` is made of: checks, fields by name, and the mask of the predicted class."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.diagnostics.checked import is_checked

LEAST_THRESHOLD = torch.finfo(torch.float32).smallest_normal  # what is less may be 0 in float32


def of_class(masks: Tensor, labels: Tensor, empty: float) -> Tensor:
    """Of each instance's masks (N, C, h, w), that of its label; the only one where C is 1.

    Args:
        masks: Of all classes.
        labels: (N,).
        empty: Value of the mask where the label is no class.

    Returns:
        (N, h, w).
    """
    require_tensor("masks", masks, FLOATS, "a floating-point tensor")
    require_tensor("labels", labels, INTEGERS, "integers")
    if masks.dim() != 4 or not masks.shape[1]:
        raise ValueError(f"masks: expected shape (N, C, h, w) with C at least 1, got {tuple(masks.shape)}")
    require_shape("labels", labels, (len(masks),), "to match masks")
    require_device("labels", labels, masks, "masks")
    classes = masks.shape[1]
    if classes == 1:
        return masks[:, 0]
    known = (labels >= 0) & (labels < classes)
    if is_checked() and not known.all():
        n = int(known.logical_not().nonzero()[0, 0])
        raise ValueError(f"labels: instance {n} has {int(labels[n])}, expected a value in 0 .. {classes - 1}")
    own = masks[torch.arange(len(masks), device=masks.device), labels.to(torch.int64).clamp(0, classes - 1)]
    return own.where(known[:, None, None], empty)


def fields_of(source: Any, names: tuple[str, ...], argument: str) -> list[Any]:
    """Values of a mapping or an object by name."""
    found = []
    for name in names:
        value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
        if value is None:
            raise ValueError(f"{argument}: expected {', '.join(names)}, found no {name}")
        found.append(value)
    return found


def height_and_width(image_size: Any) -> tuple[int, int]:
    """Two integers, whatever kind they come in."""
    expected = "image_size: expected a height and a width of at least 1, below 2^31 pixels"
    try:
        height, width = map(operator.index, image_size)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{expected}, got {image_size!r}") from None
    if min(height, width) < 1 or height * width >= 2**31:
        raise ValueError(f"{expected}, got {image_size!r}")
    return height, width


def check_cut(threshold: Any, mode: Any) -> None:
    """Check how masks are to be made; see `InstanceMasks`."""
    try:
        above = float(threshold) >= LEAST_THRESHOLD
    except (TypeError, ValueError) as error:
        raise type(error)(f"threshold: expected a number above 0, got {threshold!r}") from None
    if not above:
        raise ValueError(f"threshold: expected a number above 0, got {threshold!r}")
    if mode not in ("detectron2", "torchvision"):
        raise ValueError(f'mode: expected "detectron2" or "torchvision", got {mode!r}')


def check_names(labels: Sequence[int], names: Sequence[Any] | Mapping[int, Any], kind: str) -> None:
    """Check that each label has its entry among names, or ids, of categories.

    Raises:
        ValueError: One has none.
    """
    for label in labels:
        if isinstance(names, Mapping):
            if label not in names:
                raise ValueError(f"labels: expected one that has a {kind}, got {label}")
        elif not 0 <= label < len(names):
            raise ValueError(f"labels: expected 0 .. {len(names) - 1}, one a {kind}, got {label}")


def check(boxes: Tensor, labels: Tensor, scores: Tensor, masks: Tensor) -> None:
    """Check what makes `InstanceMasks`; see there."""
    require_tensor("boxes", boxes, FLOATS, "a floating-point tensor")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: expected shape (N, 4), got {tuple(boxes.shape)}")
    require_tensor("labels", labels, INTEGERS, "integers")
    require_tensor("scores", scores, FLOATS, "a floating-point tensor")
    require_tensor("masks", masks, FLOATS, "a floating-point tensor")
    for name, value in (("labels", labels), ("scores", scores)):
        require_shape(name, value, (len(boxes),), "to match boxes")
    if masks.dim() != 3 or len(masks) != len(boxes) or 0 in masks.shape[1:]:
        raise ValueError(f"masks: expected shape ({len(boxes)}, h, w), none of h, w 0, got {tuple(masks.shape)}")
    for name, value in (("labels", labels), ("scores", scores), ("masks", masks)):
        require_device(name, value, boxes, "boxes")
    if is_checked() and not boxes.isfinite().all():
        n = int(boxes.isfinite().all(1).logical_not().nonzero()[0, 0])
        raise ValueError(f"boxes: instance {n} has {boxes[n].tolist()}, expected finite numbers")
