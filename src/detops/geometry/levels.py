"""Dense outputs level by level: checks of their layout."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detops.arguments import FLOATS, require_device, require_tensor


def require_levels(model_output: object, strides: Sequence[int], num_classes: int | None = None) -> list[Tensor]:
    """Return YOLOX's raw maps as a list.

    Args:
        model_output: Each level's (B, 1, H, W, 5 + C), one dtype; or a tuple whose second item is that list.
        strides: One a level.
        num_classes: C; None for any.

    Raises:
        TypeError: It is no such list, or of another dtype.
        ValueError: Number of levels, shapes or devices differ.
    """
    if isinstance(model_output, tuple) and len(model_output) == 2 and isinstance(model_output[1], list | tuple):
        model_output = model_output[1]
    if not isinstance(model_output, list | tuple):
        raise TypeError(f"model_output: expected a list of tensors, got {type(model_output).__name__}")
    if not strides or len(model_output) != len(strides):
        raise ValueError(f"model_output: expected {len(strides)} levels, one a stride, got {len(model_output)}")
    first = model_output[0]
    for output in model_output:
        require_tensor("model_output", output, FLOATS, "floating-point tensors")
        fits = output.dim() == 5 and output.shape[1] == 1 and output.shape[4] > 5
        if num_classes is not None:
            fits = fits and output.shape[4] == 5 + num_classes
        if not fits or len(output) != len(first) or output.shape[4] != first.shape[4]:
            channels = "5 + C" if num_classes is None else 5 + num_classes
            raise ValueError(f"model_output: expected shape (B, 1, H, W, {channels}), got {tuple(output.shape)}")
        if output.dtype != first.dtype:
            raise TypeError(f"model_output: expected levels of one dtype, got {first.dtype} and {output.dtype}")
        require_device("model_output", output, first, "the first level")
    return list(model_output)


def require_maps(
    name: str, levels: object, channels: int | None, count: int, like: Sequence[Tensor] | None = None
) -> None:
    """Check a list of a dense head's maps (B, channels, H, W), one a level.

    Args:
        name: Of the argument.
        levels: What came.
        channels: How many; None for any.
        count: Number of levels.
        like: Maps of the same batch, heights, widths and device; None for none.

    Raises:
        TypeError: It is no list of floating-point tensors.
        ValueError: Number of levels, shapes or devices differ.
    """
    if not isinstance(levels, list | tuple):
        raise TypeError(f"{name}: expected a list of tensors, got {type(levels).__name__}")
    if not count or len(levels) != count:
        raise ValueError(f"{name}: expected {count} levels, one a stride, got {len(levels)}")
    for level, other in zip(levels, like or levels, strict=False):
        require_tensor(name, level, FLOATS, "floating-point tensors")
        if level.dim() != 4 or (channels is not None and level.shape[1] != channels):
            wanted = "C" if channels is None else channels
            raise ValueError(f"{name}: expected shape (B, {wanted}, H, W), got {tuple(level.shape)}")
        first, whose = (levels[0], "the first level") if like is None else (like[0], "cls_scores")
        if level.shape[0] != first.shape[0]:
            raise ValueError(f"{name}: expected {first.shape[0]} images, as {whose} has, got {level.shape[0]}")
        if level.shape[2:] != other.shape[2:]:
            raise ValueError(
                f"{name}: expected the shape of cls_scores, {tuple(other.shape)}, got {tuple(level.shape)}"
            )
        require_device(name, level, first, whose)


def image_sides(image_shapes: Tensor | Sequence[tuple[int, int]], batch: int, device: torch.device) -> Tensor:
    """Heights and widths of images as a tensor (B, 2).

    Raises:
        ValueError: There is not one pair an image.
    """
    sides = torch.as_tensor(image_shapes, device=device)
    if batch == 0 and sides.numel() == 0:
        sides = sides.reshape(0, 2)
    if sides.shape != (batch, 2):
        raise ValueError(
            f"image_shapes: expected a height and a width for each of {batch} images, got shape {tuple(sides.shape)}"
        )
    return sides
