"""Pictures: heat and boxes over an image, and many of them on one contact sheet. Needs the extra `train`."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from detops.apps import require
from detops.apps.data.coco import ImageRecord
from detops.masks.drawing import class_color as class_color  # for all who import it from here

if TYPE_CHECKING:
    from PIL.Image import Image

SHORT_SIDE = 480  # small images are enlarged to this, so that labels are legible
HEAT_ALPHA = 0.85
CROWD = 30  # with more boxes than this, names would hide what they name
INK, PAPER = (28, 30, 34), (250, 250, 248)


@dataclass(frozen=True)
class Picture:
    """An image with its caption."""

    image: "Image"
    caption: str


def _pil(module: str) -> Any:
    return require(f"PIL.{module}", "Pillow", "targets")


def unique_stems(file_names: list[str]) -> list[str]:
    """File names without folder and ending; where two are alike, with a number behind that makes no third."""
    stems = [Path(name).stem for name in file_names]
    counts, seen = Counter(stems), Counter[str]()
    result = []
    for stem in stems:
        name = stem
        while counts[stem] > 1 and name in counts:  # the others' stems are names that are taken
            seen[stem] += 1
            name = f"{stem}_{seen[stem]}"
        result.append(name)
    return result


def canvas(path: Path | None, record: ImageRecord) -> tuple["Image", str]:
    """Open an image, or make a blank one of the recorded size.

    Returns:
        The image as RGB, and "found", "missing", "resized" (it has another size than recorded) or "blank".
    """
    module = _pil("Image")
    if path is not None and path.exists():
        image = module.open(path).convert("RGB")
        return image, "found" if image.size == (record.width, record.height) else "resized"
    blank = module.new("RGB", (max(1, record.width), max(1, record.height)), (52, 56, 64))
    return blank, "blank" if path is None else "missing"


def heat_layer(heat: Tensor, size: tuple[int, int], extent: tuple[float, float]) -> "Image":
    """Colour a map (h, w) of values 0 .. 1 and enlarge it.

    Args:
        heat: The map.
        size: Width and height of the result.
        extent: Width and height that the map covers, in pixels of the result; its last cells may reach beyond.

    Returns:
        RGBA image: colour by the perceptual map "inferno", opacity by heat.
    """
    matplotlib, numpy = require("matplotlib", "matplotlib", "targets"), require("numpy", "numpy", "targets")
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
        stride: Pixels of the record a cell.

    Returns:
        RGB image; small images come back enlarged.
    """
    module, draw_module = _pil("Image"), _pil("ImageDraw")
    scale = max(1.0, SHORT_SIDE / min(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    # The map covers whole cells, so a little more than the image; in units of its cells the image is this large.
    cells = (record.width / stride, record.height / stride)
    view: Image = image.resize(size, module.Resampling.LANCZOS)
    heat = heatmap.amax(0)
    layer = heat_layer(heat, size, (heat.shape[1] * size[0] / cells[0], heat.shape[0] * size[1] / cells[1]))
    view = module.alpha_composite(view.convert("RGBA"), layer)
    lines = module.new("RGBA", size)
    draw = draw_module.Draw(lines)
    to_view = boxes * boxes.new_tensor([size[0] / record.width, size[1] / record.height] * 2)
    rows = list(zip(to_view.tolist(), labels.tolist(), strict=True))
    crowded = len(rows) > CROWD
    line, opacity = (1, 130) if crowded else (max(1, round(min(size) / 300)), 235)
    for (left, top, right, bottom), label in rows:
        outline = (left, top, max(left, right - 1), max(top, bottom - 1))
        draw.rectangle(outline, outline=(*class_color(label), opacity), width=line)
    if not crowded:
        for (left, top, *_), label in rows:
            _tag(draw, class_names[label], left, top, class_color(label), size)
    view = module.alpha_composite(view, lines)
    return view.convert("RGB")


def _tag(draw: Any, text: str, left: float, top: float, color: tuple[int, int, int], size: tuple[int, int]) -> None:
    """A class name on a small plate above the box, inside it where there is no room above."""
    font = _pil("ImageFont").load_default(size=max(11, round(min(size) / 38)))
    width, height = draw.textlength(text, font) + 8, font.size + 4
    left = min(max(0, left), max(0, size[0] - width))
    top = top - height if top >= height else top
    draw.rectangle((left, top, left + width, top + height), fill=(*color, 215))
    draw.text((left + 4, top + 1), text, INK, font)


def contact_sheet(pictures: list[Picture], columns: int = 4, cell: tuple[int, int] = (440, 330)) -> "Image":
    """Put pictures on one sheet, in rows, each with its caption.

    Args:
        pictures: What to show; an empty list gives an empty sheet.
        columns: Pictures a row.
        cell: Width and height that each is fitted into, in pixels.
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
        draw.text((left, top + cell[1] + 4), _shorten(picture.caption, font, cell[0]), INK, font)
    return sheet


def _shorten(text: str, font: Any, width: int) -> str:
    """Cut the beginning of a text that is wider than `width` pixels."""
    while font.getlength(text) > width and len(text) > 4:
        text = "…" + text[2:]
    return text
