"""`detops predict`: a detector and images in; a line per image, pictures and a COCO results file out.

Listing -> batches of sources -> stream or ray -> lines -> pictures (threads), then results.jsonl
"""

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from detops import StageTimer
from detops.apps import choose_device, note, require, usable_cores, warn
from detops.apps.data.dataset import LINES
from detops.apps.data.live import is_stream
from detops.apps.outputs import Outputs
from detops.apps.predict import formats, ray, stream
from detops.apps.predict.form import Form, chosen
from detops.apps.predict.inputs import open_input
from detops.apps.predict.listing import batched
from detops.apps.predict.mask_rcnn_predictor import MaskRCNNPredictor
from detops.apps.predict.pictures import Pictures
from detops.apps.predict.predictor import Predictor
from detops.apps.predict.query_mask_predictor import QueryMaskPredictor
from detops.apps.predict.results import PICTURES, ResultsFile, error_of
from detops.apps.predict.run_predictor import RunPredictor
from detops.apps.terminal import progress
from detops.apps.train import metrics

GOOD = 0.3  # score from which a detection is drawn, unless another is asked for
OTHERS = {"csv": "results.csv", "yolo": "labels/*.txt"}
PENDING = 4  # batches whose pictures may be in progress before the first of them must be done


@dataclass(frozen=True)
class Options:
    """How to predict.

    Attributes:
        mask_rcnn: Weights of torchvision's Mask R-CNN, or "module:function" that returns one, in place of a run.
        query_masks: "module:function" that returns a model with query masks, in place of a run.
        half: Compute in half precision: bfloat16, or float16 for a Mask R-CNN on a GPU.
        score: Lowest score of the detections; None keeps all, and draws those from 0.3.
        classes: Names or ids of the classes to keep; none keeps all.
        max_detections: Largest number of detections per image; by default that of the network.
        formats: Formats of the results beside COCO's: "csv", "yolo".
        pictures: Number of images that are drawn, the first ones; all if negative.
        annotations: COCO file with the image ids for the results; without it, the first image has id 1.
        device: Torch device; by default a GPU if there is one.
        batch_size: Images per batch; None is 8, and 1 for a stream.
        workers: Processes that read images; with Ray, copies of the network. By default chosen for the machine.
        resume: Continue after the lines that a killed run left.
        ray: Detect by Ray Data.
    """

    mask_rcnn: str | None = None
    query_masks: str | None = None
    half: bool = False
    score: float | None = None
    classes: Sequence[str] = ()
    max_detections: int | None = None
    formats: Sequence[str] = ()
    pictures: int = 200
    annotations: Path | None = None
    device: str | None = None
    batch_size: int | None = None
    workers: int | None = None
    resume: bool = False
    ray: bool = False


