"""The data set of `detops demo`: shapes on a textured background and crowds of cells, with COCO annotations."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detops.apps import require

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES = ("circle", "rectangle", "triangle", "star", "cell")
SIZE = (320, 240)  # width, height
SUPERSAMPLE = 2  # shapes are drawn at twice the size, for smooth edges
CROWDED_EVERY = 5  # every fifth image is a crowd of cells


def generate(folder: Path, images: int = 200, seed: int = 0) -> Path:
    """Write images and their annotations.

    Args:
        folder: Folder for `images/*.png` and `annotations.json`.
        images: Number of images.
        seed: Random seed; the same seed gives the same bytes.

    Returns:
        Path of the annotations.
    """
    numpy = require("numpy", "numpy", "demo")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(images):
        rng = numpy.random.default_rng((seed, index))
        crowded = index % CROWDED_EVERY == CROWDED_EVERY - 1
        picture, boxes = _crowd(rng) if crowded else _scene(rng)
        name = f"{'cells' if crowded else 'shapes'}_{index:04d}.png"
        picture.save(folder / "images" / name)
        records.append({"id": index + 1, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for category, (left, top, width, height) in boxes:
            bbox = [round(value, 2) for value in (left, top, width, height)]
            annotations.append({
                "id": len(annotations) + 1, "image_id": index + 1, "category_id": category + 1, "iscrowd": 0,
                "bbox": bbox, "area": round(width * height, 2),
            })  # fmt: skip
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": records, "annotations": annotations, "categories": categories}))
    return path


Box = tuple[int, tuple[float, float, float, float]]  # class and xywh


def _ground(rng: Any, low: tuple[int, int, int], high: tuple[int, int, int], grain: float) -> "Image":
    """Draw a gradient between two colours with smooth noise, supersampled."""
    numpy, module = require("numpy", "numpy", "demo"), require("PIL.Image", "Pillow", "demo")
    width, height = SIZE[0] * SUPERSAMPLE, SIZE[1] * SUPERSAMPLE
    angle = rng.uniform(0, 2 * math.pi)
    y, x = numpy.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    slope = (math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5) + 0.7) / 1.4
    colors = numpy.asarray(low) + slope[..., None] * (numpy.asarray(high) - numpy.asarray(low))
    noise = sum(
        numpy.asarray(module.fromarray(rng.normal(0, grain, (n, n + n // 3)).astype("f4")).resize((width, height), 3))
        for n in (6, 24, 90)
    )
    ground: Image = module.fromarray((colors + noise[..., None]).clip(0, 255).astype("u1"))
    return ground


def _outline(kind: int, x: float, y: float, rx: float, ry: float, turn: float) -> list[tuple[float, float]]:
    """Return the corners of a shape around (x, y)."""
    if kind == 0:
        angles, reach = [2 * math.pi * i / 72 for i in range(72)], [1.0] * 72
    elif kind == 1:
        angles, reach = [math.pi * (0.25 + 0.5 * i) for i in range(4)], [math.sqrt(2)] * 4
    elif kind == 2:
        angles, reach = [math.pi * (2 * i / 3 - 0.5) for i in range(3)], [1.15] * 3
    else:
        angles, reach = [math.pi * (i / 5 - 0.5) for i in range(10)], [1.1 if i % 2 == 0 else 0.48 for i in range(10)]
    points = []
    for angle, r in zip(angles, reach, strict=True):
        px, py = rx * r * math.cos(angle), ry * r * math.sin(angle)
        points.append((x + px * math.cos(turn) - py * math.sin(turn), y + px * math.sin(turn) + py * math.cos(turn)))
    return points


def _bounds(points: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    """Return the box of a shape, cropped to the image, as xywh."""
    xs, ys = ([min(max(p[axis], 0.0), float(SIZE[axis])) for p in points] for axis in (0, 1))
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _paint(picture: "Image", points: list[tuple[float, float]], fill: Any, edge: Any, width: float) -> None:
    draw = require("PIL.ImageDraw", "Pillow", "demo").Draw(picture, "RGBA")
    scaled = [(SUPERSAMPLE * px, SUPERSAMPLE * py) for px, py in points]
    draw.polygon(scaled, fill=fill)
    draw.line([*scaled, scaled[0]], fill=edge, width=max(1, round(SUPERSAMPLE * width)), joint="curve")


def _finish(picture: "Image") -> "Image":
    return picture.resize(SIZE, require("PIL.Image", "Pillow", "demo").Resampling.LANCZOS)


def _scene(rng: Any) -> tuple["Image", list[Box]]:
    """Draw 3 to 12 shapes of all sizes; later ones may partly cover earlier ones."""
    tone = rng.integers(120, 215, 3)
    picture, boxes = _ground(rng, tuple(tone - 45), tuple(tone + 25), 7.0), []
    for _ in range(int(rng.integers(3, 13))):
        radius = 8 * 2 ** rng.uniform(0, 2.6)
        x, y = rng.uniform(0.06, 0.94) * SIZE[0], rng.uniform(0.06, 0.94) * SIZE[1]
        kind, stretch = int(rng.integers(0, 4)), rng.uniform(0.7, 1.4)
        turn = 0.0 if kind == 1 else rng.uniform(0, 2 * math.pi)
        points = _outline(kind, x, y, radius * stretch, radius / stretch, turn)
        box = _bounds(points)
        if min(box[2:]) < 4:
            continue
        color = tuple(int(value) for value in rng.integers(30, 235, 3))
        _paint(picture, points, (*color, 235), tuple(value // 2 for value in color), 1.4)
        boxes.append((kind, box))
    return _finish(picture), boxes


def _crowd(rng: Any) -> tuple["Image", list[Box]]:
    """Draw 100 to 170 overlapping cells, as under a microscope."""
    picture, boxes = _ground(rng, (226, 214, 205), (243, 234, 226), 3.0), []
    for _ in range(int(rng.integers(100, 170))):
        radius = min(max(rng.normal(11, 1.6), 7.0), 16.0)
        x, y = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1])
        points = _outline(0, x, y, radius * rng.uniform(0.9, 1.1), radius, rng.uniform(0, math.pi))
        box = _bounds(points)
        if min(box[2:]) < 4:
            continue
        red = int(rng.integers(196, 226))
        _paint(picture, points, (red, red - 62, red - 66, 150), (red - 40, red - 105, red - 100, 200), 1.2)
        _paint(picture, _outline(0, x, y, radius * 0.45, radius * 0.45, 0), (236, 205, 198, 120), (0, 0, 0, 0), 1)
        boxes.append((CLASSES.index("cell"), box))
    return _finish(picture), boxes
