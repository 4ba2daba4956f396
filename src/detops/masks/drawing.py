"""Pictures of instance masks: colour over the pixels of each mask, its box, and its name. Needs Pillow and numpy."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detops.arguments import require_module
from detops.masks.checks import check_names

if TYPE_CHECKING:
    from detops.masks.instance_masks import MaskCrop

INK = (28, 30, 34)


def class_color(label: int) -> tuple[int, int, int]:
    """A bright colour for each class, neighbours far apart on the colour circle."""
    hue = (0.36 + label * 0.61803398875) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, 0.66, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(
    image: Any,
    size: tuple[int, int],
    crops: "Sequence[MaskCrop]",
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    class_names: Sequence[str] | Mapping[int, str] | None,
    opacity: float,
) -> Any:
    """See `InstanceMasks.draw`; the best instances are drawn last, on top."""
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected a number in 0 .. 1, got {opacity!r}")
    if class_names is not None:
        check_names(labels.tolist(), class_names, "class name")
    module, numpy = _need("PIL.Image", "Pillow"), _need("numpy", "numpy")
    picture = as_image(image, size)
    pen = _need("PIL.ImageDraw", "Pillow").Draw(picture, "RGBA")
    shade = round(255 * opacity)
    order = scores.float().nan_to_num(nan=-torch.inf).argsort(stable=True).tolist()
    rows = list(zip(crops, boxes.tolist(), labels.tolist(), scores.tolist(), strict=True))
    for n in order:
        (mask, x, y), box, label, score = rows[n]
        if not mask.numel():
            continue
        color = class_color(label)
        stencil = module.fromarray((mask.to(torch.uint8) * shade).cpu().numpy().astype(numpy.uint8))
        picture.paste(color, (x, y, x + stencil.width, y + stencil.height), stencil)
        # Ends are cut to the image: Pillow takes no more than 32 bits.
        left, top, right, bottom = (min(max(value, -9.0), max(picture.size) + 9.0) for value in box)
        width = max(1, min(picture.size) // 300)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=(*color, 235), width=width)
        name = str(label) if class_names is None else class_names[label]
        _tag(pen, f"{name} {score:.2f}", (left, top, right, bottom), color, picture.size)
    return picture


def as_image(image: Any, size: tuple[int, int]) -> Any:
    """A copy of an image as Pillow's RGB.

    Raises:
        TypeError: It is no image, or not uint8.
        ValueError: It has another shape.
    """
    module, numpy = _need("PIL.Image", "Pillow"), _need("numpy", "numpy")
    height, width = size
    if isinstance(image, module.Image):
        if image.size != (width, height):
            raise ValueError(f"image: expected {width} x {height} pixels, got {image.width} x {image.height}")
        picture = image.convert("RGB")
        return picture.copy() if picture is image else picture
    pixels = numpy.asarray(image.cpu() if isinstance(image, Tensor) else image)
    if pixels.dtype != numpy.uint8:
        raise TypeError(f"image: expected a Pillow image or uint8, got {type(image).__name__} of {pixels.dtype}")
    if pixels.shape != (height, width, 3):
        raise ValueError(f"image: expected shape {(height, width, 3)}, got {pixels.shape}")
    return module.fromarray(numpy.array(pixels))


def _tag(pen: Any, text: str, box: tuple[float, ...], color: tuple[int, int, int], size: tuple[int, int]) -> None:
    """A name on a small plate in the box's upper left corner; left out where the box has no room for it."""
    font = _need("PIL.ImageFont", "Pillow").load_default(size=max(10, round(min(size) / 45)))
    left, top = max(0.0, box[0]), max(0.0, box[1])
    width, height = pen.textlength(text, font) + 6, font.size + 4
    if left + width > min(box[2], size[0]) or top + height > min(box[3], size[1]):
        return
    pen.rectangle((left, top, left + width, top + height), fill=(*color, 215))
    pen.text((left + 3, top + 1), text, INK, font)


def _need(module: str, package: str) -> Any:
    return require_module(module, package, "InstanceMasks.draw()", "detops[train]")
