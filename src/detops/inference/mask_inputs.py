"""What `InstanceMasks` is made of: checks, fields by name, and the mask of the predicted class."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detops.checks import FLOATS, INTEGERS, is_checked, require_device, require_shape, require_tensor


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


def check(boxes: Tensor, labels: Tensor, scores: Tensor, masks: Tensor, image_size: tuple[int, int]) -> None:
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
    if len(image_size) != 2 or min(image_size) < 1 or image_size[0] * image_size[1] >= 2**31:
        raise ValueError(
            f"image_size: expected a height and a width of at least 1, below 2^31 pixels, got {image_size!r}"
        )
    if is_checked() and not boxes.isfinite().all():
        n = int(boxes.isfinite().all(1).logical_not().nonzero()[0, 0])
        raise ValueError(f"boxes: instance {n} has {boxes[n].tolist()}, expected finite numbers")
