"""COCO folders as batches: images decoded and resized once, augmented a whole batch at a time on its device.

annotations.json + images/ -> CocoImages -> Batch (uint8) -> augment / normalize -> the network's input
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from detops.apps import note, require, usable_cores, warn
from detops.apps.data.coco import Annotations, read
from detops.apps.data.compare import HEADS, find_images
from detops.apps.data.images import Size, decode
from detops.ground_truth import GroundTruth

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, 0 .. 255
MULTIPLE = 32  # sides of a network's input
LINES = 50  # mistakes of one kind that are printed; further ones are only counted


class Batch(NamedTuple):
    """Some images and what is on them.

    Attributes:
        images: (B, 3, H, W) uint8, or float32 after `augment`.
        targets: Ground truth in pixels of `images`; a box with label -1 is ignored, crowds are ignored regions.
        rows: (B,) int64, positions in the data set.
    """

    images: Tensor
    targets: GroundTruth
    rows: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device."""
        images = self.images.to(device, non_blocking=True)
        return Batch(images, self.targets.to(device, non_blocking=True), self.rows)


def open_annotations(path: Path, images: Path, strict: bool, console: Console, objects: bool = True) -> Annotations:
    """Read annotations and compare them with their images; tell what is wrong, one line per kind of problem.

    Args:
        path: COCO annotations.
        images: Folder of the images. File names in the result are those that are there.
        strict: Raise if anything would be left out, or is doubtful.
        console: Where the lines are printed.
        objects: Raise if no object is left.

    Raises:
        ValueError: No image or no object is left; or, with `strict`, there is a problem.
    """
    annotations = find_images(read(path, images), images, None if strict else HEADS)
    annotations.accept(path, console, strict, objects)
    if annotations.rle_masks:
        note(console, f"{path}: {annotations.rle_masks} run-length encoded masks: only their boxes are used")
    return annotations


class CocoImages(Dataset[Batch]):
    """A data set whose images are resized to fit one size; each is at the top left, the rest is the mean colour.

    Images are decoded once and kept as bytes if all fit the memory limit; otherwise each access decodes them.

    Args:
        annotations: Annotations of the images.
        folder: Folder of the images.
        size: Height and width of the network's input; rounded up to multiples of 32.
        strict: Raise if an image cannot be decoded. Otherwise it is a blank image that is ignored as a whole.
        memory_limit: Largest number of bytes to keep.
        console: Where lines about such images are printed.
    """

    def __init__(
        self, annotations: Annotations, folder: Path, size: tuple[int, int], strict: bool, memory_limit: int,
        console: Console,
    ) -> None:  # fmt: skip
        self.annotations, self.folder, self.size, self.strict = annotations, folder, size, strict
        self.shape = padded_shape(size)
        self._console = console
        self._told = False
        self.kept: Tensor | None = None
        self.broken: set[int] = set()
        if len(self) * 3 * math.prod(self.shape) <= memory_limit:
            kept = torch.empty(len(self), 3, *self.shape, dtype=torch.uint8)
            with ThreadPoolExecutor(usable_cores()) as pool:  # Pillow decodes without holding the interpreter
                for row, image in enumerate(pool.map(self._decode, range(len(self)))):
                    kept[row] = image
            self.kept = kept

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_console": Console()}  # a console has locks, which do not go to workers

    def __len__(self) -> int:
        return len(self.annotations.images)

    def scale(self, row: int) -> tuple[float, float]:
        """Return input pixels per image pixel, along x and y."""
        record = self.annotations.images[row]
        width, height = fitted(record.size, self.size)
        return width / record.width, height / record.height

    def _decode(self, row: int) -> Tensor:
        record = self.annotations.images[row]
        try:
            image, size = load_image(self.folder / record.file_name, self.size, record.size)
        except ValueError as error:
            if self.strict:
                raise
            if row not in self.broken:
                self.broken.add(row)
                warn(self._console, f"blank instead of {error}")
            return torch.tensor(MEAN).to(torch.uint8)[:, None, None].expand(3, *self.shape)
        if size != record.size and len(self) > HEADS and not self._told:  # of fewer images, all were compared before
            self._told = True
            warn(
                self._console,
                f"{record.file_name} has another size than recorded: {size}, not {record.size}; and maybe more",
            )
        return image

    def __getitem__(self, row: int) -> Batch:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Make one batch of several rows; a `DataLoader` calls this with the rows of its batch sampler."""
        images = torch.stack([self._decode(row) for row in rows]) if self.kept is None else self.kept[list(rows)]
        boxes, labels, ignored = [], [], []
        for row in rows:
            scale = torch.tensor(self.scale(row) * 2)
            box, label = self.annotations.of_image(row)
            crowds = self.annotations.crowds_of_image(row).float() * scale
            if row in self.broken:
                box, label = box[:0], label[:0]
                crowds = torch.tensor([[0.0, 0.0, self.shape[1], self.shape[0]]])
            boxes.append(box.float() * scale)
            labels.append(label)
            ignored.append(crowds)
        return Batch(images, GroundTruth.from_boxes(boxes, labels, ignored=ignored), torch.tensor(rows))


def padded_shape(size: tuple[int, int]) -> tuple[int, int]:
    """Round height and width up to multiples of 32."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in size)
    return height, width


def fitted(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of an image of (width, height) that is resized to fit `size`, (height, width)."""
    scale = min(size[1] / image[0], size[0] / image[1])
    return max(1, round(image[0] * scale)), max(1, round(image[1] * scale))


def load_image(path: Path, size: tuple[int, int], recorded: Size | None = None) -> tuple[Tensor, Size]:
    """Decode an image, resize it to fit `size`, and pad it on the right and at the bottom.

    Args:
        path: The image.
        size: Height and width to fit into.
        recorded: Width and height that an annotation file records.

    Returns:
        (3, H, W) uint8, H and W multiples of 32; width and height of the upright image.

    Raises:
        ValueError: It cannot be decoded; the message names the file.
    """
    image = decode(path, recorded)
    return fit(image, size), image.size


def fit(image: "Image", size: tuple[int, int]) -> Tensor:
    """Resize an RGB image to fit `size`, and pad it on the right and at the bottom.

    Args:
        image: The image.
        size: Height and width to fit into.

    Returns:
        (3, H, W) uint8, H and W multiples of 32.
    """
    module, numpy = require("PIL.Image", "Pillow"), require("numpy", "numpy")
    small = image.resize(fitted(image.size, size), module.Resampling.BILINEAR)
    canvas = torch.tensor(MEAN).to(torch.uint8)[:, None, None].repeat(1, *padded_shape(size))
    canvas[:, : small.height, : small.width] = torch.from_numpy(numpy.array(small)).permute(2, 0, 1)
    return canvas


class Steps(Sampler[list[int]]):
    """The batches of a whole training as one sequence that can start anywhere, so that it can be resumed.

    Args:
        count: Number of images.
        batch_size: Images per step and rank.
        epochs: Number of epochs.
        seed: Random seed of the order of the images, which differs between epochs.
        start: Number of steps that are done already.
        rank: This process among those that share each step.
        world: Number of processes that share each step.
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


def as_is(batch: Any) -> Any:
    """Return the batch: the collate function of data sets that make whole batches."""
    return batch
