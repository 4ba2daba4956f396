"""COCO annotations as tensors: the valid boxes of the whole set, and a list of the invalid ones with the reason."""

import contextlib
import gzip
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detops.apps import require


@dataclass(frozen=True)
class ImageRecord:
    """An image as the annotation file records it; sizes in pixels."""

    id: int | str
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Skipped:
    """An annotation that gives no box. `broken` tells a mistake from a crowd region."""

    image_id: int | str | None
    annotation_id: int | str | None
    reason: str
    broken: bool = True

    def __str__(self) -> str:
        return f"image {self.image_id}, annotation {self.annotation_id}: {self.reason}"


@dataclass(frozen=True)
class Annotations:
    """The annotations of a data set.

    Attributes:
        images: The images, in the order of the file.
        boxes: (T, 4) float64 xyxy in pixels of their image, clipped to it; sorted by image.
        labels: (T,) int64, index into `class_names`.
        image_index: (T,) int64, index into `images`.
        class_names: Names in the order of the category ids, which may have gaps.
        skipped: Annotations that gave no box.
        clipped: Number of boxes that extended beyond their image.
        crowds: (K, 4) regions marked `iscrowd`, in the format of `boxes`; to be ignored, not detected.
        crowd_index: (K,) int64, index into `images`.
        category_ids: Id of each class in the file.
        rle_masks: Number of segmentations that are run-length encoded.
    """

    images: list[ImageRecord]
    boxes: Tensor
    labels: Tensor
    image_index: Tensor
    class_names: list[str]
    skipped: list[Skipped]
    clipped: int
    crowds: Tensor
    crowd_index: Tensor
    category_ids: list[int]
    rle_masks: int = 0

    @property
    def broken(self) -> list[Skipped]:
        """Return the annotations that are mistakes."""
        return [skipped for skipped in self.skipped if skipped.broken]

    def reasons(self) -> dict[str, int]:
        """Count the skipped annotations by reason."""
        return dict(Counter(skipped.reason for skipped in self.skipped))

    def of_image(self, index: int) -> tuple[Tensor, Tensor]:
        """Return boxes (n, 4) and labels (n,) of one image."""
        mine = self.image_index == index
        return self.boxes[mine], self.labels[mine]

    def crowds_of_image(self, index: int) -> Tensor:
        """Return the crowd regions (k, 4) of one image."""
        return self.crowds[self.crowd_index == index]

    def select(self, image_ids: Sequence[str] = (), limit: int | None = None) -> "Annotations":
        """Select some images and everything that belongs to them.

        Args:
            image_ids: Ids of the images to keep, as text; none keeps all.
            limit: Largest number of images to keep.

        Raises:
            ValueError: An id is not in the set.
        """
        index_of = {str(image.id): index for index, image in enumerate(self.images)}
        unknown = [image_id for image_id in image_ids if image_id not in index_of]
        if unknown:
            raise ValueError(f"image-id: expected ids of images in the file, got {', '.join(unknown)}")
        kept = sorted({index_of[image_id] for image_id in image_ids}) if image_ids else list(range(len(self.images)))
        kept = kept[:limit]
        position = torch.full((len(self.images),), -1)
        position[kept] = torch.arange(len(kept))
        image_index, crowd_index = position[self.image_index], position[self.crowd_index]
        mine = image_index >= 0
        images = [self.images[index] for index in kept]
        known, names = {image.id for image in images}, {image.id for image in self.images}
        return replace(
            self,
            images=images,
            boxes=self.boxes[mine],
            labels=self.labels[mine],
            image_index=image_index[mine],
            crowds=self.crowds[crowd_index >= 0],
            crowd_index=crowd_index[crowd_index >= 0],
            # Annotations of unknown images belong to no selection, so they are reported in each.
            skipped=[s for s in self.skipped if s.image_id in known or s.image_id not in names],
        )


