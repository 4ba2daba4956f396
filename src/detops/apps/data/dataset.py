"""COCO folders as batches: images decoded and resized once, augmented a whole batch at a time on its device.

annotations.json + images/ -> CocoImages -> Batch (uint8) -> augment / normalize -> the network's input
"""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from detops.apps import require
from detops.apps.data.coco import Annotations, read
from detops.ragged import RaggedBatch

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, 0 .. 255
MULTIPLE = 32  # sides of a network's input
LINES = 50  # mistakes of one kind that are printed before they are only counted


class Batch(NamedTuple):
    """Some images and what is on them; boxes are xyxy in pixels of `images`.

    Attributes:
        images: (B, 3, H, W) uint8, or float32 after `augment`.
        boxes: (B, N, 4) float32.
        labels: (B, N) int64; -1 where a box is not asked for.
        ignore_boxes: (B, M, 4) float32, regions without negatives.
        rows: (B,) int64, positions in the data set.
    """

    images: Tensor
    boxes: RaggedBatch
    labels: RaggedBatch
    ignore_boxes: RaggedBatch
    rows: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.boxes.to(device),
            self.labels.to(device),
            self.ignore_boxes.to(device),
            self.rows,
        )


def find_split(data: Path, split: str) -> tuple[Path, Path]:
    """Annotations and image folder of `data/split`.

    Raises:
        FileNotFoundError: There is no annotation file.
    """
    folder = data / split
    for name in ("annotations.json", "_annotations.coco.json"):
        if (folder / name).exists():
            images = folder / "images"
            return folder / name, images if images.is_dir() else folder
    raise FileNotFoundError(f"{folder}: expected annotations.json and a folder images; or name files explicitly")


def open_annotations(path: Path, images: Path, strict: bool, console: Console) -> Annotations:
    """Read annotations, tell what is wrong with them in a line each, and leave it out.

    Args:
        path: COCO annotations.
        images: Folder of the images.
        strict: Stop at mistakes.
        console: Where the lines go.

    Raises:
        ValueError: With `strict`, something is wrong; or no image is left.
    """
    annotations = read(path)
    missing = [image for image in annotations.images if not (images / image.file_name).is_file()]
    lines = [f"skipped {skipped}" for skipped in annotations.broken]
    lines += [f"skipped image {image.id}: no file {images / image.file_name}" for image in missing]
    for line in lines[:LINES]:
        console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if len(lines) > LINES:
        console.print(f"and {len(lines) - LINES} more mistakes in {path}", style="yellow", markup=False, soft_wrap=True)
    if lines and strict:
        raise ValueError(f"{path}: {len(lines)} mistakes, the first: {lines[0]}")
    for count, text in (
        (len(annotations.crowds), "crowd annotations: ignored regions, neither found nor missed"),
        (annotations.rle_masks, "run-length encoded masks: only their boxes are used"),
    ):
        if count:
            console.print(f"{path}: {count} {text}", highlight=False, markup=False, soft_wrap=True)
    if missing:
        gone = {image.id for image in missing}
        kept = [str(image.id) for image in annotations.images if image.id not in gone]
        annotations = annotations.select(kept) if kept else replace(annotations, images=[])
    if not annotations.images:
        raise ValueError(f"{path}: expected at least one image in {images}, found none")
    return annotations


