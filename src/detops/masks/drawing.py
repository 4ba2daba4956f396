"""Pictures of instance masks: colour over the pixels of each mask, its box, and its name. Needs Pillow and numpy."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detops.arguments import require_module
from detops.inference.drawing import Pen, class_color
from detops.masks.checks import check_names

EDGE = 200  # opacity of the edge of a mask


def draw_masks(
    image: Any,
    image_size: tuple[int, int],
    crops: Sequence[tuple[Tensor, int, int]],
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    class_names: Sequence[str] | Mapping[int, str] | None,
    opacity: float,
    color_by: str = "instance",
) -> Any:
    """Draw masks over an image, each with its box, class and score; the best are drawn last, on top.

    Args:
        image: A Pillow image, or uint8 (height, width, 3) as an array or a tensor.
        image_size: Height and width that the image must have.
        crops: Per instance its mask (h, w) bool, and the column and row of the image where that begins.
        boxes: (N, 4) xyxy in pixels.
        labels: (N,) integers.
        scores: (N,).
        class_names: Names by label; None writes the labels as numbers.
        opacity: Opacity of the masks, 0 .. 1.
        color_by: What gives the colour: "instance", its position among the instances; or "class".

    Returns:
        A new RGB image of Pillow.

    Raises:
        ModuleNotFoundError: Pillow or numpy is not installed.
        TypeError: The image has another type or dtype.
        ValueError: The image has another size, the opacity is out of range, a label has no name, or `color_by` is no
            such choice.
    """
    if color_by not in ("instance", "class"):
        raise ValueError(f'color_by: expected "instance" or "class", got {color_by!r}')
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected a number in 0 .. 1, got {opacity!r}")
    if class_names is not None:
        check_names(labels.tolist(), class_names, "class name")
    module, numpy = _need("PIL.Image", "Pillow"), _need("numpy", "numpy")
    picture = as_image(image, image_size)
    pen = Pen(picture)
    shade = round(255 * opacity)
    order = scores.float().nan_to_num(nan=-torch.inf).argsort(stable=True).tolist()
    rows = list(zip(crops, boxes.tolist(), labels.tolist(), scores.tolist(), strict=True))
    numbers = range(len(rows)) if color_by == "instance" else labels.tolist()
    for n in order:
        (mask, x, y), box, *_ = rows[n]
        if not mask.numel():
            continue
        stencil = module.fromarray((mask.to(torch.uint8) * shade).cpu().numpy().astype(numpy.uint8))
        color, place = class_color(numbers[n]), (x, y, x + stencil.width, y + stencil.height)
        picture.paste(color, place, stencil)
        if opacity:  # a dark edge, which tells apart masks whose colours are alike
            edge = module.fromarray((_edge(mask).to(torch.uint8) * EDGE).cpu().numpy().astype(numpy.uint8))
            picture.paste(tuple(channel // 3 for channel in color), place, edge)
        pen.outline(box, numbers[n], inside=True)
    for n in order[::-1]:  # the one on top gets the best place
        (mask, _, _), box, label, score = rows[n]
        if mask.numel():
            name = str(label) if class_names is None else class_names[label]
            pen.name(f"{name} {score:.2f}", box, numbers[n], inside=True)
    return picture


def _edge(mask: Tensor) -> Tensor:
    """Return the pixels of a mask (h, w) that have a neighbour which is not of it; beyond the crop, all are."""
    inner = mask.clone()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner


def as_image(image: Any, image_size: tuple[int, int]) -> Any:
    """Copy an image into an RGB image of Pillow.

    Raises:
        TypeError: It is not an image, or not uint8.
        ValueError: It has another size.
    """
    module, numpy = _need("PIL.Image", "Pillow"), _need("numpy", "numpy")
    height, width = image_size
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


def _need(module: str, package: str) -> Any:
    return require_module(module, package, "InstanceMasks.draw()", "detops[train]")