def read(path: Path) -> Annotations:
    """Read a COCO file, .json or .json.gz.

    Raises:
        ValueError: The file is not in COCO's format at all.
        ModuleNotFoundError: pycocotools is not installed.
    """
    index = _index(load(path), path)
    images = [
        ImageRecord(image["id"], str(image.get("file_name", image["id"])), int(image["height"]), int(image["width"]))
        for image in index.imgs.values()
    ]
    row_of = {image.id: row for row, image in enumerate(images)}
    categories = sorted(index.cats.values(), key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories)}

    checked, skipped = [], []
    for annotation in index.dataset["annotations"]:
        problem = _problem(annotation, row_of, label_of)
        if problem is None:
            checked.append(annotation)
        else:
            skipped.append(_skip(annotation, problem))
    xywh = torch.tensor([list(map(float, a["bbox"])) for a in checked], dtype=torch.float64).reshape(-1, 4)
    labels = torch.tensor([label_of[a["category_id"]] for a in checked], dtype=torch.int64)
    image_index = torch.tensor([row_of[a["image_id"]] for a in checked], dtype=torch.int64)
    is_crowd = torch.tensor([bool(a.get("iscrowd")) for a in checked], dtype=torch.bool)
    valid, xyxy, reasons, clipped = _check_boxes(xywh, images, image_index)
    skipped += [_skip(checked[row], reason) for row, reason in reasons]
    skipped += [_skip(checked[row], "crowd", broken=False) for row in (valid & is_crowd).nonzero()[:, 0].tolist()]
    order = image_index.argsort(stable=True)
    box, crowd = (order[mine[order]] for mine in (valid & ~is_crowd, valid & is_crowd))
    return Annotations(
        images=images,
        boxes=xyxy[box],
        labels=labels[box],
        image_index=image_index[box],
        class_names=[str(category.get("name", category["id"])) for category in categories],
        skipped=skipped,
        clipped=int(clipped[box].sum()),
        crowds=xyxy[crowd],
        crowd_index=image_index[crowd],
        category_ids=[category["id"] for category in categories],
        rle_masks=sum(isinstance(a.get("segmentation"), dict) for a in checked),
    )


def load(path: Path) -> Any:
    """Parse a JSON file, compressed or not."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            return json.load(file)  # reads the token Infinity too, which broken files hold
    except (UnicodeDecodeError, json.JSONDecodeError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: expected COCO annotations as JSON, got {error}") from error


def _index(data: Any, path: Path) -> Any:
    """Index well-formed records with pycocotools.

    Raises:
        ValueError: There are no images, or an image has no id or size.
    """
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise ValueError(f'{path}: expected COCO annotations, an object with a list "images"')
    for image in data["images"]:
        if not (isinstance(image, dict) and {"id", "height", "width"} <= image.keys()):
            raise ValueError(f"{path}: expected id, height and width of every image, got {image!r:.80}")
    coco = require("pycocotools.coco", "pycocotools").COCO()
    annotations = [a if isinstance(a, dict) else {} for a in data.get("annotations") or []]
    categories = [c for c in data.get("categories") or [] if isinstance(c, dict) and "id" in c]
    coco.dataset = {"images": data["images"], "categories": categories, "annotations": []}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    coco.dataset["annotations"] = annotations  # after indexing, which fails on invalid ones
    return coco


def _skip(annotation: dict[str, Any], reason: str, broken: bool = True) -> Skipped:
    return Skipped(annotation.get("image_id"), annotation.get("id"), reason, broken)


def _problem(annotation: dict[str, Any], images: dict[Any, int], labels: dict[Any, int]) -> str | None:
    """Say why a record gives no numbers to check, if so."""
    bbox = annotation.get("bbox")
    if annotation.get("image_id") not in images:
        return "unknown image"
    if annotation.get("category_id") not in labels:
        return "unknown category"
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(v, int | float) for v in bbox)):
        return "malformed bbox"
    return None


def _check_boxes(
    xywh: Tensor, images: list[ImageRecord], image_index: Tensor
) -> tuple[Tensor, Tensor, list[tuple[int, str]], Tensor]:
    """Check all boxes at once.

    Args:
        xywh: (T, 4) left, top, width, height.
        images: All images.
        image_index: (T,) index of each box's image.

    Returns:
        Which are valid, (T,) bool; the boxes as xyxy, clipped to their image, (T, 4); row and reason of each invalid
        box; and which were clipped, (T,) bool.
    """
    sizes = torch.tensor([[image.width, image.height] for image in images], dtype=torch.float64).reshape(-1, 2)
    size = sizes[image_index]
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    problems = {
        "not finite": ~xywh.isfinite().all(1),
        "zero or negative size": (xywh[:, 2:] <= 0).any(1),
        "outside the image": ((high <= 0) | (low >= size)).any(1),
    }
    reason = torch.full((len(xywh),), -1)
    for code, bad in enumerate(problems.values()):
        reason = torch.where((reason < 0) & bad, code, reason)
    names = list(problems)
    bad_rows = [(row, names[int(reason[row])]) for row in (reason >= 0).nonzero()[:, 0].tolist()]
    inside = torch.cat([torch.minimum(low.clamp(min=0), size), torch.minimum(high, size)], 1)
    # Up to a tenth of a pixel is rounding of the annotation, not a box that extends beyond its image.
    clipped = ((low < -0.1) | (high > size + 0.1)).any(1)
    return reason < 0, inside, bad_rows, clipped
