"""Batches of images through a detector, on this machine: reading, copying, network and encoding at one time.

sources -> read (processes) -> Read, pinned -> Predictor (a batch ahead) -> lines of results.jsonl
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detops.apps import require
from detops.apps.data.dataset import decode, load_image, padded_shape
from detops.apps.predict.results import encode

AHEAD = 1  # batches that a GPU is given before the results of one are asked for
PREFETCH = 2  # batches that each reading process holds ready

Images = Tensor | list[Tensor]
Row = dict[str, Any]


class Source(NamedTuple):
    """An image that is asked for: its path as it was named, and its id in the results."""

    path: str
    image_id: int | str


class Read(NamedTuple):
    """Images that were read.

    Attributes:
        sources: Which.
        images: (B, 3, H, W) uint8, blank where one could not be decoded; or those that could, each (3, H, W).
        sides: Width and height of each; those of the input, or 0, where it could not be decoded.
        errors: Why it could not be decoded; empty where it was.
    """

    sources: list[Source]
    images: Images
    sides: list[tuple[int, int]]
    errors: list[str]


class Predictor(Protocol):
    """What detects on batches of images."""

    @property
    def device(self) -> torch.device:
        """Where."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are fitted into as they are read; None leaves them as they are."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its detections, as JSON. "weights" is the same for the same weights, bit for bit."""

    @property
    def names(self) -> dict[int, str]:
        """Of categories, by their ids in the results, in the order of labels; those that are known."""

    def start(self, images: Images) -> Any:
        """Begin to detect on images that are on the device; on a GPU this need not wait for it."""

    def rows(self, batch: Read, started: Any) -> list[list[Row]]:
        """COCO's results for each image of a batch that was started and is done, without the image's id."""


def read(sources: Sequence[Source], size: tuple[int, int] | None, folder: str = "") -> Read:
    """Decode images, and fit them into `size`; one that cannot be decoded is blank, so that its batch keeps its shape.

    Args:
        sources: Which.
        size: Height and width; None for images as they are, without those that cannot be decoded.
        folder: What relative paths start from; the current one if empty.
    """
    images, sides, errors = [], [], []
    for source in sources:
        path, error = os.path.join(folder, source.path), ""
        try:
            image, side = _load(Path(path)) if size is None else load_image(Path(path), size)
            images.append(image)
        except ValueError as reason:
            error = str(reason).replace(path, source.path)
            height, width = (0, 0) if size is None else padded_shape(size)
            side = (width, height)
            if size is not None:
                images.append(torch.zeros(3, height, width, dtype=torch.uint8))
        sides.append(side)
        errors.append(error)
    return Read(list(sources), images if size is None else torch.stack(images), sides, errors)


def _load(path: Path) -> tuple[Tensor, tuple[int, int]]:
    """An image as it is, (3, H, W) uint8 with its channels last in memory; its width and height."""
    image = decode(path)
    pixels = require("numpy", "numpy", "predict").array(image)
    return torch.from_numpy(pixels).permute(2, 0, 1), image.size


class Reader(Dataset[Read]):
    """`read` for a `DataLoader`, whose sampler says which images; it holds none, whatever their number."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size = size

    def __getitem__(self, source: Source) -> Read:
        return read([source], self.size)

    def __getitems__(self, sources: list[Source]) -> Read:
        return read(sources, self.size)


def lines(predictor: Predictor, batches: Iterable[list[Source]], workers: int) -> Iterator[list[str]]:
    """The lines of each batch, in order.

    Args:
        predictor: What detects.
        batches: What to detect on; only a few are asked for ahead.
        workers: Processes that read; 0 reads between one batch and the next.
    """
    device = predictor.device
    loader: DataLoader[Read] = DataLoader(
        Reader(predictor.size),
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of what __getitems__ takes
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        collate_fn=_same,
        pin_memory=device.type == "cuda",
    )
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    started: deque[tuple[Read, Any, torch.cuda.Event | None]] = deque()
    for batch in loader:
        started.append((batch, *_start(predictor, batch.images, copying)))
        if len(started) > (0 if copying is None else AHEAD):
            yield _finish(predictor, *started.popleft())
    while started:
        yield _finish(predictor, *started.popleft())


def _start(
    predictor: Predictor, images: Images, copying: torch.cuda.Stream | None
) -> tuple[Any, torch.cuda.Event | None]:
    """Copy and detect; on a GPU the copy overlaps with the batch before, and nothing waits but what `start` does."""
    if copying is None:
        return predictor.start(on_device(images, predictor.device)), None
    with torch.cuda.stream(copying):
        images = on_device(images, predictor.device)
    computing = torch.cuda.current_stream(predictor.device)
    computing.wait_stream(copying)
    for image in [images] if isinstance(images, Tensor) else images:
        image.record_stream(computing)
    found = predictor.start(images)
    ready = torch.cuda.Event()
    ready.record(computing)
    return found, ready


def on_device(images: Images, device: torch.device) -> Images:
    """Copy images, without a wait where they are pinned."""
    if isinstance(images, Tensor):
        return images.to(device, non_blocking=True)
    return [image.to(device, non_blocking=True) for image in images]


def _finish(predictor: Predictor, batch: Read, started: Any, ready: torch.cuda.Event | None) -> list[str]:
    if ready is not None:
        ready.synchronize()
    return encoded(batch, predictor.rows(batch, started))


def encoded(batch: Read, rows: Sequence[list[Row]]) -> list[str]:
    """Lines of `results.jsonl`, from each image's detections."""
    written = []
    for source, found, (width, height), error in zip(batch.sources, rows, batch.sides, batch.errors, strict=True):
        line: dict[str, Any] = {"path": source.path, "image_id": source.image_id}
        line |= {"error": error} if error else {"width": width, "height": height, "detections": found}
        written.append(encode(line))
    return written


def _same(batch: Any) -> Any:
    """The reader makes whole batches."""
    return batch
