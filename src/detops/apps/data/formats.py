"""Data sets beside COCO's format, as COCO's records, which are judged like all others: YOLO's, and Pascal VOC's.

A split of a YOLO data set is named as if `data.yaml` were a folder: `data.yaml/val`; `data.yaml` alone is its training
split. A VOC data set is named by its list of images, such as `ImageSets/Main/val.txt`, or by its folder `Annotations`.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from detops.apps import require
from detops.apps.data.images import facts, is_image
from detops.arguments import flat

SUFFIXES = (".yaml", ".yml")
Json = dict[str, Any]


def is_yolo(path: Path) -> bool:
    """Whether a path names a split of a YOLO data set."""
    return path.suffix in SUFFIXES or path.parent.suffix in SUFFIXES


def is_voc(path: Path) -> bool:
    """Whether a path names images of a VOC data set."""
    listed = path.suffix == ".txt" and path.parent.parent.name == "ImageSets"
    return listed or (path.is_dir() and any(path.glob("*.xml")))


def is_other(path: Path) -> bool:
    """Whether a path names data in another format than COCO's."""
    return is_yolo(path) or is_voc(path)


def exists(path: Path) -> bool:
    """Whether there is such an annotation file, or such a split."""
    return path.exists() or (path.parent.suffix in SUFFIXES and path.parent.is_file())


def images_of(path: Path) -> Path:
    """Return the folder to which the file names of such data are relative."""
    if is_voc(path):
        return _voc_root(path) / "JPEGImages"
    return _yolo_root(*_yolo_split(path)[:1])


def load(path: Path) -> Json:
    """Read such data as COCO's records.

    Args:
        path: What names them; see the module.

    Raises:
        ValueError: They are damaged; the message names the file.
        FileNotFoundError: There is no such file or split.
        ModuleNotFoundError: supervision (YOLO) or torchvision (VOC) is not installed.
    """
    return _load_voc(path) if is_voc(path) else _load_yolo(path)


def _yolo_split(path: Path) -> tuple[Path, str]:
    """Return the `data.yaml` and the name of the split."""
    return (path, "train") if path.suffix in SUFFIXES else (path.parent, path.name)


def read_yaml(path: Path) -> Json:
    """Read a `data.yaml`.

    Raises:
        ValueError: It is none.
        ModuleNotFoundError: PyYAML is not installed.
    """
    yaml = require("yaml", "PyYAML", extra="formats")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a data.yaml of a YOLO data set: {flat(error, 200)}") from None
    if not isinstance(content, dict) or "names" not in content:
        raise ValueError(f"{path}: expected a data.yaml of a YOLO data set, with names")
    return content


def _yolo_root(path: Path) -> Path:
    """Return the folder to which the paths of a `data.yaml` are relative."""
    root = read_yaml(path).get("path")
    return path.parent if root is None else path.parent / str(root)


def splits(path: Path) -> list[str]:
    """List the splits of a `data.yaml`: those of "train", "val" and "test" that it names."""
    content = read_yaml(path)
    return [name for name in ("train", "val", "test") if content.get(name)]


