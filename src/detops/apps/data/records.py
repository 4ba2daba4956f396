"""Images and categories of a COCO file, judged once; see `table` for its annotations.

JSON -> ImageRecord, Categories, and the position of each by its id
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from detops.apps.data.ids import Id, as_id, whole
from detops.apps.data.images import Size, facts
from detops.apps.data.layouts import Locator
from detops.apps.data.problems import Level, Problems, quoted, shown

MAX_SIDE = 1 << 20  # pixels; a longer side is a mistake of the file


@dataclass(frozen=True)
class ImageRecord:
    """An image as the annotation file records it; sizes in pixels."""

    id: Id
    file_name: str
    height: int
    width: int

    @property
    def size(self) -> Size:
        """Return width and height."""
        return self.width, self.height


class Categories(NamedTuple):
    """Categories in the order of their ids: ids of the file, and names that differ from one another."""

    ids: list[Id]
    names: list[str]


def judge_images(
    records: list[Any], folder: Path | None, problems: Problems
) -> tuple[list[ImageRecord], dict[Id, int]]:
    """Judge the list of images.

    Args:
        records: The list.
        folder: Folder of the images, from which sizes that the file lacks are taken; None takes none.
        problems: Where problems are counted.

    Returns:
        The images, and the position of each by its id; -1 for an image that is left out.
    """
    images: list[ImageRecord] = []
    row_of: dict[Id, int] = {}
    places: list[int] = []
    faults: dict[str, list[int]] = {"not an object": [], "no id": [], "no size": []}
    repeated: list[int] = []
    clashing: list[int] = []
    measured: list[int] = []
    locator = None
    for place, record in enumerate(records):
        if not isinstance(record, dict):
            faults["not an object"].append(place)
            continue
        found = as_id(record.get("id"))
        if found is None:
            faults["no id"].append(place)
            continue
        name, size = file_name(record, found), _size(record)
        if size is None and folder is not None:
            if locator is None:
                locator = Locator(folder, [file_name(r, "") for r in records if isinstance(r, dict)])
            size = _measured(folder, locator, name)
            measured += [place] * (size is not None)
        if found in row_of:
            first = row_of[found]
            same = first >= 0 and size is not None and images[first] == ImageRecord(found, name, size[1], size[0])
            (repeated if same else clashing).append(place)
        elif size is None:
            faults["no size"].append(place)
            row_of[found] = -1
        else:
            row_of[found] = len(images)
            places.append(place)
            images.append(ImageRecord(found, name, size[1], size[0]))

    def place_of(place: int) -> str:
        record = records[place]
        if not isinstance(record, dict):
            return f"images[{place}], {shown(record)}"
        parts = [f"id {quoted(record['id'])}"] if "id" in record else []
        parts += [quoted(record["file_name"])] if "file_name" in record else []
        return f"images[{place}]" + (f" ({', '.join(parts)})" if parts else "")

    def with_size(place: int) -> str:
        return f"{place_of(place)}, {shown(records[place].get('width'))} x {shown(records[place].get('height'))}"

    def with_first(place: int) -> str:
        return f"{place_of(place)} and an image before it"

    named = {"not an object": place_of, "no id": place_of, "no size": with_size}
    for reason, rows in faults.items():
        problems.add(f"image: {reason}", Level.LEFT_OUT, f"images left out, {reason}", rows, named[reason])
    problems.add("image: id of several", Level.REFUSED, "ids stand for several images", clashing, with_first)
    problems.add("image: repeated", Level.NOTE, "images are recorded twice and taken once", repeated, place_of)
    problems.add(
        "image: measured", Level.NOTE, "images have no recorded size: that of the file is taken", measured, place_of
    )
    seen: set[str] = set()
    twice = [
        place for place, image in zip(places, images, strict=True) if _seen(seen, image.file_name.replace("\\", "/"))
    ]
    problems.add(
        "image: file of another", Level.DOUBTFUL, "images have the file name of an image before", twice, place_of
    )
    return images, row_of


def _seen(seen: set[str], name: str) -> bool:
    """Tell whether a name came before, and remember it."""
    known = name in seen
    seen.add(name)
    return known


def file_name(record: dict[str, Any], default: Id) -> str:
    """Return the name of an image's file; LVIS records the end of an address instead."""
    name = record.get("file_name")
    if name is None and isinstance(record.get("coco_url"), str):
        name = record["coco_url"].rpartition("/")[2]
    return str(default) if name is None else name if isinstance(name, str) else shown(name)


def _size(record: dict[str, Any]) -> Size | None:
    """Return width and height, if both are numbers of pixels."""
    width, height = whole(record.get("width")), whole(record.get("height"))
    if width is None or height is None or not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        return None
    return width, height


def _measured(folder: Path, locator: Locator, name: str) -> Size | None:
    """Return width and height of an image file, if it is there and can be read."""
    found = locator.find(name)
    try:
        return None if found is None else facts(folder / found).size
    except ValueError:
        return None


def judge_categories(records: list[Any], problems: Problems) -> tuple[Categories, dict[Id, int]]:
    """Judge the list of categories.

    Returns:
        The categories, sorted by id, numbers before text; and the position of each by its id.
    """
    names: dict[Id, str] = {}
    wrong: list[int] = []
    repeated: list[int] = []
    clashing: list[int] = []
    for place, record in enumerate(records):
        found = as_id(record.get("id")) if isinstance(record, dict) else None
        if found is None:
            wrong.append(place)
            continue
        name = record.get("name")
        # A lone surrogate, which JSON can spell, could be neither printed nor written.
        name = str(found) if name is None else name if isinstance(name, str) else shown(name)
        name = name.encode("utf-8", "backslashreplace").decode()
        if found in names:
            (repeated if names[found] == name else clashing).append(place)
        else:
            names[found] = name

    def place_of(place: int) -> str:
        return f"categories[{place}] {shown(records[place], 80)}"

    problems.add("category: no id", Level.LEFT_OUT, "categories left out, no id", wrong, place_of)
    problems.add("category: repeated", Level.NOTE, "categories are listed twice and taken once", repeated, place_of)
    problems.add("category: id of several", Level.REFUSED, "ids stand for several categories", clashing, place_of)
    ids = sorted(names, key=lambda one: (isinstance(one, str), one))
    by_name: dict[str, list[Id]] = {}
    for one in ids:
        by_name.setdefault(names[one], []).append(one)
    shared = [name for name, group in by_name.items() if len(group) > 1]
    problems.add(
        "category: one name", Level.DOUBTFUL, "names stand for several categories, which are kept apart by their ids",
        range(len(shared)),
        lambda row: f"{quoted(shared[row])} has ids {', '.join(map(quoted, by_name[shared[row]][:5]))}",
    )  # fmt: skip
    unique = [f"{names[one]} (id {one})" if len(by_name[names[one]]) > 1 else names[one] for one in ids]
    return Categories(ids, unique), {one: row for row, one in enumerate(ids)}
