"""`detops predict`: a detector and images in; a line an image, pictures, and a COCO results file out.

Listing -> batches of sources -> predict_stream or predict_ray -> lines -> pictures (threads), then results.jsonl
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from detops.apps import require
from detops.apps.data import coco
from detops.apps.data.dataset import LINES
from detops.apps.predict import ray, stream
from detops.apps.predict.listing import Listing, batched
from detops.apps.predict.mask_rcnn_predictor import MaskRCNNPredictor
from detops.apps.predict.pictures import Pictures
from detops.apps.predict.results import ResultsFile, error_of
from detops.apps.predict.run_predictor import RunPredictor
from detops.apps.predict.stream import Predictor, Source

PENDING = 4  # batches whose pictures are being drawn before the first must be done


@dataclass(frozen=True)
class Options:
    """How to predict.

    Attributes:
        mask_rcnn: Weights of a Mask R-CNN of torchvision's, or "module:function" that returns one, in place of a run.
        half: Compute in half precision: bfloat16, or for a Mask R-CNN on a GPU float16.
        score: Detections in the pictures have at least this score; the results hold all.
        pictures: The first so many images get one; all if negative.
        annotations: COCO file whose image ids the results use; without it, the first image is 1.
        device: Torch device; by default a GPU where there is one.
        batch_size: Images at a time.
        workers: Processes that read; with Ray, networks at a time. By default as many as the machine is good for.
        resume: Go on behind the lines that a killed run left.
        ray: Detect by Ray Data.
    """

    mask_rcnn: str | None = None
    half: bool = False
    score: float = 0.3
    pictures: int = 200
    annotations: Path | None = None
    device: str | None = None
    batch_size: int = 8
    workers: int | None = None
    resume: bool = False
    ray: bool = False


def run(run: Path | None, images: Sequence[Path], out: Path, options: Options, console: Console | None = None) -> int:
    """Detect on images; write `results.jsonl` as it goes, then `results.json`, and `images/*.jpg`.

    Args:
        run: Folder of a trained run; None for `options.mask_rcnn`.
        images: Files and folders.
        out: Where to write.
        options: How.
        console: Where to print.

    Returns:
        How many images could not be decoded; they are named, and have a line that says why.

    Raises:
        ValueError: What is in `out` is in the way, or cannot be gone on from; or there is no one detector.
        FileNotFoundError: There is no such run, or no such image.
        ModuleNotFoundError: An extra is missing.
    """
    console = console or Console()
    require("PIL.Image", "Pillow", "predict")
    load = _loader(run, options)
    gpu = ray.connect() if options.ray else torch.cuda.is_available()
    device = torch.device(options.device or ("cuda" if gpu else "cpu"))
    predictor = load(torch.device("cpu") if options.ray else device)
    annotations = None if options.annotations is None else coco.read(options.annotations)
    listing, ids = Listing(images), _ids(annotations.images if annotations else [])
    with ResultsFile(out, _settings(predictor, device, options), listing, options.resume) as results:
        begin = _begin(results.count, len(listing), options.batch_size)
        batches = batched(islice(_sources(listing, *ids), begin, None), options.batch_size)
        count = -(-(len(listing) - begin) // options.batch_size)
        lines: Iterator[list[str]] = iter(())
        if count and options.ray:
            lines = ray.lines(load, predictor, device, batches, count, options.workers)
        elif count:
            workers = min(8, os.cpu_count() or 1) if options.workers is None else options.workers
            lines = stream.lines(predictor, batches, min(workers, count - 1))
        names = dict(predictor.names)
        if annotations is not None:
            names |= dict(zip(annotations.category_ids, annotations.class_names, strict=True))
        with Pictures(out / "images", listing, names, options.pictures, options.score) as pictures:
            _write(results, lines, begin, len(listing), pictures, console)
        summary = results.finish()
    console.print(
        f"{summary.images} images, {summary.failed} of them failed, {summary.detections} detections: results.jsonl, "
        f"results.json and {pictures.count} pictures in {out}", markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return summary.failed


def _begin(done: int, total: int, batch_size: int) -> int:
    """The first image to detect on: batches are cut as if the run had never stopped, so that numbers stay the same."""
    return total if done == total else done - done % batch_size


def _loader(run: Path | None, options: Options) -> ray.Load:
    """What makes the predictor on a device, here or elsewhere."""
    if (run is None) == (options.mask_rcnn is None):
        raise ValueError("expected either --run or --mask-rcnn, got " + ("neither" if run is None else "both"))
    if run is not None:
        return partial(RunPredictor, run.resolve(), options.half)
    assert options.mask_rcnn is not None
    path = Path(options.mask_rcnn)
    return partial(MaskRCNNPredictor, str(path.resolve()) if path.is_file() else options.mask_rcnn, options.half)


def _settings(predictor: Predictor, device: torch.device, options: Options) -> dict[str, Any]:
    """All that decides what the lines say, beside the images."""
    ids = options.annotations and hashlib.sha256(options.annotations.read_bytes()).hexdigest()
    return {
        **predictor.settings, "annotations": ids, "batch_size": options.batch_size, "device": device.type
    }  # fmt: skip


Ids = dict[str, int | str | None]


def _ids(records: Sequence[coco.ImageRecord]) -> tuple[Ids, int]:
    """Ids by the ends of paths, None for an end that several images have; and the highest number among them."""
    ids: Ids = {}
    for record in records:
        for ending in _endings(record.file_name):
            ids[ending] = None if ending in ids else record.id
    ids.update({Path(record.file_name).as_posix(): record.id for record in records})
    return ids, max((record.id for record in records if isinstance(record.id, int)), default=0)


def _sources(paths: Iterable[str], ids: Ids, highest: int) -> Iterator[Source]:
    """Images with their ids; those that have none are numbered, behind the highest that there is."""
    for number, path in enumerate(paths, highest + 1):
        known = (ids[ending] for ending in _endings(path) if ids.get(ending) is not None)
        found = next(known, None)
        yield Source(path, number if found is None else found)


def _endings(path: str) -> Iterator[str]:
    """The path, and what is left without its first folders: "a/b/c", "b/c", "c"."""
    parts = Path(path).parts
    return (Path(*parts[start:]).as_posix() for start in range(len(parts)))


def _write(
    results: ResultsFile, lines: Iterator[list[str]], begin: int, total: int, pictures: "Pictures", console: Console
) -> None:
    """Write lines as they come, a batch's when its pictures are done: who goes on after a kill misses none."""
    columns = (TextColumn("detecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pending: deque[tuple[list[str], list[Future[None]]]] = deque()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total, completed=results.count)
        there, row, told = results.count - begin, results.count, 0

        def settle() -> None:
            batch, drawn = pending.popleft()
            for picture in drawn:
                picture.result()
            results.append(batch)
            bar.update(task, completed=results.count)

        for batch in lines:
            batch, there = batch[there:], 0  # of the first batch, some lines may be written already
            for error in filter(None, map(error_of, batch)):
                told += 1
                if told <= LINES:
                    console.print(f"skipped {error}", style="yellow", highlight=False, markup=False, soft_wrap=True)
            pending.append((batch, pictures.draw(row, batch)))
            row += len(batch)
            while pending and (len(pending) > PENDING or all(picture.done() for picture in pending[0][1])):
                settle()
        while pending:
            settle()
    if told > LINES:
        console.print(f"and {told - LINES} more, named in results.jsonl", style="yellow", markup=False)
