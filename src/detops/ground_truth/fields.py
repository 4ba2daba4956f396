"""The fields of one image's annotations, whatever they come as: boxes, labels, crowd flags and masks as tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detops.arguments import INTEGERS, accumulate_dtype, require_tensor
from detops.geometry.boxes import to_xyxy
from detops.ragged import RaggedBatch


def scaled(cxcywh: Tensor, sizes: Tensor) -> Tensor:
    """Convert boxes (..., 4) from fractions to pixels; `sizes` (..., 2) are the images' heights and widths."""
    boxes = cxcywh.to(accumulate_dtype(cxcywh))
    return boxes * torch.cat([sizes.flip(-1)] * 2, -1).to(boxes.dtype)


def require_keys(target: Any, keys: tuple[str, ...], where: str) -> None:
    """Require a dict with some keys; `where` begins the message."""
    if not isinstance(target, Mapping):
        raise TypeError(f"{where}: expected a dict, got {type(target).__name__}")
    for key in keys:
        if key not in target:
            have = ", ".join(str(name) for name in target) or "nothing"
            hint = "; for Transformers' labels, GroundTruth.from_transformers" if "class_labels" in target else ""
            raise ValueError(f'{where}: expected the key "{key}", got {have}{hint}')


def as_tensor(value: Any, where: str) -> Tensor:
    """Return a tensor of a tensor, an array or a list of numbers."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{where}: expected a tensor, an array or a list of numbers, got {type(value).__name__}"
        ) from error


def as_boxes(value: Any, where: str) -> Tensor:
    """Return boxes (n, 4) of floating-point numbers."""
    boxes = as_tensor(value, where)
    if not boxes.is_floating_point() or not isinstance(value, Tensor):
        boxes = boxes.to(torch.float32)
    boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: expected shape (n, 4), got {tuple(boxes.shape)}")
    return boxes


def plain_xyxy(value: Any, where: str) -> tuple[Tensor, tuple[int, int] | None]:
    """Return boxes (n, 4) xyxy as a plain tensor, and the size of the image if `BoundingBoxes` have it."""
    form, canvas = getattr(value, "format", None), getattr(value, "canvas_size", None)
    name = getattr(form, "name", form)
    if name not in (None, "XYXY", "XYWH", "CXCYWH"):
        raise ValueError(f"{where}: expected BoundingBoxes of format XYXY, XYWH or CXCYWH, got {name}")
    boxes = as_boxes(value.as_subclass(Tensor) if isinstance(value, Tensor) else value, where)
    if name == "XYWH":
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    return to_xyxy(boxes) if name == "CXCYWH" else boxes, canvas


def as_labels(value: Any, first_label: int, where: str) -> Tensor:
    """Return labels (n,), from 0 where the first class is `first_label`."""
    labels = as_tensor(value, where)
    if labels.numel() == 0:
        labels = labels.to(torch.int64).reshape(0)
    require_tensor(where, labels, INTEGERS, "integers")
    return labels.to(torch.int64) - first_label if first_label else labels


def crowds(target: Mapping[str, Any]) -> Tensor | None:
    """Return (n,) bool, which boxes are crowds; None without such flags."""
    if target.get("iscrowd") is None:
        return None
    return torch.as_tensor(target["iscrowd"]).reshape(-1) != 0


def padded_masks(masks: Sequence[Any]) -> Tensor:
    """Return the masks of a batch, (B, N, H, W); images without masks take the size of the others."""
    tensors = [torch.as_tensor(mask).as_subclass(Tensor) for mask in masks]
    sizes = {tuple(mask.shape[1:]) for mask in tensors if mask.numel()}
    if len(sizes) > 1:
        raise ValueError(f"masks: expected one height and width in the batch, got {sorted(sizes)}")
    height, width = next(iter(sizes), (0, 0))
    return RaggedBatch.from_list([m if m.numel() else m.new_zeros(0, height, width) for m in tensors]).tensor
