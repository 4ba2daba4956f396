"""Pictures: heat and boxes over an image, and many of them on one contact sheet. Needs the extra `train`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from detops.apps import require
from detops.apps.data.coco import ImageRecord
from detops.apps.data.images import decode
from detops.inference.drawing import INK, Pen, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

SHORT_SIDE = 480  # small images are enlarged to this
LONG_SIDE = 4096  # large images are reduced to this
HEAT_SIDE = 2048  # the same under heat, whose colours take 32 bytes a pixel
HEAT_ALPHA = 0.85
CROWD = 30  # with more boxes than this, names would hide what they name
PAPER = (250, 250, 248)


@dataclass(frozen=True)
class Picture:
    """An image with its caption."""

    image: "Image"
    caption: str


def _pil(module: str) -> Any:
    return require(f"PIL.{module}", "Pillow")


def unique_stems(file_names: list[str]) -> list[str]:
    """Return file names without folder and ending; equal ones get a number, so that all differ."""
    stems = [Path(name).stem for name in file_names]
    counts, seen = Counter(stems), Counter[str]()
    result = []
    for stem in stems:
        name = stem
        while counts[stem] > 1 and name in counts:  # the stems of others are taken
            seen[stem] += 1
            name = f"{stem}_{seen[stem]}"
        result.append(name)
    return result


def canvas(path: Path | None, record: ImageRecord) -> "Image":
    """Open an image as RGB, or make a blank one of the recorded size, where there is none.

    Raises:
        ValueError: The image cannot be decoded; the message names it.
    """
    module = _pil("Image")
    if path is not None and path.exists():
        return decode(path, record.size)
    blank: Image = module.new("RGB", (max(1, record.width), max(1, record.height)), (52, 56, 64))
    return blank


def heat_layer(heat: Tensor, size: tuple[int, int], extent: tuple[float, float]) -> "Image":
    """Colour a heatmap and enlarge it.

    Args:
        heat: (h, w), values 0 .. 1.
        size: Width and height of the result.
        extent: Width and height that the map covers, in pixels of the result; its last cells may reach beyond.

    Returns:
        RGBA image: colour by the perceptual map "inferno", opacity by heat.
    """
    matplotlib, numpy = require("matplotlib", "matplotlib"), require("numpy", "numpy")
    module = _pil("Image")
    gray = module.fromarray(numpy.asarray(heat.clamp(0, 1) * 255, dtype=numpy.uint8))
    box = (0, 0, heat.shape[1] * size[0] / extent[0], heat.shape[0] * size[1] / extent[1])
    gray = gray.resize(size, module.Resampling.BILINEAR, (0, 0, min(box[2], gray.width), min(box[3], gray.height)))
    values = numpy.asarray(gray) / 255.0
    colors = matplotlib.colormaps["inferno"](0.25 + 0.75 * values)
    colors[..., 3] = HEAT_ALPHA * numpy.sqrt(values)
    layer: Image = module.fromarray((colors * 255).astype(numpy.uint8))
    return layer


def overlay(
    image: "Image",
    heatmap: Tensor,
    boxes: Tensor,
    labels: Tensor,
    class_names: list[str],
    record: ImageRecord,
    stride: int,
) -> "Image":
    """Draw heat, boxes and class names over an image.

    Args:
        image: RGB, of any size.
        heatmap: (C, h, w); the largest value over the classes is shown.
        boxes: (n, 4) xyxy in pixels of the record.
        labels: (n,) index into `class_names`.
        class_names: Names of the classes.
        record: Size that the boxes refer to.
        stride: Pixels of the record per cell of the heatmap.

    Returns:
        RGB image; small images come back enlarged, and huge ones reduced.
    """
    module, plain = _pil("Image"), enlarged(image, most=HEAT_SIDE)
    # The map covers whole cells, so a little more than the image; in units of its cells the image is this large.
    cells = (record.width / stride, record.height / stride)
    heat = heatmap.amax(0)
    extent = (heat.shape[1] * plain.width / cells[0], heat.shape[0] * plain.height / cells[1])
    layer = heat_layer(heat, plain.size, extent)
    view: Image = module.alpha_composite(plain.convert("RGBA"), layer).convert("RGB")
    to_view = boxes * boxes.new_tensor([view.width / record.width, view.height / record.height] * 2)
    names = [
        class_names[label] if len(class_names) > 1 else "" for label in labels.tolist()
    ]  # the only one says nothing
    draw_boxes(view, to_view, labels, names, faint_crowds=True)
    return view


def enlarged(image: "Image", least: int = SHORT_SIDE, most: int = LONG_SIDE) -> "Image":
    """Return a copy of an image, enlarged if it is small, so that names on it are legible, and reduced if it is huge.

    Args:
        image: The image.
        least: Length of the short side to which a small image is enlarged, as far as `most` allows.
        most: Greatest length of the long side.
    """
    scale = min(max(1.0, least / min(image.size)), most / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, _pil("Image").Resampling.LANCZOS)


def draw_boxes(view: "Image", boxes: Tensor, labels: Tensor, names: Sequence[str], faint_crowds: bool = False) -> None:
    """Draw boxes on an RGB image, in place, and their names unless they are a crowd.

    Args:
        view: The image.
        boxes: (n, 4) xyxy in its pixels; the last is on top.
        labels: (n,) integers, which give the colours.
        names: One per box; an empty one is not written.
        faint_crowds: Draw the boxes of a crowd faintly, so that they do not hide what lies below.
    """
    pen, crowded = Pen(view), len(names) > CROWD
    rows = list(zip(boxes.tolist(), labels.tolist(), names, strict=True))
    for box, label, _ in rows:
        pen.outline(box, label, faint=crowded and faint_crowds)
    if not crowded:
        for box, label, name in rows[::-1]:  # the one on top gets the best place
            pen.name(name, box, label)


def contact_sheet(pictures: list[Picture], columns: int = 4, cell: tuple[int, int] = (440, 330)) -> "Image":
    """Put pictures on one sheet, in rows, each with its caption.

    Args:
        pictures: What to show; an empty list gives an empty sheet.
        columns: Pictures per row.
        cell: Width and height that each picture is fitted into, in pixels.
    """
    module, draw_module, ops = _pil("Image"), _pil("ImageDraw"), _pil("ImageOps")
    font = _pil("ImageFont").load_default(size=15)
    margin, line = 16, 26
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    size = (margin + columns * (cell[0] + margin), margin + rows * (cell[1] + line + margin))
    sheet: Image = module.new("RGB", size, PAPER)
    draw = draw_module.Draw(sheet)
    for index, picture in enumerate(pictures):
        left = margin + index % columns * (cell[0] + margin)
        top = margin + index // columns * (cell[1] + line + margin)
        small = ops.contain(picture.image, cell, module.Resampling.LANCZOS)
        sheet.paste(small, (left + (cell[0] - small.width) // 2, top + cell[1] - small.height))
        draw.text((left, top + cell[1] + 4), _shorten(one_line(picture.caption), font, cell[0]), INK, font)
    return sheet


def _shorten(text: str, font: Any, width: int) -> str:
    """Shorten a text at its beginning until it is at most `width` pixels wide."""
    while font.getlength(text) > width and len(text) > 4:
        text = "…" + text[2:]
    return text
