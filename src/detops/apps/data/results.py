"""COCO results files: detections, judged row by row; a wrong row refuses the file, since its score would lie."""

from typing import Any, NamedTuple

from detops.apps import require
from detops.apps.data.coco import Annotations
from detops.apps.data.ids import NUMBERS, Id, as_id, id_text
from detops.apps.data.masks import Rle, judge_mask
from detops.apps.data.problems import quoted, shown
from detops.apps.data.table import LOOKS, ROUNDING, Array, looks, repeated


class Results(NamedTuple):
    """Detections as arrays of one length D.

    Attributes:
        image: (D,) int64, position of the image.
        label: (D,) int64, position of the category.
        score: (D,) float64.
        xywh: (D, 4) float64; for masks, the box of the mask where the row has none.
        masks: Run lengths of each; empty where only boxes are compared.
    """

    image: Array
    label: Array
    score: Array
    xywh: Array
    masks: list[Rle]


def judge_results(rows: Any, annotations: Annotations, kind: str, source: object = "results") -> Results:
    """Judge detections against the annotations that they belong to.

    Args:
        rows: List in COCO's results format.
        annotations: The annotations.
        kind: "bbox" or "segm": which of both each row must have.
        source: Name of the file, for messages.

    Raises:
        ValueError: The rows are no results, or name other images or categories; the message names a row and a value.
    """
    np = require("numpy", "numpy")
    if not isinstance(rows, list):
        raise ValueError(f"{source}: expected a list of detections, got {type(rows).__name__}")
    images = {image.id: row for row, image in enumerate(annotations.images)}
    labels = {category: label for label, category in enumerate(annotations.category_ids)}
    needed = {"image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation"}
    columns: tuple[list[int], list[int], list[float], list[list[float]], list[Rle]] = ([], [], [], [], [])
    for number, row in enumerate(rows):
        try:
            if not (isinstance(row, dict) and needed <= row.keys()):
                raise ValueError(f"expected {', '.join(sorted(needed))} in every detection, got {shown(row, 80)}")
            columns[0].append(_position(row, "image_id", images, "image"))
            columns[1].append(_position(row, "category_id", labels, "category"))
            columns[2].append(_number(row["score"], "score"))
            columns[3].append(_box(row["bbox"]) if kind == "bbox" else [0.0] * 4)
            if kind == "segm":
                image = annotations.images[columns[0][-1]]
                columns[4].append(_mask(row["segmentation"], image.height, image.width))
        except ValueError as error:
            raise ValueError(f"{source}: row {number}: {error}") from None
    dtypes = (np.int64, np.int64, np.float64, np.float64)
    image, label, score, xywh = (np.array(column, dtype) for column, dtype in zip(columns, dtypes, strict=False))
    return Results(image, label, score, xywh.reshape(-1, 4), columns[4])


def doubts(results: Results, annotations: Annotations) -> list[str]:
    """Say, a line each, what is odd about detections of which no single row is wrong.

    Args:
        results: The detections.
        annotations: The annotations that they belong to.
    """
    np = require("numpy", "numpy")
    found: list[str] = []
    if not len(results.score):
        return ["there is no detection in it"]
    sizes = np.array([image.size for image in annotations.images], np.float64)[results.image]
    beyond = (results.xywh[:, :2] + results.xywh[:, 2:] > sizes + ROUNDING).any(1)
    key, rows = looks(results.xywh, sizes, beyond)
    if key and not results.masks:
        found.append(f"{int(rows.sum()):,} {LOOKS[key]}")
    twice = repeated(results.image, results.label, results.score, *results.xywh.T)
    if len(twice) and not results.masks:
        found.append(f"{len(twice):,} rows repeat one before them, and count as false: row {twice[0]} is the first")
    empty = len(annotations.images) - len(np.unique(results.image))
    if empty:
        found.append(f"{empty:,} of {len(annotations.images):,} images have no detection in it")
    return found


def _position(row: dict[str, Any], key: str, known: dict[Id, int], what: str) -> int:
    found = as_id(row[key])
    position = None if found is None else known.get(found)
    if position is None:
        raise ValueError(f"{what} {quoted(row[key])} is not in the annotations: {id_text(key, row, known)}")
    return position


def _number(value: object, name: str) -> float:
    if type(value) not in NUMBERS:
        raise ValueError(f"{name}: expected a number, got {quoted(value)}")
    if not abs(value) < float("inf"):  # type: ignore[arg-type]
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return _float(value, name)


def _float(value: Any, name: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a finite number, got one of {len(str(value))} digits") from None


def _box(value: object) -> list[float]:
    if not (isinstance(value, list) and len(value) == 4):
        raise ValueError(f"bbox: expected four numbers x, y, width, height, got {shown(value)}")
    x, y, width, height = (_number(one, "bbox") for one in value)
    if width < 0 or height < 0:
        raise ValueError(f"bbox: expected a width and height that are not negative, got {shown(value)}")
    if not abs(x + width) + abs(y + height) + width * height < float("inf"):
        raise ValueError(f"bbox: expected numbers of pixels, got {shown(value)}")
    return [x, y, width, height]


def _mask(value: object, height: int, width: int) -> Rle:
    try:
        return judge_mask(value, height, width)
    except ValueError as error:
        raise ValueError(f"segmentation: {error}") from None
