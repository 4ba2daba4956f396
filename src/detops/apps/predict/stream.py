"""Detecting on batches of images on this machine, where reading, copying, network and encoding overlap.

sources -> read (processes) -> ReadBatch, pinned -> Predictor (a batch ahead) -> lines of results.jsonl
"""

from collections import deque
from collections.abc import Generator, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from detops import StageTimer
from detops.apps.data.dataset import as_is
from detops.apps.predict.form import Form
from detops.apps.predict.predictor import Predictor
from detops.apps.predict.reading import Images, ReadBatch, Reader, on_device
from detops.apps.predict.results import encode_batch
from detops.apps.predict.sources import Source

AHEAD = 1  # batches that a GPU is given before the results of the first are fetched
PREFETCH = 2  # batches that each reading process holds ready


def lines(
    predictor: Predictor, batches: Iterable[list[Source]], workers: int, form: Form, timer: StageTimer
) -> Generator[list[str], None, None]:
    """Yield the lines of each batch, in order.

    Args:
        predictor: Detector.
        batches: Images to detect on; only a few batches are taken ahead.
        workers: Processes that read; 0 reads between one batch and the next.
        form: Form of the detections.
        timer: Times the stages; on a GPU by the host's clock, since they overlap there.
    """
    device = predictor.device
    loader: DataLoader[ReadBatch] = DataLoader(
        Reader(predictor.size),
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of what __getitems__ takes
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        collate_fn=as_is,
        pin_memory=device.type == "cuda",
    )
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    started: deque[tuple[ReadBatch, Any, torch.cuda.Event | None]] = deque()
    read = iter(loader)
    while True:
        with timer.stage("waiting for images" if workers else "reading images"):
            batch = next(read, None)
        if batch is None:
            break
        with timer.stage("network"):
            started.append((batch, *_start(predictor, batch.images, copying)))
        if len(started) > (0 if copying is None else AHEAD):
            yield _finish(predictor, form, timer, *started.popleft())
    while started:
        yield _finish(predictor, form, timer, *started.popleft())


def _start(
    predictor: Predictor, images: Images, copying: torch.cuda.Stream | None
) -> tuple[Any, torch.cuda.Event | None]:
    """Copy a batch and begin to detect on it. On a GPU the copy overlaps with the computation of the batch before."""
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


def _finish(
    predictor: Predictor,
    form: Form,
    timer: StageTimer,
    batch: ReadBatch,
    started: Any,
    ready: torch.cuda.Event | None,
) -> list[str]:
    """Wait for a batch and encode its detections."""
    if ready is not None:
        with timer.stage("waiting for the GPU"):
            ready.synchronize()
    with timer.stage("encoding"):
        return encode_batch(batch, predictor.rows(batch, started), form)
