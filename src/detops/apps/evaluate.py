"""`detops evaluate`: COCO's twelve scores and the AP of each class, of a run or of a results file."""

import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detops.apps import choose_device, note, runs, warn
from detops.apps.data import coco
from detops.apps.data.coco import Annotations
from detops.apps.data.dataset import CocoImages, open_annotations
from detops.apps.data.json_file import load
from detops.apps.data.layouts import images_of
from detops.apps.data.matching import curve, match, rates, total
from detops.apps.data.results import Results, doubts, judge_results
from detops.apps.outputs import claim_numbers, write_numbers
from detops.apps.scores import CAP, HALVES, NAMES, backend_tools, compare

KEYS = (*NAMES, "classes")  # of the scores
MEANINGS = (
    "IoU 0.50:0.95",
    "IoU 0.50",
    "IoU 0.75",
    "area below 32x32",
    "area up to 96x96",
    "larger area",
    "1 detection per image",
    "10 detections per image",
    "100 detections per image",
    "area below 32x32",
    "area up to 96x96",
    "larger area",
)


def score_rows(dataset: CocoImages, found: dict[int, runs.Found], cap: int = CAP) -> dict[str, Any]:
    """Compare the detections on rows of a data set with its annotations, without images that were not decoded.

    Args:
        dataset: The data set.
        found: Detections by row.
        cap: Largest number of detections per image (see `compare`).
    """
    scores = compare(*_judged(dataset, found), "bbox", cap=cap)
    return {name: value for name, value in scores.items() if name != HALVES}


def _judged(dataset: CocoImages, found: dict[int, runs.Found]) -> tuple[Annotations, Results]:
    """Return the annotations of the rows that were decoded, and the detections on them as those of a file."""
    rows = sorted(row for row in found if row not in dataset.broken)
    annotations = dataset.annotations.at(rows)
    results = [
        line
        for row, image in zip(rows, annotations.images, strict=True)
        for line in runs.as_results(image.id, found[row], annotations.category_ids)
    ]
    return annotations, judge_results(results, annotations, "bbox")


def at_thresholds(annotations: Annotations, results: Results) -> dict[str, Any]:
    """Count what boxes find at IoU 0.5, at the score from which F1 of all classes together is highest.

    Args:
        annotations: The objects.
        results: The detections.

    Returns:
        "threshold": that score, None if nothing was found; and "at_threshold": by class name, and under "" for all
        together, "objects", "precision", "recall" and "f1", and "best": the score at which the class's own F1 is
        highest.
    """
    matches = match(annotations, results)
    best = curve(annotations, results, matches).best
    counts = rates(annotations, results, matches, math.inf if best is None else best)
    bests = [curve(annotations, results, matches, label).best for label in range(len(counts))]
    rows = zip(["", *annotations.class_names], [total(counts), *counts], [best, *bests], strict=True)
    return {
        "threshold": best,
        "at_threshold": {
            name: {"objects": of.objects, "precision": of.precision, "recall": of.recall, "f1": of.f1, "best": own}
            for name, of, own in rows
        },
    }


def table(scores: dict[str, Any]) -> Table:
    """Lay the scores out for the terminal."""
    view = Table("", "", "counted", title="COCO scores")
    for name, meaning in zip(NAMES, MEANINGS, strict=True):
        view.add_row(name, number(scores[name]), meaning)
    for name in scores:
        if name.startswith("AP@"):
            view.add_row(name, number(scores[name]), f"IoU 0.50:0.95, {name[3:]} detections per image")
    if "at_threshold" not in scores:  # else the classes have a table of their own
        for name, value in scores["classes"].items():
            view.add_row("AP", number(value), escape(f"class {name}"))
    return view


def class_table(scores: dict[str, Any]) -> Table:
    """Lay out the scores of each class, and what it finds at one threshold, for the terminal."""
    threshold = scores["threshold"]
    at = "nothing was found" if threshold is None else f"P, R and F1 at scores from {threshold:.3f} and IoU 0.5"
    view = Table("class", title="Classes", caption=f"{at}; best: the class's own best score")
    for head in ("objects", "AP", "AP50", "P", "R", "F1", "best"):
        view.add_column(head, justify="right")
    for name, row in scores["at_threshold"].items():
        ap = (scores["AP"], scores["AP50"]) if name == "" else (scores["classes"][name], scores[HALVES][name])
        values = (*ap, row["precision"], row["recall"], row["f1"], row["best"])
        view.add_row(escape(name) if name else "all", f"{row['objects']:,}", *map(number, values))
    return view


def number(value: float | None) -> str:
    """Write a score; "-" where nothing counts for it."""
    return "-" if value is None else f"{value:.3f}"