def _load_yolo(path: Path) -> Json:
    file, split = _yolo_split(path)
    content, root = read_yaml(file), _yolo_root(file)
    module = require("supervision.dataset.formats.yolo", "supervision", extra="formats")
    parts = content.get(split)
    if not parts:
        raise FileNotFoundError(f"{file}: names no images for {split}")
    names = content["names"]
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    paths = [one for part in (parts if isinstance(parts, list) else [parts]) for one in _yolo_images(file, root, part)]
    keypoints = content.get("kpt_shape")
    length = 5 + keypoints[0] * keypoints[1] if keypoints else 0
    images: list[Json] = []
    annotations: list[Json] = []
    with ThreadPoolExecutor(4) as pool:
        sizes = list(pool.map(_size, paths))
    for number, (image, size) in enumerate(zip(paths, sizes, strict=True)):
        record: Json = {"id": number, "file_name": os.path.relpath(image, root)}
        if size is not None:
            record |= {"width": size[0], "height": size[1]}
        images.append(record)
        label = _yolo_labels(image)
        if size is None or not label.is_file():  # without a file, there is nothing on it
            continue
        for line in filter(str.strip, label.read_text(encoding="utf-8", errors="replace").splitlines()):
            words = line.split()
            line = " ".join(words[:5]) if len(words) == length else line  # keypoints follow the box
            annotation: Json = {"image_id": number}
            try:
                found = module.yolo_annotations_to_detections([line], size, with_masks=False)
                x1, y1, x2, y2 = found.xyxy[0].tolist()
                annotation |= {"category_id": int(found.class_id[0]), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            except ValueError:
                words = line.split()
                category = int(words[0]) if words[0].isdecimal() else words[0]
                annotation |= {"category_id": category, "bbox": f"{label.name}: {line}"}
            annotations.append(annotation)
    categories = [{"id": int(number), "name": str(name)} for number, name in pairs]
    return {"images": images, "annotations": annotations, "categories": categories}


def _yolo_images(file: Path, root: Path, part: object) -> list[Path]:
    """List the images of a part of a split: a folder, or a text file with a path in each line."""
    text = str(part)
    plain = text.removeprefix("../")  # which Roboflow writes of folders beside data.yaml
    found = next((place for place in (root / text, file.parent / text, file.parent / plain) if place.exists()), None)
    if found is None:
        raise FileNotFoundError(f"{file}: {text}: no such folder or list of images in {root}")
    if found.is_dir():
        return sorted(one for one in found.rglob("*") if is_image(one.name))
    lines = found.read_text(encoding="utf-8", errors="replace").split("\n")
    base = found.parent
    return [
        base / line.strip() if (base / line.strip()).exists() else root / line.strip() for line in lines if line.strip()
    ]


def _yolo_labels(image: Path) -> Path:
    """Return the label file of an image: in the folder labels that lies beside the last folder images."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _size(image: Path) -> tuple[int, int] | None:
    try:
        return facts(image).size
    except (ValueError, OSError):
        return None  # judged as an image without size


def _voc_root(path: Path) -> Path:
    return path.parent if path.is_dir() else path.parent.parent.parent


def _load_voc(path: Path) -> Json:
    root, module = _voc_root(path), require("torchvision.datasets", "torchvision", extra="torchvision")
    folder = path if path.is_dir() else root / "Annotations"
    every = sorted(folder.glob("*.xml"))
    parsed = {one.stem: _parse_xml(one, module.VOCDetection.parse_voc_xml) for one in every}
    # The format has no list of classes: those of all images, so that each split has the same.
    names = sorted({str(part.get("name")) for one in parsed.values() for part in _objects(one)})
    stems = list(parsed) if path.is_dir() else list(_listed(path))
    lost = next((stem for stem in stems if stem not in parsed), None)
    if lost is not None:
        raise FileNotFoundError(f"{path}: {folder / (lost + '.xml')}: no such file")
    images = [{"id": stem, "file_name": _voc_image(parsed[stem], stem), **_voc_size(parsed[stem])} for stem in stems]
    annotations = [
        {"image_id": stem, "category_id": names.index(str(part.get("name"))), "bbox": _voc_box(part),
         "iscrowd": int(part.get("difficult") == "1")}
        for stem in stems for part in _objects(parsed[stem])
    ]  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _parse_xml(path: Path, parse: Any) -> Json:
    try:
        content = parse(ElementTree.parse(path).getroot())
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: expected an annotation of Pascal VOC: {flat(error, 200)}") from None
    found = content.get("annotation")
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an annotation of Pascal VOC, got <{next(iter(content), '')}>")
    return found


def _objects(annotation: Json) -> list[Json]:
    found = annotation.get("object", [])
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]


def _listed(path: Path) -> Iterator[str]:
    """Yield the images of a list; in those of one class, -1 marks images without it."""
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words and words[-1] != "-1":
            yield words[0]


def _voc_image(annotation: Json, stem: str) -> str:
    name = annotation.get("filename")
    return name if isinstance(name, str) and Path(name).suffix else f"{stem}.jpg"


def _voc_size(annotation: Json) -> Json:
    size = annotation.get("size")
    try:
        return {name: int(size[name]) for name in ("width", "height")}  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        return {}


def _voc_box(part: Json) -> Any:
    """Return a box as COCO has it; pixels are counted from 1, and the last one belongs to the box."""
    box = part.get("bndbox")
    try:
        left, top, right, bottom = (float(box[name]) for name in ("xmin", "ymin", "xmax", "ymax"))  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        return box
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]
