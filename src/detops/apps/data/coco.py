"""COCO annotation files, judged once: images, categories and a table of good annotations, and what was wrong.

file -> JSON -> records judged -> Annotations
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from detops.apps import require
from detops.apps.data import formats
from detops.apps.data.json_file import load, unhurried_collector
from detops.apps.data.masks import Rle, areas, judge_mask
from detops.apps.data.problems import Level, Problems, shown
from detops.apps.data.records import ImageRecord, judge_categories, judge_images
from detops.apps.data.table import Table, judge_annotations, place_of_annotation

__all__ = ["Annotations", "ImageRecord", "read"]


@dataclass(frozen=True)
class Annotations:
    """The annotations of a data set.

    Attributes:
        images: The images, in the order of the file.
        table: The good annotations, sorted by image; objects and crowds.
        class_names: Names in the order of the category ids, which may have gaps; all differ.
        category_ids: Id of each class in the file, a number or text.
        problems: What is wrong or odd with the file as a whole.
        total: Number of annotations in the file.
        rle_masks: Number of segmentations that are run-length encoded.
        masks: Mask of each annotation of the table, where masks were asked for.
    """

    images: list[ImageRecord]
    table: Table
    class_names: list[str]
    category_ids: list[Any]
    problems: Problems
    total: int
    rle_masks: int = 0
    masks: list[Rle] | None = None

    @cached_property
    def boxes(self) -> Tensor:
        """(T, 4) float64 xyxy of the objects, in pixels of their image, clipped to it; sorted by image."""
        return torch.from_numpy(self.table.xyxy[~self.table.crowd])

    @cached_property
    def labels(self) -> Tensor:
        """(T,) int64, index of the objects' classes in `class_names`."""
        return torch.from_numpy(self.table.label[~self.table.crowd])

    @cached_property
    def image_index(self) -> Tensor:
        """(T,) int64, index of the objects' images in `images`."""
        return torch.from_numpy(self.table.image[~self.table.crowd])

    @cached_property
    def crowds(self) -> Tensor:
        """(K, 4) regions marked `iscrowd`, in the format of `boxes`; to be ignored, not detected."""
        return torch.from_numpy(self.table.xyxy[self.table.crowd])

    @cached_property
    def crowd_index(self) -> Tensor:
        """(K,) int64, index of the crowds' images in `images`."""
        return torch.from_numpy(self.table.image[self.table.crowd])

    @cached_property
    def _starts(self) -> tuple[list[int], list[int]]:
        """Where the objects and the crowds of each image begin, and where the last ends."""
        edges = torch.arange(len(self.images) + 1)
        first, second = (torch.searchsorted(index, edges).tolist() for index in (self.image_index, self.crowd_index))
        return first, second

    @property
    def clipped(self) -> int:
        """Return the number of objects of the file whose boxes reached beyond their image."""
        return self.problems.counts().get("clipped", 0)

    @property
    def broken(self) -> int:
        """Return the number of records of the file that were left out."""
        return sum(self.problems.counts(Level.LEFT_OUT).values())

    def reasons(self) -> dict[str, int]:
        """Count what was left out, and the crowds, by reason."""
        crowds = self.problems.counts().get("crowd", 0)
        return self.problems.counts(Level.LEFT_OUT) | ({"crowd": crowds} if crowds else {})

    def of_image(self, index: int) -> tuple[Tensor, Tensor]:
        """Return boxes (n, 4) and labels (n,) of one image."""
        mine = slice(*self._starts[0][index : index + 2])
        return self.boxes[mine], self.labels[mine]

    def crowds_of_image(self, index: int) -> Tensor:
        """Return the crowd regions (k, 4) of one image."""
        return self.crowds[slice(*self._starts[1][index : index + 2])]

    def select(self, image_ids: Sequence[str] = (), limit: int | None = None) -> "Annotations":
        """Select some images and everything that belongs to them; the problems stay those of the file.

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
        return self.at(kept[:limit])

    def at(self, rows: Sequence[int], images: Sequence[ImageRecord] | None = None) -> "Annotations":
        """Keep the images at some positions, and everything that belongs to them.

        Args:
            rows: Positions, in ascending order.
            images: Records in place of those that are kept.
        """
        np = require("numpy", "numpy")
        position = np.full(len(self.images), -1)
        position[list(rows)] = np.arange(len(rows))
        image = position[self.table.image]
        table = self.table._replace(image=image).take(image >= 0)
        masks = self.masks and [self.masks[row] for row in np.flatnonzero(image >= 0).tolist()]
        records = list(images) if images else [self.images[row] for row in rows]
        return replace(self, images=records, table=table, masks=masks)

    def accept(self, path: Path, console: Console, strict: bool, objects: bool = True) -> None:
        """Tell what is wrong, and refuse a set that cannot be used.

        Args:
            path: Its file, for the messages.
            console: Where the lines are printed.
            strict: Refuse a set of which anything is left out or doubtful.
            objects: Refuse one without objects.

        Raises:
            ValueError: It is refused.
        """
        self.problems.tell(console, path)
        self.require(path, objects)
        self.problems.require_none(path, strict)

    def require(self, path: Path, objects: bool = True) -> None:
        """Refuse a set that cannot be used.

        Args:
            path: Its file, for the message.
            objects: Refuse one without objects too.

        Raises:
            ValueError: An id stands for several things; there is no image; or there is no object.
        """
        refused = self.problems.first(Level.REFUSED)
        if refused:
            raise ValueError(f"{path}: {refused}")
        left_out = self.problems.first(Level.LEFT_OUT)
        reason = f"; {left_out}" if left_out else ""
        if not self.images:
            raise ValueError(f"{path}: no image is left{reason}")
        if objects and not len(self.boxes):
            if not self.total:
                raise ValueError(f"{path}: there are no annotations in it")
            crowds = f", {len(self.crowds):,} of them crowds, which are ignored" if len(self.crowds) else ""
            raise ValueError(f"{path}: no object is left of {self.total:,} annotations{crowds}{reason}")


def read(path: Path, images: Path | None = None, masks: bool = False) -> Annotations:
    """Read a COCO file, plain or compressed, or data in YOLO's or VOC's format, and judge each record once.

    Args:
        path: The file, or what `formats` calls other data by.
        images: Folder of the images, from which sizes that the file lacks are taken; None leaves those images out.
        masks: Judge and keep the masks too, and leave out annotations whose segmentation is none.

    Raises:
        ValueError: The file is not in COCO's format at all.
        OSError: It cannot be read.
    """
    data = formats.load(path) if formats.is_other(path) else load(path)
    with unhurried_collector():
        return judge(data, path, images, masks)


def judge(data: Any, path: Path, images: Path | None = None, masks: bool = False) -> Annotations:
    """Judge what a COCO file holds; the arguments and errors are those of `read`."""
    if isinstance(data, list):
        raise ValueError(
            f'{path}: expected COCO annotations, an object with a list "images", got a list; is it a results file?'
        )
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        keys = f" with {', '.join(map(shown, list(data)[:5])) or 'nothing'}" if isinstance(data, dict) else ""
        kind = "an object" if isinstance(data, dict) else type(data).__name__
        raise ValueError(f'{path}: expected COCO annotations, an object with a list "images", got {kind}{keys}')
    for name in ("annotations", "categories"):
        if not isinstance(data.get(name) or [], list):
            raise ValueError(f"{path}: {name}: expected a list, got {type(data[name]).__name__} {shown(data[name])}")
    problems = Problems()
    records, image_rows = judge_images(data["images"], images, problems)
    categories, labels = judge_categories(data.get("categories") or [], problems)
    annotations = data.get("annotations") or []
    table = judge_annotations(annotations, records, image_rows, labels, problems)
    kept = None
    if masks:
        table, kept = _judge_masks(annotations, table, records, problems)
    counts = require("numpy", "numpy").bincount(table.label[~table.crowd], minlength=len(categories.ids))
    empty = [label for label, count in enumerate(counts.tolist()) if not count] if annotations else []
    problems.add(
        "category: no object",
        Level.NOTE,
        "categories have no object",
        empty,
        lambda label: shown(categories.names[label]),
    )
    rle = sum(isinstance(a, dict) and isinstance(a.get("segmentation"), dict) for a in annotations)
    return Annotations(records, table, categories.names, categories.ids, problems, len(annotations), rle, kept)


def _judge_masks(
    annotations: list[Any], table: Table, images: list[ImageRecord], problems: Problems
) -> tuple[Table, list[Rle]]:
    """Judge the segmentations of the good annotations; return those that have a mask, and their masks."""
    masks: list[Rle] = []
    faults: dict[int, str] = {}
    good = []
    for row, (place, index) in enumerate(zip(table.place.tolist(), table.image.tolist(), strict=True)):
        try:
            masks.append(judge_mask(annotations[place].get("segmentation"), images[index].height, images[index].width))
            good.append(row)
        except ValueError as error:
            faults[place] = str(error)
    np = require("numpy", "numpy")
    drawn = np.array(areas(masks), float) > 0
    rows = np.array(good, int)
    faults |= dict.fromkeys(table.place[rows[~drawn]].tolist(), "a mask without a pixel")
    masks = [mask for mask, kept in zip(masks, drawn.tolist(), strict=True) if kept]
    problems.add(
        "malformed segmentation", Level.LEFT_OUT, "annotations left out, malformed segmentation", sorted(faults),
        lambda place: f"{place_of_annotation(annotations[place], place)}, {faults[place]}",
    )  # fmt: skip
    return table.take(rows[drawn]), masks