def run(
    run_folder: Path | None,
    images: Sequence[Path | str],
    out: Path,
    options: Options,
    console: Console | None = None,
) -> int:
    """Detect on images; write `results.jsonl` and `images/*.jpg` on the way, and `results.json` at the end.

    Args:
        run_folder: Folder of a trained run; None for a detector that the options name.
        images: Files and folders; or a stream, which is read until it ends or the command is interrupted.
        out: Folder to write to.
        options: How to predict.
        console: Where to print.

    Returns:
        How many images have no detections because something failed: they could not be decoded, or the network's outputs
        are broken. They are named, and their lines say why. One more if the training of the network stopped at a loss
        that was not finite, and one more if a stream ended by an error, which is told too.

    Raises:
        ValueError: `out` holds an unfinished run, one that cannot be resumed, or files of somebody else; or not exactly
            one detector is named, or the stream cannot be read.
        FileNotFoundError: There is no such run or image.
        ModuleNotFoundError: An extra is missing.
    """
    console = console or Console()
    require("PIL.Image", "Pillow", "predict")
    if options.score is not None and not 0 <= options.score <= 1:
        raise ValueError(f"score: expected 0 .. 1, got {options.score:g}")
    streams = any(is_stream(str(one)) for one in images)
    if streams and (options.resume or options.ray):
        raise ValueError(f"{'--resume' if options.resume else '--ray'}: is for images; a stream is read as it comes")
    size = options.batch_size or (1 if streams else 8)
    options = replace(options, batch_size=size)
    load = _loader(run_folder, options)
    gpu = ray.connect() if options.ray else None
    device = choose_device(options.device, gpu)
    predictor = load(torch.device("cpu") if options.ray else device)
    given = open_input(images, options.annotations, console)
    if given.in_order and options.ray:
        raise ValueError("--ray: is for images; the frames of a video are read in order, by one process")
    names = dict(predictor.names) | given.names
    form = Form(names, options.score, chosen(options.classes, names))
    outputs = Outputs(out, [*([] if streams else map(Path, images)), *filter(None, [options.annotations])])
    formats.claim(outputs, options.formats)
    if options.pictures:
        outputs.claim_pictures(PICTURES)
    least = GOOD if options.score is None else options.score
    timer, start = StageTimer("cpu"), time.perf_counter()
    with ResultsFile(out, _settings(predictor, device, options, form), given.paths, options.resume, outputs) as results:
        before = results.count
        begin = 0 if given.total is None else _first_image(before, given.total, size)
        batches = batched(islice(given.sources, begin, None), size)
        count = 1 if given.total is None else -(-(given.total - begin) // size)
        lines: Iterator[list[str]] = iter(())
        if count and options.ray:
            lines = ray.lines(load, predictor, device, batches, count, options.workers, form)
        elif count:
            workers = min(8, usable_cores()) if options.workers is None else options.workers
            workers = 0 if given.in_order else workers  # a decoder reads in order, with threads of its own
            lines = stream.lines(predictor, batches, min(workers, count - 1), form, timer)
        frames = None if given.stream is None else given.stream.frames
        with (
            Pictures(outputs, given.paths, names, options.pictures, least, frames) as pictures,
            nullcontext() if given.stream is None else given.stream.until_interrupted(),
        ):
            _write(results, lines, begin, given.total, pictures, console, timer)
        seconds, done = time.perf_counter() - start, results.count - before
        paths = results.paths() if given.total is None else given.paths
        summary = results.finish(options.formats, paths, names, predictor.max_detections, least)
    more = "".join(f", {OTHERS[name]}" for name in options.formats)
    note(
        console,
        f"{_counted(summary.images, 'image')}, {summary.failed} of them failed, "
        f"{_counted(summary.detections, 'detection')}: results.jsonl, results.json{more} and "
        f"{_counted(pictures.count, 'picture')} in {out}",
    )
    if given.stream is not None:
        given.stream.tell_end(console)
    if summary.several:
        note(console, f"{_counted(summary.several, 'file')} with several pages or frames: the first of each was taken")
    if summary.full:
        warn(
            console,
            f"{summary.full:,} images have {predictor.max_detections} detections, the most that are kept, and all of "
            f"them of score {least:g} or more: there may be further ones; --max-detections raises that",
        )
    if done:
        _tell_speed(console, done, seconds, timer)
    # A checkpoint that is named, such as the best one, was chosen whatever came after it.
    stopped = "" if run_folder is None or run_folder.suffix == ".ckpt" else metrics.stopped(run_folder)
    if stopped:
        warn(console, f"{run_folder}: is a network whose training stopped ({stopped}) and was not resumed")
    return summary.failed + bool(stopped) + (given.stream is not None and bool(given.stream.error))


def _loader(run_folder: Path | None, options: Options) -> ray.Load:
    """Return the function that loads the detector on a device, here or on another machine."""
    given = [detector for detector in (run_folder, options.mask_rcnn, options.query_masks) if detector is not None]
    if len(given) != 1:
        count = {0: "neither", 2: "both"}.get(len(given), "all")
        raise ValueError(f"expected either --run or --mask-rcnn or --query-masks, got {count}")
    if run_folder is not None:
        return partial(RunPredictor, run_folder.resolve(), options.half, max_detections=options.max_detections)
    if options.query_masks is not None:
        return partial(QueryMaskPredictor, options.query_masks, options.half, max_detections=options.max_detections)
    assert options.mask_rcnn is not None
    path = Path(options.mask_rcnn)
    model = str(path.resolve()) if path.is_file() else options.mask_rcnn
    return partial(MaskRCNNPredictor, model, options.half, max_detections=options.max_detections)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _tell_speed(console: Console, images: int, seconds: float, timer: StageTimer) -> None:
    """Say how fast it went, and where the time of a batch went."""
    note(console, f"{_counted(images, 'image')} in {seconds:.1f} s, {images / seconds:.1f} images per second")
    stages = timer.stats()  # none with Ray, whose actors work elsewhere
    if not stages:
        return
    table, total = Table("stage", "ms per batch", "share"), sum(stage.total_ms for stage in stages)
    for stage in stages:
        table.add_row(stage.path[0], f"{stage.mean_ms:.1f}", f"{stage.total_ms / max(total, 1e-9):.0%}")
    console.print(table)


def _settings(predictor: Predictor, device: torch.device, options: Options, form: Form) -> dict[str, Any]:
    """Return everything that the lines depend on, beside the images."""
    ids = options.annotations and hashlib.sha256(options.annotations.read_bytes()).hexdigest()
    kept = {"score": form.score, "classes": form.categories and sorted(form.categories, key=str)}
    given = {"annotations": ids, "batch_size": options.batch_size, "device": device.type}
    return {**predictor.settings, **given, **{name: value for name, value in kept.items() if value is not None}}


def _first_image(done: int, total: int, batch_size: int) -> int:
    """Return the first image to detect on: a resumed run makes the same batches, so that the numbers are the same."""
    return total if done == total else done - done % batch_size


def _write(
    results: ResultsFile,
    lines: Iterator[list[str]],
    begin: int,
    total: int | None,
    pictures: Pictures,
    console: Console,
    timer: StageTimer,
) -> None:
    """Write lines as they come, but none before its picture, so that a resumed run misses no picture."""
    pending: deque[tuple[list[str], list[Future[str]]]] = deque()
    with progress(console, "detecting", total, results.count) as tell:
        written, row = results.count - begin, results.count
        skipped, undrawn = _Lines("skipped ", console), _Lines("", console)

        def settle() -> None:
            batch, drawn = pending.popleft()
            with timer.stage("pictures and lines"):
                for picture in drawn:
                    undrawn.add(picture.result())
                    pictures.count -= bool(picture.result())
                results.append(batch)
            tell(results.count)

        for batch in lines:
            batch, written = batch[written:], 0  # some lines of the first batch may have been written before
            for line in batch:
                skipped.add(error_of(line))
            pending.append((batch, pictures.draw(row, batch)))
            row += len(batch)
            while pending and (len(pending) > PENDING or all(picture.done() for picture in pending[0][1])):
                settle()
        while pending:
            settle()
    skipped.end("more, named in results.jsonl")
    undrawn.end("more images without a picture")


class _Lines:
    """Prints the first lines of one kind, and counts the others."""

    def __init__(self, before: str, console: Console) -> None:
        self._before, self._console, self._count = before, console, 0

    def add(self, text: str | None) -> None:
        """Print a line, if there is one and there were not too many."""
        self._count += bool(text)
        if text and self._count <= LINES:
            warn(self._console, self._before + text)

    def end(self, more: str) -> None:
        """Say how many were not printed."""
        if self._count > LINES:
            warn(self._console, f"and {self._count - LINES} {more}")