def run(
    run_folder: Path | None = None,
    results: Path | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
    kind: str = "bbox",
    strict: bool = False,
    json_path: Path | None = None,
    device: str | None = None,
    max_detections: int | None = None,
    backend: str = "pycocotools",
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate a run or a results file, print the scores and write them to a file.

    Args:
        run_folder: Folder of a trained run.
        results: COCO results file, in place of a run.
        annotations: COCO file; required with `results`, by default the validation data of the run.
        images: Folder of the images of `annotations`; by default where the file's layout has them.
        kind: The IoU is that of boxes ("bbox") or, for results with masks, of masks ("segm").
        strict: Stop if an annotation or an image is invalid.
        json_path: File to write the scores to; by default `evaluation.json` in the run.
        device: Torch device of the run's network; by default a GPU if there is one.
        max_detections: Largest number of detections per image; by default that of the run's training, or 100.
        backend: "pycocotools", "faster-coco-eval" or "hotcoco": the package that compares, with the same scores.
        console: Where to print.

    Raises:
        ValueError: The arguments do not go together.
    """
    console = console or Console()
    if kind not in ("bbox", "segm"):
        raise ValueError(f"kind: expected bbox or segm, got {kind}")
    useless = [name for name, value in (("--images", images), ("--device", device)) if value is not None]
    if results is not None and useless:
        raise ValueError(f"{', '.join(useless)}: has no effect with --results, which are detections already")
    if images is not None and annotations is None:
        raise ValueError("--images: is the folder of --annotations, which are not given")
    if (run_folder is None) == (results is None):
        raise ValueError("expected either a run or --results, got " + ("neither" if results is None else "both"))
    backend_tools(backend)  # which may be missing
    if run_folder is not None:
        if kind == "segm":
            raise ValueError("--kind segm: a run has no masks; masks are evaluated from a results file, by --results")
        json_path = json_path or runs.places(run_folder)[0] / "evaluation.json"
        claim_numbers(json_path, KEYS)
        scores = _score_run(run_folder, annotations, images, strict, device, max_detections, backend, console)
    else:
        assert results is not None
        if json_path is not None:
            claim_numbers(json_path, KEYS)
        scores = _score_file(results, annotations, kind, strict, max_detections or CAP, backend, console)
    console.print(table(scores))
    if "at_threshold" in scores:
        console.print(class_table(scores))
    if json_path is not None:
        write_numbers(json_path, scores, KEYS)
    return scores


def _score_file(
    results: Path, annotations: Path | None, kind: str, strict: bool, cap: int, backend: str, console: Console
) -> dict[str, Any]:
    """Score a results file."""
    if annotations is None:
        raise ValueError("annotations: --results needs the --annotations that they belong to")
    truth = coco.read(annotations, masks=kind == "segm")
    truth.accept(annotations, console, strict)
    judged = judge_results(load(results, "a list of detections"), truth, kind, results)
    for line in doubts(judged, truth):
        warn(console, f"{results}: {line}")
    tell_cap(truth, annotations, cap, console)
    scores = compare(truth, judged, kind, cap=cap, backend=backend)
    return scores | (at_thresholds(truth, judged) if kind == "bbox" else {})


def tell_cap(annotations: Annotations, path: Path, cap: int, console: Console) -> None:
    """Tell where images hold more objects than detections of an image are made, or counted by COCO's scores.

    Args:
        annotations: The annotations.
        path: Their file, for the message.
        cap: Largest number of detections per image.
        console: Where the line is printed.
    """
    if not len(annotations.boxes):
        return
    counts = torch.bincount(annotations.image_index)
    most = int(counts.max())
    if most > cap:
        crowded = int((counts > cap).sum())
        warn(
            console,
            f"{path}: {crowded:,} images hold more than {cap} objects, up to {most:,}, and {cap} detections per image "
            "are the most that count; --max-detections raises that",
        )
    elif most > CAP:
        note(
            console,
            f"{path}: {int((counts > CAP).sum()):,} images hold more than {CAP} objects: COCO's scores count {CAP} "
            f"detections per image, and AP@{cap} counts {cap}",
        )


def _score_run(
    run: Path,
    annotations: Path | None,
    images: Path | None,
    strict: bool,
    device: str | None,
    max_detections: int | None,
    backend: str,
    console: Console,
) -> dict[str, Any]:
    """Detect on the run's validation data, or on the data that is given, and score the detections."""
    network, kind, config = runs.load(run, choose_device(device), max_detections)
    if annotations is not None and images is None:
        images = images_of(annotations)
    path, folder = annotations or Path(config["val_annotations"]), images or Path(config["val_images"])
    height, width = config["size"]
    opened = open_annotations(path, folder, strict, console)
    tell_cap(opened, path, kind.max_detections, console)
    dataset = CocoImages(opened, folder, (height, width), strict, 0, console)
    if dataset.annotations.class_names != config["classes"]:
        raise ValueError(f"{path}: expected the run's classes {config['classes']}")
    rows = range(len(dataset))
    detections = runs.detect_all(network, kind, dataset, rows)
    truth, judged = _judged(dataset, dict(zip(rows, detections, strict=True)))
    scores = compare(truth, judged, "bbox", cap=kind.max_detections, backend=backend)
    return scores | at_thresholds(truth, judged)
