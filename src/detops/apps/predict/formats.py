"""The results of `detops predict` in the formats of other tools, written from its lines when all are there.

lines -> results.json (COCO), results.csv, labels/*.txt and classes.txt (YOLO)
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from detops.apps.data.ids import Id
from detops.apps.outputs import Outputs
from detops.apps.pictures import unique_stems

Line = dict[str, Any]
FORMATS = ("csv", "yolo")  # beside COCO's, which is always written
LABELS = "labels"  # folder of YOLO's files
COLUMNS = ("path", "image_id", "category_id", "category", "score", "x", "y", "width", "height")


class Writer(Protocol):
    """Writes one format."""

    def add(self, line: Line) -> None:
        """Write the detections on one image; the images come in order."""


class Coco:
    """COCO's results format, as one list.

    Args:
        file: The file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._count = file, 0
        file.write(b"[")

    def add(self, line: Line) -> None:
        """Write the detections on one image."""
        for row in line.get("detections", ()):
            row = {"image_id": line["image_id"], **row, "file_name": Path(line["path"]).name}
            self._file.write(((", " if self._count else "") + json.dumps(row)).encode())
            self._count += 1

    def end(self) -> None:
        """Close the list."""
        self._file.write(b"]\n")


class Csv:
    """A table with a row per detection.

    Args:
        file: The file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._write([COLUMNS])

    def add(self, line: Line) -> None:
        """Write the detections on one image."""
        self._write(
            (line["path"], line["image_id"], row["category_id"], row.get("category", ""), row["score"], *row["bbox"])
            for row in line.get("detections", ())
        )

    def _write(self, rows: Iterable[Iterable[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._file.write(text.getvalue().encode(errors="backslashreplace"))  # a name need not be valid Unicode


class Yolo:
    """YOLO's text files, one per image that was decoded: class, centre, size, all relative to the image, and score.

    Args:
        outputs: Where they are written, in the folder `labels`.
        paths: Paths of all images.
        names: Names of the categories by id, in the order of the classes, which classes.txt lists. Where none is known,
            the class is the category's id.
    """

    def __init__(self, outputs: Outputs, paths: Iterable[str], names: Mapping[Id, str]) -> None:
        outputs.remove_own(f"{LABELS}/")
        self._outputs = outputs
        self._stems = iter(unique_stems([Path(path).name for path in paths]))
        self._classes = {category: number for number, category in enumerate(names)}
        if names:
            self._write("classes.txt", "".join(name.replace("\n", " ") + "\n" for name in names.values()))

    def add(self, line: Line) -> None:
        """Write the detections on one image."""
        stem = next(self._stems)
        if "error" in line:
            return
        width, height = line["width"], line["height"]
        rows = []
        for row in line["detections"]:
            x, y, w, h = row["bbox"]
            relative = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            label = self._classes.get(row["category_id"], row["category_id"])
            rows.append(" ".join([str(label), *(f"{value:.6f}" for value in relative), str(row["score"])]) + "\n")
        self._write(f"{LABELS}/{stem}.txt", "".join(rows))

    def _write(self, name: str, text: str) -> None:
        with self._outputs.open(name, durable=False) as file:
            file.write(text.encode(errors="backslashreplace"))


def claim(outputs: Outputs, formats: Sequence[str]) -> None:
    """Check that the files of some formats may be written, before anything is done.

    Raises:
        ValueError: There are files of somebody else, or there is no such format.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"format: expected {' or '.join(FORMATS)}, got {', '.join(unknown)}")
    if "csv" in formats:
        outputs.claim("results.csv")
    if "yolo" in formats:
        outputs.claim("classes.txt")
        outputs.claim_folder(LABELS)


@contextmanager
def writers(
    outputs: Outputs, formats: Sequence[str], paths: Iterable[str], names: Mapping[Id, str]
) -> Iterator[list[Writer]]:
    """Open the files of some formats; they appear when all are complete, COCO's last, as it says that all is done.

    Args:
        outputs: Where they are written.
        formats: Which of `FORMATS`.
        paths: Paths of all images.
        names: Names of the categories by id.
    """
    with outputs.open("results.json") as file:
        coco = Coco(file)
        others: list[Writer] = [Yolo(outputs, paths, names)] if "yolo" in formats else []
        if "csv" not in formats:
            yield [coco, *others]
        else:
            with outputs.open("results.csv") as table:
                yield [coco, *others, Csv(table)]
        coco.end()
