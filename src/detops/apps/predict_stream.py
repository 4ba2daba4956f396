"""Batches of images through a run's network, on this machine: reading, copying, network and encoding at one time.

sources -> read (processes) -> Read, pinned -> network (a batch ahead) -> lines of results.jsonl
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from detops import Detections
from detops.apps import predict
from detops.apps.dataset import fitted, load_image, padded_shape
from detops.apps.families import Family
from detops.apps.results import encode

AHEAD = 1  # batches that a GPU is given before the results of one are asked for
PREFETCH = 2  # batches that each reading process holds ready


class Source(NamedTuple):
    """An image that is asked for: its path as it was named, and its id in the results."""

    path: str
    image_id: int | str


class Read(NamedTuple):
    """Images that were read.

    Attributes:
        sources: Which.
        images: (B, 3, H, W) uint8.
        sides: Width and height of each; those of the input where it could not be decoded.
        errors: Why it could not be decoded; empty where it was.
    """

    sources: list[Source]
    images: Tensor
    sides: list[tuple[int, int]]
    errors: list[str]


def read(sources: Sequence[Source], size: tuple[int, int], folder: str = "") -> Read:
    """Decode images and fit them into `size`; one that cannot be decoded is blank, so that its batch keeps its shape.

    Args:
        sources: Which.
        size: Height and width.
        folder: What relative paths start from; the current one if empty.
    """
    height, width = padded_shape(size)
    images = torch.zeros(len(sources), 3, height, width, dtype=torch.uint8)
    sides, errors = [(width, height)] * len(sources), [""] * len(sources)
    for place, source in enumerate(sources):
        path = os.path.join(folder, source.path)
        try:
            images[place], sides[place] = load_image(Path(path), size)
        except ValueError as error:
            errors[place] = str(error).replace(path, source.path)
    return Read(list(sources), images, sides, errors)


class Reader(Dataset[Read]):
    """`read` for a `DataLoader`, whose sampler says which images; it holds none, whatever their number."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __getitem__(self, source: Source) -> Read:
        return read([source], self.size)

    def __getitems__(self, sources: list[Source]) -> Read:
        return read(sources, self.size)


def lines(
    network: nn.Module,
    kind: Family,
    config: dict[str, Any],
    batches: Iterable[list[Source]],
    workers: int,
) -> Iterator[list[str]]:
    """The lines of each batch, in order.

    Args:
        network: On the device that detects.
        kind: What decodes its outputs.
        config: Of the run.
        batches: What to detect on; only a few are asked for ahead.
        workers: Processes that read; 0 reads between one batch and the next.
    """
    device = next(network.parameters()).device
    loader: DataLoader[Read] = DataLoader(
        Reader((config["size"][0], config["size"][1])),
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of what __getitems__ takes
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        collate_fn=_same,
        pin_memory=device.type == "cuda",
    )
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    started: deque[tuple[Read, Detections, torch.cuda.Event | None]] = deque()
    for batch in loader:
        started.append((batch, *_start(network, kind, batch.images, device, copying)))
        if len(started) > (0 if copying is None else AHEAD):
            yield _finish(*started.popleft(), config)
    while started:
        yield _finish(*started.popleft(), config)


def _start(
    network: nn.Module, kind: Family, images: Tensor, device: torch.device, copying: torch.cuda.Stream | None
) -> tuple[Detections, torch.cuda.Event | None]:
    """Copy, detect and copy back; on a GPU, the copy overlaps with the batch before, and nothing waits."""
    if copying is None:
        return Detections(*(t.cpu() for t in predict.forward(network, kind, images.to(device)))), None
    with torch.cuda.stream(copying):
        images = images.to(device, non_blocking=True)
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(copying)
    images.record_stream(computing)
    found = predict.forward(network, kind, images)
    found = Detections(*(t.to("cpu", non_blocking=True) for t in found))
    ready = torch.cuda.Event()
    ready.record(computing)
    return found, ready


def _finish(batch: Read, detections: Detections, ready: torch.cuda.Event | None, config: dict[str, Any]) -> list[str]:
    if ready is not None:
        ready.synchronize()
    return encoded(batch, detections, config)


def encoded(batch: Read, detections: Detections, config: dict[str, Any]) -> list[str]:
    """Lines of `results.jsonl`, from detections on the CPU."""
    size = (config["size"][0], config["size"][1])
    scales = []
    for side in batch.sides:
        width, height = fitted(side, size)
        scales.append((width / side[0], height / side[1]))
    written = []
    for source, found, (width, height), error in zip(
        batch.sources, predict.in_images(detections, scales, batch.sides), batch.sides, batch.errors, strict=True
    ):
        line: dict[str, Any] = {"path": source.path, "image_id": source.image_id}
        if error:
            line["error"] = error
        else:
            rows = predict.as_rows(found, config["category_ids"])
            line |= {"width": width, "height": height, "detections": rows}
        written.append(encode(line))
    return written


def _same(batch: Any) -> Any:
    """The reader makes whole batches."""
    return batch
