"""Dense outputs level by level: checks of their layout, and sizes of images as tensors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detops.arguments import FLOATS, INTEGERS, require_device, require_tensor, sent

Size = tuple[int, int]
ImageSizes = Tensor | Sequence[Size]


def feature_sizes_of(levels: Sequence[Tensor]) -> list[Size]:
    """Return height and width of each level's map (B, C, H, W)."""
    return [(level.shape[2], level.shape[3]) for level in levels]


def require_maps(
    name: str,
    levels: object,
    channels: int | None,
    count: int,
    like: Sequence[Tensor] | None = None,
    like_name: str = "",
) -> None:
    """Check a list of a dense head's maps (B, channels, H, W), one per level.

    Args:
        name: Name of the argument.
        levels: The argument.
        channels: Number of channels; None for any.
        count: Number of levels.
        like: Maps of the same batch, heights, widths and device; None for none.
        like_name: Name of that argument.

    Raises:
        TypeError: It is not a list of floating-point tensors.
        ValueError: Number of levels, shapes or devices differ.
    """
    if not isinstance(levels, list | tuple):
        raise TypeError(f"{name}: expected a list of tensors, got {type(levels).__name__}")
    if not count or len(levels) != count:
        raise ValueError(f"{name}: expected {count} levels, one per stride, got {len(levels)}")
    first, first_name = (levels[0], "the first level") if like is None else (like[0], like_name)
    for level, other in zip(levels, like or levels, strict=False):
        require_tensor(name, level, FLOATS, "floating-point tensors")
        if level.dim() != 4 or (channels is not None and level.shape[1] != channels):
            wanted = "C" if channels is None else channels
            raise ValueError(f"{name}: expected shape (B, {wanted}, H, W), got {tuple(level.shape)}")
        if level.shape[0] != first.shape[0]:
            raise ValueError(f"{name}: expected {first.shape[0]} images, as {first_name} has, got {level.shape[0]}")
        if level.shape[2:] != other.shape[2:]:
            raise ValueError(
                f"{name}: expected the shape of {first_name}, {tuple(other.shape)}, got {tuple(level.shape)}"
            )
        require_device(name, level, first, first_name)


def require_yolox_maps(model_output: object, strides: Sequence[int], num_classes: int | None = None) -> list[Tensor]:
    """Return YOLOX's raw maps as a list.

    Args:
        model_output: Each level's (B, 1, H, W, 5 + C), of one dtype; or a tuple whose second item is that list.
        strides: Pixels per cell of each level.
        num_classes: C; None for any.

    Raises:
        TypeError: It is not such a list, or of another dtype.
        ValueError: Number of levels, shapes or devices differ.
    """
    if isinstance(model_output, tuple) and len(model_output) == 2 and isinstance(model_output[1], list | tuple):
        model_output = model_output[1]
    if not isinstance(model_output, list | tuple):
        raise TypeError(f"model_output: expected a list of tensors, got {type(model_output).__name__}")
    if not strides or len(model_output) != len(strides):
        raise ValueError(f"model_output: expected {len(strides)} levels, one per stride, got {len(model_output)}")
    first = model_output[0]
    for output in model_output:
        require_tensor("model_output", output, FLOATS, "floating-point tensors")
        fits = output.dim() == 5 and output.shape[1] == 1 and output.shape[4] > 5
        if num_classes is not None:
            fits = fits and output.shape[4] == 5 + num_classes
        if not fits or output.shape[0] != first.shape[0] or output.shape[4] != first.shape[4]:
            channels = "5 + C" if num_classes is None else 5 + num_classes
            raise ValueError(f"model_output: expected shape (B, 1, H, W, {channels}), got {tuple(output.shape)}")
        if output.dtype != first.dtype:
            raise TypeError(f"model_output: expected levels of one dtype, got {first.dtype} and {output.dtype}")
        require_device("model_output", output, first, "the first level")
    return list(model_output)


def require_strides(strides: Sequence[int]) -> tuple[int, ...]:
    """Return strides as a tuple of whole numbers of pixels.

    Raises:
        ValueError: There is no stride, or one is not a whole number of at least 1.
    """
    numbers = tuple(strides.tolist()) if isinstance(strides, Tensor) else tuple(strides)
    if not numbers or not all(isinstance(stride, int) and stride >= 1 for stride in numbers):
        raise ValueError(
            f"strides: expected whole numbers of at least 1 pixel, the same along x and y, got {strides!r}"
        )
    return numbers


def require_size(name: str, size: Any) -> Size:
    """Return a size (height, width) of at least 1 each.

    Raises:
        ValueError: It is not such a pair.
    """
    try:
        height, width = size
        fits = height >= 1 and width >= 1 and not isinstance(height, float) and not isinstance(width, float)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"{name}: expected a height and a width of at least 1, got {size!r}")
    return height, width


def require_fitting_sizes(feature_size: Size, image_size: Size) -> None:
    """Check that a map's cells are square on its image, as far as rounding of the map's sides allows.

    Raises:
        ValueError: No stride fits both sides, as when height and width are swapped.
    """
    low = max(image / (feature + 1) for feature, image in zip(feature_size, image_size, strict=True))
    high = min(image / max(feature - 1, 1e-9) for feature, image in zip(feature_size, image_size, strict=True))
    if low >= high:
        y, x = (image / feature for feature, image in zip(feature_size, image_size, strict=True))
        raise ValueError(
            f"image_size: expected (height, width) of an image whose map is {tuple(feature_size)}, got"
            f" {tuple(image_size)}: a cell would be {y:.2f} pixels high and {x:.2f} wide; are the two swapped?"
        )


def image_sizes_tensor(image_sizes: ImageSizes, batch: int, device: torch.device) -> Tensor:
    """Return heights and widths of images as a tensor (B, 2).

    Raises:
        TypeError: They are not numbers.
        ValueError: There is not exactly one pair per image.
        RuntimeError: They are on the host while a CUDA graph is captured on the device.
    """
    sizes = sent("image_sizes", torch.as_tensor(image_sizes), device)
    if batch == 0 and sizes.numel() == 0:
        sizes = sizes.reshape(0, 2)
    require_tensor("image_sizes", sizes, FLOATS + INTEGERS, "numbers")
    if sizes.shape != (batch, 2):
        raise ValueError(
            f"image_sizes: expected a height and a width for each of {batch} images, got shape {tuple(sizes.shape)}"
        )
    return sizes


def xy_of(size: Sequence[int], like: Tensor) -> Tensor:
    """Return (height, width) as a tensor (x, y) of the dtype of another, made without a copy from the host."""
    return torch.stack([torch.full((), side, dtype=like.dtype, device=like.device) for side in reversed(size)])


def dense_map(level: Tensor) -> Tensor:
    """Return a map (B, C, H, W) as it is if contiguous or channels last, else made contiguous."""
    dense = level.is_contiguous() or level.is_contiguous(memory_format=torch.channels_last)
    return level if dense else level.contiguous()
