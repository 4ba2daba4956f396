"""Data in one folder, divided into a part to train on and a part to evaluate on."""

import hashlib
import json
from pathlib import Path
from typing import Any

from detops.apps.data import formats
from detops.apps.data.json_file import load
from detops.apps.data.layouts import find_whole
from detops.apps.data.records import file_name
from detops.apps.outputs import Outputs

NAMES = ("data/train.json", "data/val.json")


def divide(data: Path, fraction: float, outputs: Outputs) -> tuple[Path, Path, Path, Path]:
    """Write the annotations of both parts as COCO files.

    Which image is in which part follows from the file names alone, whatever their order in the file.

    Args:
        data: A folder, or an annotation file, of data that are not divided.
        fraction: Fraction of the images to evaluate on, above 0 and below 1.
        outputs: Folder to write to.

    Returns:
        Annotations and images to train on, and those to evaluate on: the fields of `settings.Data`.

    Raises:
        ValueError: There is no such fraction, or the data are invalid.
        FileNotFoundError: There are no data.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"split: expected a fraction above 0 and below 1, got {fraction}")
    path, images = find_whole(data)
    content = formats.load(path) if formats.is_other(path) else load(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f'{path}: expected COCO annotations, an object with a list "images"')
    records: list[Any] = content["images"]
    if len(records) < 2:
        raise ValueError(f"{path}: expected at least two images to divide, got {len(records)}")
    order = sorted(range(len(records)), key=lambda row: _hash(records[row]))
    held = set(order[: min(max(1, round(fraction * len(records))), len(records) - 1)])
    for name, part in zip(NAMES, (False, True), strict=True):
        mine = [record for row, record in enumerate(records) if (row in held) == part]
        ids = {_key(record, "id") for record in mine}
        kept = [one for one in content.get("annotations") or [] if _key(one, "image_id") in ids]
        outputs.write(name, json.dumps({**content, "images": mine, "annotations": kept}))
    train, val = (outputs.folder / name for name in NAMES)
    return train, images, val, images


def _hash(record: Any) -> str:
    name = file_name(record, str(record.get("id"))) if isinstance(record, dict) else repr(record)
    return hashlib.sha256(str(name).encode("utf-8", "backslashreplace")).hexdigest()


def _key(record: Any, name: str) -> str:
    """Return an id as a key, told apart by type; records without one go to both parts, and are judged there."""
    return repr(record.get(name)) if isinstance(record, dict) else ""
