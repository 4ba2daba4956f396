"""`detops predict`: a trained run and images in; a line an image, pictures, and a COCO results file out.

Listing -> batches of sources -> predict_stream or predict_ray -> lines -> pictures (threads), then results.jsonl
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from detops.apps import coco, predict, predict_ray, predict_stream, report, require
from detops.apps.dataset import LINES
from detops.apps.listing import Listing, batched
from detops.apps.predict_stream import Source
from detops.apps.results import Line, ResultsFile, error_of

PENDING = 4  # batches whose pictures are being drawn before the first must be done


@dataclass(frozen=True)
class Options:
    """How to predict.

    Attributes:
        score: Detections in the pictures have at least this score; the results hold all.
        pictures: The first so many images get one; all if negative.
        annotations: COCO file whose image ids the results use; without it, the first image is 1.
        device: Torch device; by default a GPU where there is one.
        batch_size: Images at a time.
        workers: Processes that read; with Ray, networks at a time. By default as many as the machine is good for.
        resume: Go on behind the lines that a killed run left.
        ray: Detect by Ray Data.
    """

    score: float = 0.3
    pictures: int = 200
    annotations: Path | None = None
    device: str | None = None
    batch_size: int = 8
    workers: int | None = None
    resume: bool = False
    ray: bool = False


def run(run: Path, images: Sequence[Path], out: Path, options: Options, console: Console | None = None) -> int:
    """Detect on images; write `results.jsonl` as it goes, then `results.json`, and `images/*.jpg`.

    Args:
        run: Folder of a trained run.
        images: Files and folders.
        out: Where to write.
        options: How.
        console: Where to print.

    Returns:
        How many images could not be decoded; they are named, and have a line that says why.

    Raises:
        ValueError: What is in `out` is in the way, or cannot be gone on from.
        FileNotFoundError: There is no such run, or no such image.
        ModuleNotFoundError: An extra is missing.
    """
    console = console or Console()
    require("PIL.Image", "Pillow", "predict")
    gpu = predict_ray.connect() if options.ray else torch.cuda.is_available()
    device = torch.device(options.device or ("cuda" if gpu else "cpu"))
    network, kind, config = predict.load(run, torch.device("cpu") if options.ray else device)
    listing, weights, ids = Listing(images), predict.fingerprint(network), _ids(options.annotations)
    with ResultsFile(out, _settings(config, weights, device, options), listing, options.resume) as results:
        begin = _begin(results.count, len(listing), options.batch_size)
        batches = batched(islice(_sources(listing, *ids), begin, None), options.batch_size)
        count = -(-(len(listing) - begin) // options.batch_size)
        lines: Iterator[list[str]] = iter(())
        if count and options.ray:
            lines = predict_ray.lines(run, config, weights, device, batches, count, options.workers)
        elif count:
            workers = min(8, os.cpu_count() or 1) if options.workers is None else options.workers
            lines = predict_stream.lines(network, kind, config, batches, min(workers, count - 1))
        with Pictures(out / "images", listing, config, options) as pictures:
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


def _settings(config: dict[str, Any], weights: str, device: torch.device, options: Options) -> dict[str, Any]:
    """All that decides what the lines say, beside the images."""
    names = ("detector", "model", "width", "size", "classes", "category_ids")
    ids = options.annotations and hashlib.sha256(options.annotations.read_bytes()).hexdigest()
    return {
        "weights": weights, **{name: config[name] for name in names}, "annotations": ids,
        "batch_size": options.batch_size, "device": device.type,
    }  # fmt: skip


Ids = dict[str, int | str | None]


def _ids(annotations: Path | None) -> tuple[Ids, int]:
    """Ids by the ends of paths, None for an end that several images have; and the highest number among them."""
    records = [] if annotations is None else coco.read(annotations).images
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


class Pictures:
    """Draws the pictures of the first images, several at a time.

    Args:
        folder: Where to.
        paths: Of all images.
        config: Of the run.
        options: How many, and which detections.

    Attributes:
        count: Pictures that were begun.
    """

    def __init__(self, folder: Path, paths: Iterable[str], config: dict[str, Any], options: Options) -> None:
        wanted = islice(paths, options.pictures if options.pictures >= 0 else None)
        self._names = report.unique_stems([Path(path).name for path in wanted])
        self._folder, self._config, self._score = folder, config, options.score
        self._threads = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes and encodes without holding the interpreter
        self.count = 0
        if self._names:
            folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def draw(self, row: int, lines: Sequence[str]) -> list[Future[None]]:
        """Begin the pictures of images that stand one after the other, the first at this row."""
        wanted = zip(self._names[row : row + len(lines)], lines, strict=False)
        begun = [
            self._threads.submit(self._draw, self._folder / f"{name}.jpg", line)
            for name, line in wanted
            if error_of(line) is None
        ]
        self.count += len(begun)
        return begun

    def _draw(self, target: Path, text: str) -> None:
        line: Line = json.loads(text)
        rows = line["detections"]
        boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [self._config["category_ids"].index(row["category_id"]) for row in rows]
        found = predict.Found(boxes, torch.tensor([row["score"] for row in rows]), torch.tensor(labels))
        with require("PIL.Image", "Pillow", "predict").open(line["path"]) as file:
            image = file.convert("RGB")
        predict.draw(image, found.above(self._score), self._config["classes"]).save(target, quality=90)
