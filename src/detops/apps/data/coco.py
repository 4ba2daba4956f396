"""COCO annotations as tensors: good boxes for the whole set at once, bad ones by name with the reason."""

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
    """An image as the file names it; sizes in pixels."""

    id: int | str
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Skipped:
    """An annotation that is no box to draw. `broken` tells a mistake from a crowd region."""

    image_id: int | str | None
    annotation_id: int | str | None
    reason: str
    broken: bool = True

    def __str__(self) -> str:
        return f"image {self.image_id}, annotation {self.annotation_id}: {self.reason}"


@dataclass(frozen=True)
class Annotations:
    """A data set.

    Attributes:
        images: The images, in the order of the file.
        boxes: (T, 4) float64 xyxy in pixels of their image, clipped to it; sorted by image.
        labels: (T,) int64, index into `class_names`.
        image_index: (T,) int64, index into `images`.
        class_names: Names in the order of the category ids, which may have gaps.
        skipped: Annotations that gave no box.
        clipped: How many boxes reached beyond their image.
        crowds: (K, 4) regions marked `iscrowd`, as `boxes` are; they are to be ignored, not found.
        crowd_index: (K,) int64, index into `images`.
        category_ids: Id of each class in the file.
        rle_masks: How many segmentations are run-length encoded.
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
        """The annotations that are mistakes."""
        return [skipped for skipped in self.skipped if skipped.broken]

    def reasons(self) -> dict[str, int]:
        """How many annotations were skipped for each reason."""
        return dict(Counter(skipped.reason for skipped in self.skipped))

    def of_image(self, index: int) -> tuple[Tensor, Tensor]:
        """Boxes (n, 4) and labels (n,) of one image."""
        mine = self.image_index == index
        return self.boxes[mine], self.labels[mine]

    def crowds_of_image(self, index: int) -> Tensor:
        """Crowd regions (k, 4) of one image."""
        return self.crowds[self.crowd_index == index]

    def select(self, image_ids: Sequence[str] = (), limit: int | None = None) -> "Annotations":
        """Keep some images and all that belongs to them.

        Args:
            image_ids: Ids of the images to keep, as text; none keeps all.
            limit: How many images to keep at most.

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
            # What names no image at all belongs to no selection, and is reported in each.
            skipped=[s for s in self.skipped if s.image_id in known or s.image_id not in names],
        )


def read(path: Path) -> Annotations:
    """Read a COCO file, .json or .json.gz.

    Raises:
        ValueError: The file is not COCO's format at all.
        ModuleNotFoundError: pycocotools is not installed.
    """
    index = _index(load(path), path)
    images = [
        ImageRecord(image["id"], str(image.get("file_name", image["id"])), int(image["height"]), int(image["width"]))
        for image in index.imgs.values()
    ]
    image_index = {image.id: position for position, image in enumerate(images)}
    categories = sorted(index.cats.values(), key=lambda category: category["id"])
    label = {category["id"]: position for position, category in enumerate(categories)}
    names = [str(category.get("name", category["id"])) for category in categories]

    boxes, labels, positions, skipped, owners = [], [], [], [], []
    for annotation in index.dataset["annotations"]:
        problem = _problem(annotation, image_index, label)
        if problem is None:
            boxes.append([float(value) for value in annotation["bbox"]])
            labels.append(label[annotation["category_id"]])
            positions.append(image_index[annotation["image_id"]])
            owners.append(annotation)
        else:
            skipped.append(_skip(annotation, problem, True))
    xywh = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    position = torch.tensor(positions, dtype=torch.int64)
    is_crowd = torch.tensor([bool(owner.get("iscrowd")) for owner in owners], dtype=torch.bool)
    good, xyxy, reasons, clipped = _judge(xywh, images, position)
    skipped += [_skip(owners[row], reason, True) for row, reason in reasons]
    skipped += [_skip(owners[row], "crowd", False) for row in (good & is_crowd).nonzero()[:, 0].tolist()]
    order = position.argsort(stable=True)
    box, crowd = (order[mine[order]] for mine in (good & ~is_crowd, good & is_crowd))
    return Annotations(
        images,
        xyxy[box],
        torch.tensor(labels, dtype=torch.int64)[box],
        position[box],
        names,
        skipped,
        int(clipped[box].sum()),
        xyxy[crowd],
        position[crowd],
        [category["id"] for category in categories],
        sum(isinstance(owner.get("segmentation"), dict) for owner in owners),
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
        ValueError: There are no images, or records that no reader could use.
    """
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise ValueError(f'{path}: expected COCO annotations, an object with a list "images"')
    for image in data["images"]:
        if not (isinstance(image, dict) and {"id", "height", "width"} <= image.keys()):
            raise ValueError(f"{path}: expected id, height and width of every image, got {image!r:.80}")
    coco = require("pycocotools.coco", "pycocotools", "targets").COCO()
    annotations = [a if isinstance(a, dict) else {} for a in data.get("annotations") or []]
    categories = [c for c in data.get("categories") or [] if isinstance(c, dict) and "id" in c]
    coco.dataset = {"images": data["images"], "categories": categories, "annotations": []}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    coco.dataset["annotations"] = annotations  # after the index, which cannot bear broken ones
    return coco


def _skip(annotation: dict[str, Any], reason: str, broken: bool) -> Skipped:
    return Skipped(annotation.get("image_id"), annotation.get("id"), reason, broken)


def _problem(annotation: dict[str, Any], images: dict[Any, int], labels: dict[Any, int]) -> str | None:
    """Why a record gives no numbers to judge."""
    bbox = annotation.get("bbox")
    if annotation.get("image_id") not in images:
        return "unknown image"
    if annotation.get("category_id") not in labels:
        return "unknown category"
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(v, int | float) for v in bbox)):
        return "malformed bbox"
    return None


def _judge(
    xywh: Tensor, images: list[ImageRecord], position: Tensor
) -> tuple[Tensor, Tensor, list[tuple[int, str]], Tensor]:
    """Sort all boxes at once into good and bad.

    Args:
        xywh: (T, 4) left, top, width, height.
        images: All images.
        position: (T,) image of each box.

    Returns:
        (T,) bool: good; (T, 4) xyxy clipped to the image; row and reason of each bad one; (T,) bool: was clipped.
    """
    sizes = torch.tensor([[image.width, image.height] for image in images], dtype=torch.float64).reshape(-1, 2)
    size = sizes[position]
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
    # A tenth of a pixel is how annotations are rounded, not a box that reaches beyond its image.
    clipped = ((low < -0.1) | (high > size + 0.1)).any(1)
    return reason < 0, inside, bad_rows, clipped
