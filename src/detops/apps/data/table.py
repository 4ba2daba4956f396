"""Annotations, judged once: each becomes a row of numbers of a known type and range, or a counted problem.

They are told apart by their place in the file alone: ids of annotations may be missing or repeated.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from detops.apps import require
from detops.apps.data.ids import NUMBERS, Id, as_id, id_text
from detops.apps.data.problems import Level, Problems, quoted, shown
from detops.apps.data.records import ImageRecord

Array = Any  # a numpy array

BBOX_REASONS = ("bbox", "malformed bbox", "not finite", "zero or negative size", "outside the image")
LOOKS = {
    "looks like xyxy": "boxes reach out of their image as [x, y, width, height] and fit it as [x1, y1, x2, y2]: which "
    "are they?",
    "looks normalised": "boxes, all, lie within one pixel: are they normalised?",
}
ROUNDING = 0.1  # pixels that a box may reach beyond its image by the annotation's rounding


class Table(NamedTuple):
    """Annotations that were judged good, sorted by image, as arrays of one length T.

    Attributes:
        xywh: (T, 4) float64, the boxes as the file has them.
        xyxy: (T, 4) float64, corners, clipped to the image.
        label: (T,) int64, position of the category.
        image: (T,) int64, position of the image.
        area: (T,) float64, square pixels; NaN where the file has none.
        crowd: (T,) bool, regions rather than objects.
        place: (T,) int64, position in the file.
    """

    xywh: Array
    xyxy: Array
    label: Array
    image: Array
    area: Array
    crowd: Array
    place: Array

    def take(self, rows: Array) -> "Table":
        """Select rows by index or by a mask."""
        return Table(*(column[rows] for column in self))


def judge_annotations(
    records: list[Any], images: list[ImageRecord], image_rows: dict[Id, int], labels: dict[Id, int], problems: Problems
) -> Table:
    """Judge the list of annotations.

    Args:
        records: The list.
        images: The images.
        image_rows: Position of each image by its id; -1 for one that was left out.
        labels: Position of each category by its id.
        problems: Where problems are counted.

    Returns:
        The good ones, sorted by image and then by their place in the file.
    """
    np = require("numpy", "numpy")
    count = len(records)
    objects = np.fromiter((isinstance(record, dict) for record in records), bool, count)
    dicts: list[dict[str, Any]] = records if objects.all() else [r if isinstance(r, dict) else {} for r in records]
    image = np.fromiter((_lookup(image_rows, a.get("image_id"), -2) for a in dicts), np.int64, count)
    label = np.fromiter((_lookup(labels, a.get("category_id"), -1) for a in dicts), np.int64, count)
    boxes = [a.get("bbox") for a in dicts]
    formed = np.fromiter(
        (type(b) is list and len(b) == 4 and NUMBERS.issuperset(map(type, b)) for b in boxes), bool, count
    )
    xywh = np.full((count, 4), np.nan)
    xywh[formed] = _floats(np, [b for b, good in zip(boxes, formed.tolist(), strict=True) if good])
    area = np.fromiter((_area(a.get("area")) for a in dicts), np.float64, count)
    crowd = np.fromiter((_crowd(a.get("iscrowd")) for a in dicts), np.int8, count)

    sizes = np.array([one.size for one in images], np.float64).reshape(-1, 2)
    size = np.concatenate([sizes, np.full((2, 2), np.inf)])[image]  # of images that are not there: the last two
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
        finite = np.isfinite(xywh).all(1) & np.isfinite(high).all(1)
        beyond = ((low < -ROUNDING) | (high > size + ROUNDING)).any(1)
        checks = {
            "not an object": ~objects,
            "unknown image": image == -2,
            "its image is left out": image == -1,
            "unknown category": label < 0,
            "malformed bbox": ~formed,
            "not finite": ~finite,
            "zero or negative size": (xywh[:, 2:] <= 0).any(1),
            "outside the image": ((high <= 0) | (low >= size)).any(1),
            "malformed iscrowd": crowd < 0,
        }
        # A box may be so far out or so small that nothing of it is left in the numbers of the clipped one.
        xyxy = np.concatenate([np.minimum(np.maximum(low, 0), size), np.minimum(high, size)], 1)
        checks["zero or negative size"] |= ~(xyxy[:, 2:] > xyxy[:, :2]).all(1) & finite & ~checks["outside the image"]
    good = np.ones(count, bool)
    detail = _details(dicts, image_rows, labels)
    for reason, bad in checks.items():
        rows = np.flatnonzero(bad & good).tolist()
        problems.add(reason, Level.LEFT_OUT, f"annotations left out, {reason}", rows, detail.get(reason, detail[""]))
        good &= ~bad

    rows = np.flatnonzero(good)
    rows = rows[np.argsort(image[rows], kind="stable")]
    table = Table(xywh, xyxy, label, image, area, crowd == 1, np.arange(count)).take(rows)
    with np.errstate(over="ignore"):
        largest = np.maximum(size[table.place].prod(1), table.xywh[:, 2] * table.xywh[:, 3])
    odd = (table.area < 0) | (table.area > largest * (1 + 1e-6))  # COCO's scores count no object beyond 1e10
    table.area[odd] = np.nan
    place = detail[""]
    problems.add(
        "area repaired", Level.NOTE,
        "annotations have an area that is none, or larger than the image: that of the box is taken",
        table.place[odd].tolist(), lambda row: f"{place(row)}, area {shown(dicts[row]['area'])}",
    )  # fmt: skip
    _add_doubts(np, table, size[table.place], beyond[table.place], problems, detail["bbox"])
    problems.add(
        "crowd", Level.NOTE, "crowd annotations: ignored regions, neither objects nor background",
        np.flatnonzero(table.crowd).tolist(),
    )  # fmt: skip
    return table


def _lookup(rows: dict[Id, int], value: object, missing: int) -> int:
    if type(value) is int or type(value) is str:
        return rows.get(value, missing)
    found = as_id(value)
    return missing if found is None else rows.get(found, missing)


def _floats(np: Any, rows: list[Any]) -> Array:
    """Convert lists of four numbers; integers beyond all floats become infinite."""
    try:
        return np.array(rows, np.float64).reshape(-1, 4)
    except OverflowError:
        return np.array([[_float(value) for value in row] for row in rows])


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _area(value: object) -> float:
    """Return an area; NaN where there is none, -1 where it is no area."""
    if value is None:
        return float("nan")
    if type(value) not in NUMBERS:
        return -1.0
    number = _float(value)  # type: ignore[arg-type]
    return number if 0 <= number < float("inf") else -1.0


def _crowd(value: object) -> int:
    """Return 0 or 1; -1 for what is neither. Text is neither: "0" must not make a crowd of an object."""
    if value is None:
        return 0
    return int(value) if type(value) in (int, float, bool) and value in (0, 1) else -1  # type: ignore[call-overload]


def _details(
    dicts: list[dict[str, Any]], images: dict[Id, int], labels: dict[Id, int]
) -> dict[str, Callable[[int], str]]:
    """Return, by reason, what to say of an annotation; "" is for all other reasons."""

    def place(row: int) -> str:
        return place_of_annotation(dicts[row], row)

    def with_key(key: str) -> Callable[[int], str]:
        return lambda row: f"{place(row)}, " + (f"{key} {shown(dicts[row][key])}" if key in dicts[row] else f"no {key}")

    def with_id(key: str, known: Iterable[Id]) -> Callable[[int], str]:
        return lambda row: f"{place(row)}, {id_text(key, dicts[row], known)}"

    return {
        "": place,
        "unknown image": with_id("image_id", images),
        "unknown category": with_id("category_id", labels),
        "malformed iscrowd": with_key("iscrowd"),
        **dict.fromkeys(BBOX_REASONS, with_key("bbox")),
    }


def place_of_annotation(record: dict[str, Any], row: int) -> str:
    """Name an annotation by its place in the file, and by what ids it has."""
    parts = [f"id {quoted(record['id'])}"] if "id" in record else []
    parts += [f"image {quoted(record['image_id'])}"] if "image_id" in record else []
    return f"annotations[{row}]" + (f" ({', '.join(parts)})" if parts else "")


def looks(xywh: Array, size: Array, beyond: Array) -> tuple[str, Array]:
    """Tell whether boxes look as if they were written in another format.

    Args:
        xywh: (T, 4), the boxes.
        size: (T, 2), width and height of the image of each.
        beyond: (T,) bool, boxes that reach beyond their image.

    Returns:
        A key of `LOOKS`, or an empty text; and (T,) bool, the boxes that show it.
    """
    corners = (xywh[:, 2:] >= xywh[:, :2]).all(1) & (xywh[:, 2:] <= size + 1).all(1)
    # Few right boxes reach out of their image; many corners do that are read as sizes, and no corner is out of order.
    if len(xywh) and corners.mean() >= 0.99 and (beyond & corners).mean() >= 0.1:
        return "looks like xyxy", beyond & corners
    if len(xywh) and xywh.max() <= 1 and (size > 2).all():
        return "looks normalised", beyond | True
    return "", beyond


def repeated(*columns: Array) -> Array:
    """Return the positions of rows that are equal to one before them, in ascending order."""
    np = require("numpy", "numpy")
    order = np.lexsort(columns[::-1])  # stable: of equal rows the first comes first
    same = np.ones(max(0, len(order) - 1), bool)
    for column in columns:
        ordered = column[order]
        same &= ordered[1:] == ordered[:-1]
    return np.sort(order[1:][same])


def _add_doubts(
    np: Any, table: Table, size: Array, beyond: Array, problems: Problems, place: Callable[[int], str]
) -> None:
    """Count boxes that look as if they were meant otherwise: as corners, or normalised; and those that are clipped."""
    if not len(table.xywh):
        return
    key, rows = looks(table.xywh, size, beyond)
    if key:
        problems.add(key, Level.DOUBTFUL, LOOKS[key], table.place[rows].tolist(), place)
    problems.add(
        "repeated", Level.DOUBTFUL, "annotations repeat one before them: the same image, category and box",
        table.place[repeated(table.image, table.label, table.crowd, *table.xywh.T)].tolist(), place,
    )  # fmt: skip
    problems.add(
        "clipped", Level.NOTE, "boxes reach beyond their image and are clipped to it",
        table.place[beyond & ~table.crowd].tolist(), place,
    )  # fmt: skip