class CocoImages(Dataset[Batch]):
    """A data set whose images are resized to fit one size, at its top left; the rest is the mean colour.

    They are decoded once and kept as bytes where they fit the limit; else each access decodes.

    Args:
        annotations: What is on the images.
        folder: Where they are.
        size: Height and width of the network's input; rounded up to multiples of 32.
        strict: Raise for an image that cannot be decoded. Otherwise it is a blank whose whole area is ignored.
        memory_limit: Bytes to keep at most.
        console: Where lines about such images go.
    """

    def __init__(
        self, annotations: Annotations, folder: Path, size: tuple[int, int], strict: bool, memory_limit: int,
        console: Console,
    ) -> None:  # fmt: skip
        self.annotations, self.folder, self.size, self.strict = annotations, folder, size, strict
        self.shape = padded_shape(size)
        self._console = console
        self._boxes = [annotations.of_image(row) for row in range(len(annotations.images))]
        self._crowds = [annotations.crowds_of_image(row) for row in range(len(annotations.images))]
        self.kept: Tensor | None = None
        self.broken: set[int] = set()
        if len(self) * 3 * math.prod(self.shape) <= memory_limit:
            kept = torch.empty(len(self), 3, *self.shape, dtype=torch.uint8)
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding the interpreter
                for row, image in enumerate(pool.map(self._decode, range(len(self)))):
                    kept[row] = image
            self.kept = kept

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_console": Console()}  # a console has locks, which do not go to workers

    def __len__(self) -> int:
        return len(self.annotations.images)

    def scale(self, row: int) -> tuple[float, float]:
        """Pixels of the input a pixel of the image, along x and y."""
        record = self.annotations.images[row]
        width, height = fitted((record.width, record.height), self.size)
        return width / record.width, height / record.height

    def _decode(self, row: int) -> Tensor:
        path = self.folder / self.annotations.images[row].file_name
        try:
            return load_image(path, self.size)[0]
        except ValueError as error:
            if self.strict:
                raise
            if row not in self.broken:
                self.broken.add(row)
                self._console.print(
                    f"blank instead of {error}", style="yellow", highlight=False, markup=False, soft_wrap=True
                )
            return torch.tensor(MEAN).to(torch.uint8)[:, None, None].expand(3, *self.shape)

    def __getitem__(self, row: int) -> Batch:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Rows as one batch; a `DataLoader` calls this with a sampler's batch."""
        images = torch.stack([self._decode(row) for row in rows]) if self.kept is None else self.kept[list(rows)]
        boxes, labels, ignored = [], [], []
        for row in rows:
            scale = torch.tensor(self.scale(row) * 2)
            box, label = self._boxes[row]
            crowds = self._crowds[row].float() * scale
            if row in self.broken:
                box, label = box[:0], label[:0]
                crowds = torch.tensor([[0.0, 0.0, self.shape[1], self.shape[0]]])
            boxes.append(box.float() * scale)
            labels.append(label)
            ignored.append(crowds)
        box_batch, label_batch, ignore_batch = (RaggedBatch.from_list(values) for values in (boxes, labels, ignored))
        return Batch(images, box_batch, label_batch, ignore_batch, torch.tensor(rows))


def padded_shape(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width rounded up to what the network takes."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in size)
    return height, width


def fitted(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image (width, height) resized to fit `size` (height, width)."""
    scale = min(size[1] / image[0], size[0] / image[1])
    return max(1, round(image[0] * scale)), max(1, round(image[1] * scale))


def decode(path: Path) -> "Image":
    """Read an image as RGB.

    Raises:
        ValueError: It cannot be decoded; names the file.
    """
    module = require("PIL.Image", "Pillow", "train")
    try:
        with module.open(path) as file:
            image: Image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, module.DecompressionBombError) as error:  # what Pillow's plugins raise
        raise ValueError(f"{path}: cannot be decoded: {error}") from error
    return image


def load_image(path: Path, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Decode, resize to fit, pad at the right and below.

    Returns:
        (3, H, W) uint8, sides multiples of 32; width and height of the file's image.

    Raises:
        ValueError: It cannot be decoded; names the file.
    """
    module, numpy = require("PIL.Image", "Pillow", "train"), require("numpy", "numpy", "train")
    image = decode(path)
    small = image.resize(fitted(image.size, size), module.Resampling.BILINEAR)
    shape = padded_shape(size)
    canvas = torch.tensor(MEAN).to(torch.uint8)[:, None, None].repeat(1, *shape)
    canvas[:, : small.height, : small.width] = torch.from_numpy(numpy.array(small)).permute(2, 0, 1)
    return canvas, image.size


class Steps(Sampler[list[int]]):
    """The batches of a whole training as one sequence that can begin anywhere: a resumed one sees what was left.

    Args:
        count: Images.
        batch_size: Images a step and rank.
        epochs: How often each is seen.
        seed: Of the order, which differs each epoch.
        start: Steps that are done already.
        rank: Which of the shares of a step is ours.
        world: How many shares.
    """

    def __init__(
        self, count: int, batch_size: int, epochs: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.count, self.batch_size, self.seed, self.start = count, batch_size, seed, start
        self.rank, self.world = rank, world
        self.per_epoch = max(1, count // (batch_size * world))
        self.total = self.per_epoch * epochs

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        order: list[int] = []
        for step in range(self.start, self.total):
            epoch, place = divmod(step, self.per_epoch)
            if place == 0 or not order:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(self.count, generator=generator).tolist()
            begin = (place * self.world + self.rank) * self.batch_size
            yield [order[i % self.count] for i in range(begin, begin + self.batch_size)]
