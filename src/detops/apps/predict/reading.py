"""Reading images for a detector: decoded, and fitted into the size of its input.

Source -> ReadBatch
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from detops.apps import require
from detops.apps.data.dataset import fit, padded_shape
from detops.apps.data.images import SEVERAL, decode
from detops.apps.predict.sources import Source

if TYPE_CHECKING:
    from PIL.Image import Image

Images = Tensor | list[Tensor]


class ReadBatch(NamedTuple):
    """A batch of images that were read.

    Attributes:
        sources: The images, as they were to be read.
        images: (B, 3, H, W) uint8, where images that could not be decoded are blank; or, for a detector that takes
            images of any size, a list of those that could, each (3, H, W).
        sides: Width and height of each image; if it could not be decoded, those of the input, or (0, 0).
        errors: Why an image could not be decoded; empty if it could.
        several: Whether the file holds further images, which are not detected on.
    """

    sources: list[Source]
    images: Images
    sides: list[tuple[int, int]]
    errors: list[str]
    several: list[bool]


def read(sources: Sequence[Source], size: tuple[int, int] | None, folder: str = "") -> ReadBatch:
    """Decode images and fit them into `size`. One that cannot be decoded is blank, so that the batch keeps its shape.

    Args:
        sources: Images to read.
        size: Height and width; None keeps images as they are, and leaves out those that cannot be decoded.
        folder: Folder that relative paths start from; the current one if empty.
    """
    images, sides, errors, several = [], [], [], []
    for source in sources:
        path, error, more = os.path.join(folder, source.path), "", False
        try:
            recorded = source.recorded and (source.recorded[0], source.recorded[1])  # a list where JSON carried it
            image = decode(path, recorded) if source.image is None else source.image
            images.append(_whole(image) if size is None else fit(image, size))
            side, more = image.size, bool(image.info.get(SEVERAL))
        except ValueError as reason:
            error = str(reason).replace(path, source.path)
            height, width = (0, 0) if size is None else padded_shape(size)
            side = (width, height)
            if size is not None:
                images.append(torch.zeros(3, height, width, dtype=torch.uint8))
        sides.append(side)
        errors.append(error)
        several.append(more)
    return ReadBatch(list(sources), images if size is None else torch.stack(images), sides, errors, several)


def _whole(image: "Image") -> Tensor:
    """Return an image in its own size: (3, H, W) uint8, channels last in memory."""
    pixels = require("numpy", "numpy", "predict").array(image)
    return torch.from_numpy(pixels).permute(2, 0, 1)


class Reader(Dataset[ReadBatch]):
    """`read` for a `DataLoader`, whose sampler names the images; the data set itself holds none."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size = size

    def __getitem__(self, source: Source) -> ReadBatch:
        return read([source], self.size)

    def __getitems__(self, sources: list[Source]) -> ReadBatch:
        return read(sources, self.size)


def on_device(images: Images, device: torch.device) -> Images:
    """Copy images to a device, without waiting if they are pinned."""
    if isinstance(images, Tensor):
        return images.to(device, non_blocking=True)
    return [image.to(device, non_blocking=True) for image in images]
