"""Where data sets keep their files: layouts of common exports, and image names as other systems write them."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from detops.apps.data import formats

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}
BESIDE = ("annotations.json", "_annotations.coco.json")
ACCEPTED = (
    "train/ and val/ (or valid/), each with annotations.json and images/; or each with _annotations.coco.json beside "
    "its images (Roboflow); or annotations/instances_train.json and instances_val.json with images/train/ and "
    "images/val/, or images/ (CVAT, COCO); or the data.yaml of a YOLO data set, or its folder; or a folder of "
    "Pascal VOC with ImageSets/Main/train.txt and val.txt"
)


def find_split(data: Path, split: str) -> tuple[Path, Path]:
    """Find the annotations and the image folder of a split, "train" or "val", in a folder of data or a `data.yaml`.

    Raises:
        FileNotFoundError: There are none; the message names the layouts that are accepted.
        ValueError: Several files would do.
    """
    names = SPLITS[split]
    found = [data / name / file for name in names for file in BESIDE if (data / name / file).is_file()]
    if not found:
        found = [path for name in names if (path := data / "annotations" / f"instances_{name}.json").is_file()]
    if not found:  # of COCO itself: instances_train2017.json
        found = sorted((data / "annotations").glob(f"instances_{split}[0-9]*.json"))
    if not found:
        found = _other_split(data, split)
    if not found:
        raise FileNotFoundError(f"{data}: found no annotations to {_purpose(split)}; expected {ACCEPTED}")
    if len(found) > 1:
        raise ValueError(
            f"{data}: expected one annotation file to {_purpose(split)}, found {' and '.join(map(str, found))}"
        )
    return found[0], images_of(found[0])


def _other_split(data: Path, split: str) -> list[Path]:
    """Find a split of data in another format than COCO's."""
    file = data if data.suffix in formats.SUFFIXES else data / "data.yaml"
    if file.is_file():
        return [file / split] if split in formats.splits(file) else []
    listed = data / "ImageSets" / "Main" / f"{split}.txt"
    return [listed] if listed.is_file() else []


def find_whole(data: Path) -> tuple[Path, Path]:
    """Find the annotations and the image folder of a data set that is not divided.

    Args:
        data: Its annotations, or a folder that holds them.

    Raises:
        FileNotFoundError: There are none.
        ValueError: Several files would do.
    """
    found = [data] if data.is_file() or formats.is_other(data) else []
    found = found or [data / name for name in BESIDE if (data / name).is_file()]
    found = found or sorted((data / "annotations").glob("*.json"))
    found = found or [data / name for name in ("data.yaml",) if (data / name).is_file()]
    found = found or [data / name for name in ("Annotations",) if formats.is_voc(data / name)]
    if not found:
        raise FileNotFoundError(f"{data}: found no annotations; expected annotations.json, data.yaml or Annotations/")
    if len(found) > 1:
        raise ValueError(f"{data}: expected one annotation file, found {' and '.join(map(str, found))}; name it")
    return found[0], images_of(found[0])


def _purpose(split: str) -> str:
    return "train on" if split == "train" else "evaluate on"


def images_of(annotations: Path) -> Path:
    """Return the folder in which the images of an annotation file are expected, by where the file lies."""
    if formats.is_other(annotations):
        return formats.images_of(annotations)
    folder = annotations.parent
    if (folder / "images").is_dir():
        return folder / "images"
    if folder.name == "annotations":
        subset = annotations.name.partition(".")[0].removeprefix("instances_")
        for images in (folder.parent / "images" / subset, folder.parent / subset, folder.parent / "images"):
            if images.is_dir():
                return images
    return folder


class Locator:
    """Find recorded images in a folder.

    A name is tried as it is; with slashes for Windows' separators; in both forms of composed letters; without the
    escapes of addresses (%20); where no other record has it, by its last part alone; and in any mixture of capital and
    small letters, if only one file has it.

    Args:
        folder: Folder of the images.
        names: All recorded names.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = str(folder), names
        self._counts: Counter[str] | None = None
        self._listed: dict[str, dict[str, str | None]] = {}

    def find(self, name: str) -> str | None:
        """Return the name of the file that a recorded name means, relative to the folder; None if there is none."""
        found = next((one for one in self._candidates(name) if os.path.isfile(os.path.join(self._folder, one))), None)
        return found or next(filter(None, map(self._any_case, self._candidates(name))), None)

    def _any_case(self, name: str) -> str | None:
        """Return the one file whose name differs by capital letters only."""
        folder, last = os.path.split(name)
        if folder not in self._listed:
            names: dict[str, str | None] = {}
            try:
                for one in os.listdir(os.path.join(self._folder, folder)):
                    names[one.lower()] = None if one.lower() in names else one
            except (OSError, ValueError):
                names = {}
            self._listed[folder] = names
        found = self._listed[folder].get(last.lower())
        path = None if found is None else os.path.join(folder, found)
        return path if path is not None and os.path.isfile(os.path.join(self._folder, path)) else None

    def _candidates(self, name: str) -> Iterator[str]:
        yield name
        plain = name.replace("\\", "/")
        yield plain
        for form in ("NFC", "NFD"):
            yield unicodedata.normalize(form, plain)  # type: ignore[arg-type]
        yield unquote(plain)
        if self._counts is None:
            self._counts = Counter(map(last_part, self._names))
        if self._counts[last_part(name)] <= 1:
            yield last_part(name)


def last_part(name: str) -> str:
    """Return the last part of a path, whatever separators it has."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]
