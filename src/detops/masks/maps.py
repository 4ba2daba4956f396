"""Maps of a whole image, one per instance: checked, or made of coefficients and prototypes."""

from typing import Any

import torch
from torch import Tensor

from detops.arguments import FLOATS, require_device, require_shape, require_tensor
from detops.diagnostics.checked import is_checked
from detops.masks.resize import Resize, Size


def checked_maps(name: str, maps: Any) -> Tensor:
    """Check maps (N, h, w).

    Raises:
        TypeError: They are not a floating-point tensor.
        ValueError: They have another shape; in checked mode, one has a value that is not finite.
    """
    given = require_tensor(name, maps, FLOATS, "a floating-point tensor")
    if maps.dim() != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"{name}: expected shape (N, h, w) with h and w at least 1, got {tuple(maps.shape)}")
    _require_finite(name, maps)
    return given.detach()


def masks_from_prototypes(
    coefficients: Any, prototypes: Any, boxes: Any, crop: Any, activation: Any, padding: Any
) -> Tensor:
    """Multiply coefficients and prototypes, in float32, and take their sigmoid where that is asked for.

    Returns:
        (N, h, w) float32.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a choice is unknown; in checked mode, a number is not finite.
    """
    require_tensor("coefficients", coefficients, FLOATS, "a floating-point tensor")
    require_tensor("prototypes", prototypes, FLOATS, "a floating-point tensor")
    require_tensor("boxes", boxes, FLOATS, "a floating-point tensor")
    if coefficients.dim() != 2:
        raise ValueError(f"coefficients: expected shape (N, K), got {tuple(coefficients.shape)}")
    if prototypes.dim() != 3 or 0 in prototypes.shape[1:] or prototypes.shape[0] != coefficients.shape[1]:
        expected = f"({coefficients.shape[1]}, h, w) with h and w at least 1, to match coefficients"
        raise ValueError(f"prototypes: expected shape {expected}, got {tuple(prototypes.shape)}")
    require_shape("boxes", boxes, (len(coefficients), 4), "to match coefficients")
    require_device("prototypes", prototypes, coefficients, "coefficients")
    require_device("boxes", boxes, coefficients, "coefficients")
    if crop not in ("image", "prototypes", None):
        raise ValueError(f'crop: expected "image", "prototypes" or None, got {crop!r}')
    if activation not in ("sigmoid", None):
        raise ValueError(f'activation: expected "sigmoid" or None, got {activation!r}')
    if not isinstance(padding, int) or padding < 0 or (padding and crop != "prototypes"):
        raise ValueError(f'padding: expected 0, or with crop="prototypes" a number of cells, got {padding!r}')
    _require_finite("coefficients", coefficients)
    _require_finite("prototypes", prototypes)
    with torch.autocast(coefficients.device.type, enabled=False):
        maps: Tensor = coefficients.detach().float() @ prototypes.detach().float().flatten(1)
    return (maps if activation is None else maps.sigmoid_()).view(-1, *prototypes.shape[1:])


def grid_crop(maps: Tensor, boxes: Tensor, resize: Resize, image_size: Size, padding: int) -> None:
    """Set the cells outside boxes to 0, in place.

    A box (x1, y1, x2, y2) in cells keeps column c where x1 <= c < x2, and rows likewise, counted from where the image
    begins on the map. With padding, x1 moves by as many cells to 0 at least, x2 to the last column at most.

    Args:
        maps: (N, h, w).
        boxes: (N, 4) xyxy in pixels of the image.
        resize: How the maps are enlarged: where the image lies on them.
        image_size: Height and width of the image.
        padding: Cells around the boxes that are kept.
    """
    cells = maps.shape[2], maps.shape[1]
    height, width = resize.via or (cells[1], cells[0])
    content = resize.content or (0, 0, width, height)
    for axis, (count, pixels, scale) in enumerate(
        ((cells[0], image_size[1], cells[0] / width), (cells[1], image_size[0], cells[1] / height))
    ):
        first, extent = content[axis] * scale, (content[axis + 2] - content[axis]) * scale
        side = boxes.detach()[:, axis::2].to(torch.float32) * (extent / pixels)
        low, high = side[:, :1], side[:, 1:]
        if padding:
            low, high = (low - padding).clamp(min=0), (high + padding).clamp(max=extent)
        cell = torch.arange(count, device=maps.device) - first
        outside = (cell < low) | (cell >= high)  # (N, count)
        maps.masked_fill_(outside[:, None, :] if axis == 0 else outside[:, :, None], 0)


def pixel_windows(boxes: Tensor, image_size: Size) -> Tensor:
    """Find the pixels of boxes: x1 <= x < x2 and y1 <= y < y2, (N, 4) int64; none where a number is NaN."""
    edges = boxes.detach().to(torch.float32).nan_to_num(nan=0.0).ceil()
    limit = torch.tensor([*image_size[::-1]] * 2, dtype=torch.float32, device=boxes.device)
    inside = torch.minimum(edges.clamp(min=0), limit).to(torch.int64)
    return inside.where(boxes.isnan().any(1, keepdim=True).logical_not(), 0)


def _require_finite(name: str, values: Tensor) -> None:
    if is_checked() and not values.isfinite().all():
        n = int(values.isfinite().flatten(1).all(1).logical_not().nonzero()[0, 0])
        raise ValueError(f"{name}: entry {n} has a value that is not finite")
