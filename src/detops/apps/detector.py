"""A trained run as a function: images in, detections out, with the pixels and numbers of `detops predict`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detops import Detections
from detops.apps import choose_device, require, runs
from detops.apps.data.dataset import fit, fitted
from detops.apps.data.images import decode, plain
from detops.decode.detections import padded

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image as PilImage

    Image = str | os.PathLike[str] | PilImage | numpy.ndarray[Any, Any] | Tensor


class Detector:
    """The network of a trained run, to be called on images. `detops.load` makes one, and has its arguments.

    Attributes:
        class_names: Names of the classes by label.
        category_ids: Ids of the classes by label, as in the annotations that the run was trained on.
        size: Height and width that images are resized to fit into.
        device: Where the network is.
        score: Lowest score of a detection.
        max_detections: Number K of detections per image.

    Example:
        >>> detector = detops.load("runs/cells")  # doctest: +SKIP
        >>> for found in detector(["a.jpg", "b.jpg"]).to_list():  # doctest: +SKIP
        ...     print([detector.class_names[label] for label in found["labels"]], found["boxes"])
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        device: str | torch.device | None = None,
        half: bool = False,
        score: float = 0.0,
        max_detections: int | None = None,
        batch_size: int = 8,
    ) -> None:
        require("PIL.Image", "Pillow", "load")
        if not 0 <= score <= 1:
            raise ValueError(f"score: expected 0 .. 1, got {score!r}")
        for name, value in (("max_detections", max_detections or 1), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value!r}")
        self.device = choose_device(None if device is None else str(device))
        self._network, self._kind, config = runs.load(Path(run), self.device, max_detections)
        self._half, self._batch_size, self.score = half, batch_size, score
        self.max_detections = self._kind.max_detections
        self.class_names: list[str] = config["classes"]
        self.category_ids: list[int | str] = config["category_ids"]
        self.size: tuple[int, int] = (config["size"][0], config["size"][1])

    def __call__(self, images: "Image | Sequence[Image]") -> Detections:
        """Detect objects.

        Args:
            images: An image or several: paths; Pillow's images; arrays (height, width, 3) or (height, width) as Pillow
                makes them, RGB; or tensors (3, height, width) uint8, RGB. They are made upright and 8 bits deep as the
                commands do.

        Returns:
            Detections (B, K) on the CPU, the highest score first, boxes in pixels of each image; one image is a batch
            of one.

        Raises:
            TypeError: Something is no image.
            ValueError: An image cannot be decoded, or the network's outputs for it are not finite.
        """
        several = [*images] if isinstance(images, list | tuple) else [images]
        found: list[runs.Found] = []
        for begin in range(0, len(several), self._batch_size):
            found += self._batch([_rgb(image) for image in several[begin : begin + self._batch_size]], begin)
        rows = [_row(one.above(self.score) if self.score else one, self.max_detections) for one in found]
        if not rows:
            return Detections(*(t[:0] for t in _row(_NOTHING, self.max_detections)))
        return Detections(*(torch.cat(column) for column in zip(*rows, strict=True)))

    def draw(self, image: "Image", found: Detections, score: float = 0.3, index: int = 0) -> "PilImage":
        """Draw the detections on an image.

        Args:
            image: The image.
            found: What this detector found on a batch.
            score: Lowest score that is drawn.
            index: Position of the image in the batch.

        Returns:
            An RGB image, which notebooks show and loggers take.
        """
        parts = found.to_list()[index]
        one = runs.Found(parts["boxes"], parts["labels"], parts["scores"])
        return runs.draw(_rgb(image), one.above(score), self.class_names)

    def _batch(self, images: list["PilImage"], begin: int) -> list[runs.Found]:
        if not images:
            return []
        pixels = torch.stack([fit(image, self.size) for image in images]).to(self.device)
        scales = []
        for image in images:
            width, height = fitted(image.size, self.size)
            scales.append((width / image.width, height / image.height))
        outputs = Detections(*(t.cpu() for t in runs.forward(self._network, self._kind, pixels, self._half)))
        found = runs.in_images(outputs, scales, [image.size for image in images])
        for number, one in enumerate(found, begin):
            if one.broken:
                raise ValueError(f"images: the network's outputs for image {number} hold NaN")
        return found


_NOTHING = runs.Found(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))


def _row(found: runs.Found, count: int) -> Detections:
    """Pad the detections on one image to a batch of one."""
    return padded(torch.ones(1, len(found.scores), dtype=torch.bool), found.boxes[None], found.labels[None],
                  found.scores[None], count)  # fmt: skip


def _rgb(image: Any) -> "PilImage":
    """Return an image as RGB, upright, 8 bits per channel."""
    module = require("PIL.Image", "Pillow", "load")
    if isinstance(image, str | os.PathLike):
        return decode(os.fspath(image))
    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise TypeError(
                f"images: expected a tensor (3, height, width) of uint8, got {image.dtype} {tuple(image.shape)}"
            )
        image = image.permute(1, 2, 0).cpu().numpy()
    if not isinstance(image, module.Image):
        numpy = require("numpy", "numpy", "load")
        if not isinstance(image, numpy.ndarray):
            raise TypeError(f"images: expected paths, Pillow's images, arrays or tensors, got {type(image).__name__}")
        try:
            image = module.fromarray(numpy.ascontiguousarray(image))
        except TypeError as error:
            raise TypeError(
                f"images: expected an array (height, width, 3) of uint8, or (height, width), got {image.dtype} "
                f"{image.shape}"
            ) from error
    found: PilImage = plain(image)
    return found
