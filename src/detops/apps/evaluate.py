"""`detops evaluate`: COCO's twelve scores and the AP of each class, of a run or of a results file."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detops.apps import choose_device, note, require, runs, warn
from detops.apps.data import coco
from detops.apps.data.coco import Annotations
from detops.apps.data.dataset import CocoImages, open_annotations
from detops.apps.data.json_file import load
from detops.apps.data.layouts import images_of
from detops.apps.data.masks import areas
from detops.apps.data.results import Results, judge_results
from detops.apps.outputs import claim_numbers, write_numbers

CAP = 100  # detections per image that COCO's scores count at most
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
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


def score(path: Path, results: Any, kind: str = "bbox", image_ids: Sequence[int | str] | None = None) -> dict[str, Any]:
    """Compare detections with annotations.

    Invalid annotations are left out. A score without annotations, such as that of a class without boxes, is None.

    Args:
        path: COCO file.
        results: Detections in COCO's results format.
        kind: The IoU is that of boxes ("bbox") or of masks ("segm").
        image_ids: Evaluate only on these images.

    Returns:
        The twelve scores by name, and "classes": the AP by class name.

    Raises:
        ValueError: The results are not in COCO's format, or name other images or categories.
    """
    annotations = coco.read(path, masks=kind == "segm")
    rows = None
    if image_ids is not None:
        wanted = set(image_ids)
        rows = [row for row, image in enumerate(annotations.images) if image.id in wanted]
    return compare(annotations, judge_results(results, annotations, kind), kind, rows)


def compare(
    annotations: Annotations, results: Results, kind: str = "bbox", rows: Sequence[int] | None = None
) -> dict[str, Any]:
    """Compare judged detections with judged annotations, by pycocotools; see `score`.

    Args:
        annotations: The annotations, with masks for the kind "segm".
        results: The detections.
        kind: "bbox" or "segm".
        rows: Positions of the images to evaluate on; None takes all.
    """
    truth, found = _truth(annotations, kind), _found(annotations, results, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = require("pycocotools.cocoeval", "pycocotools", "evaluate").COCOeval(truth, found, kind)
        if rows is not None:
            evaluation.params.imgIds = sorted(_ranks(annotations)[list(rows)].tolist())
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # Dimensions: IoU, recall, class, area, detections. Taken: all areas, 100 detections per image.
    precision = torch.from_numpy(evaluation.eval["precision"])[:, :, :, 0, 2]  # (IoU, recall, class)
    classes = {}
    for label, name in enumerate(annotations.class_names):
        values = precision[:, :, label]
        values = values[values > -1]
        classes[name] = float(values.mean()) if len(values) else None
    numbers = (float(value) if value > -1 else None for value in evaluation.stats)
    return {**dict(zip(NAMES, numbers, strict=True)), "classes": classes}


def _truth(annotations: Annotations, kind: str) -> Any:
    """Hand the annotations to pycocotools under ids of ours, those of annotations from 1, as 0 means "unmatched"."""
    table, np = annotations.table, require("numpy", "numpy")
    computed = table.xywh[:, 2] * table.xywh[:, 3]
    if kind == "segm" and annotations.masks:
        computed = np.array(areas(annotations.masks))
    area = np.where(np.isnan(table.area), computed, table.area)
    columns = (_ranks(annotations)[table.image], table.label, table.crowd.astype(int), area, table.xywh)
    keys = ("image_id", "category_id", "iscrowd", "area", "bbox")
    return _index(annotations, keys, columns, annotations.masks if kind == "segm" else None)


def _found(annotations: Annotations, results: Results, kind: str) -> Any:
    """Hand the detections to pycocotools, as its `loadRes` would."""
    np = require("numpy", "numpy")
    area = results.xywh[:, 2] * results.xywh[:, 3]
    if kind == "segm":
        area = np.array(areas(results.masks))
    columns = (_ranks(annotations)[results.image], results.label, results.score, area, results.xywh)
    keys = ("image_id", "category_id", "score", "area", "bbox")
    return _index(annotations, keys, columns, results.masks if kind == "segm" else None)


def _index(annotations: Annotations, keys: Sequence[str], columns: Sequence[Any], masks: Sequence[Any] | None) -> Any:
    """Make pycocotools' index of rows that are given by columns."""
    values = zip(*(column.tolist() for column in columns), strict=True)
    rows = [dict(zip(keys, row, strict=True), id=number) for number, row in enumerate(values, 1)]
    for row, mask in zip(rows, masks or (), strict=False):
        row["segmentation"] = mask
    if keys[2] == "score":
        rows = [{**row, "iscrowd": 0} for row in rows]
    coco_index = require("pycocotools.coco", "pycocotools", "evaluate").COCO()
    ranks = _ranks(annotations).tolist()
    images = [{"id": n, "height": i.height, "width": i.width} for n, i in zip(ranks, annotations.images, strict=True)]
    categories = [{"id": label} for label in range(len(annotations.class_names))]
    coco_index.dataset = {"images": images, "categories": categories, "annotations": rows}
    with contextlib.redirect_stdout(io.StringIO()):
        coco_index.createIndex()
    return coco_index


def _ranks(annotations: Annotations) -> Any:
    """Return each image's place in the order of the ids: among equal scores, pycocotools' numbers depend on it."""
    np = require("numpy", "numpy")
    ids = [image.id for image in annotations.images]
    order = sorted(range(len(ids)), key=lambda row: (isinstance(ids[row], str), ids[row]))
    ranks = np.empty(len(ids), int)
    ranks[order] = np.arange(len(ids))
    return ranks


def score_rows(dataset: CocoImages, found: dict[int, runs.Found]) -> dict[str, Any]:
    """Compare the detections on rows of a data set with its annotations, without images that were not decoded."""
    annotations = dataset.annotations
    rows = [row for row in found if row not in dataset.broken]
    results = [
        line
        for row in rows
        for line in runs.as_results(annotations.images[row].id, found[row], annotations.category_ids)
    ]
    return compare(annotations, judge_results(results, annotations, "bbox"), rows=rows)


def table(scores: dict[str, Any]) -> Table:
    """Lay the scores out for the terminal."""
    view = Table("", "", "counted", title="COCO scores")
    for name, meaning in zip(NAMES, MEANINGS, strict=True):
        view.add_row(name, number(scores[name]), meaning)
    for name, value in scores["classes"].items():
        view.add_row("AP", number(value), escape(f"class {name}"))
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
    if run_folder is not None:
        if kind == "segm":
            raise ValueError("--kind segm: a run has no masks; masks are evaluated from a results file, by --results")
        json_path = json_path or runs.places(run_folder)[0] / "evaluation.json"
        claim_numbers(json_path, KEYS)
        scores = _score_run(run_folder, annotations, images, strict, device, console)
    else:
        assert results is not None
        if json_path is not None:
            claim_numbers(json_path, KEYS)
        scores = _score_file(results, annotations, kind, strict, console)
    console.print(table(scores))
    if json_path is not None:
        write_numbers(json_path, scores, KEYS)
    return scores


def _score_file(results: Path, annotations: Path | None, kind: str, strict: bool, console: Console) -> dict[str, Any]:
    """Score a results file."""
    if annotations is None:
        raise ValueError("annotations: --results needs the --annotations that they belong to")
    truth = coco.read(annotations, masks=kind == "segm")
    truth.accept(annotations, console, strict)
    judged = judge_results(load(results, "a list of detections"), truth, kind, results)
    if not len(judged.score):
        warn(console, f"{results}: there is no detection in it")
    _tell_cap(truth, annotations, console)
    return compare(truth, judged, kind)


def _tell_cap(annotations: Annotations, path: Path, console: Console) -> None:
    """Tell where images hold more objects than COCO's scores count detections of an image."""
    crowded = sum(len(annotations.of_image(row)[0]) > CAP for row in range(len(annotations.images)))
    if crowded:
        note(console, f"{path}: {crowded} images hold more than {CAP} objects; COCO's scores count {CAP} per image")


def _score_run(
    run: Path, annotations: Path | None, images: Path | None, strict: bool, device: str | None, console: Console
) -> dict[str, Any]:
    """Detect on the run's validation data, or on the data that is given, and score the detections."""
    network, kind, config = runs.load(run, choose_device(device))
    if annotations is not None and images is None:
        images = images_of(annotations)
    path, folder = annotations or Path(config["val_annotations"]), images or Path(config["val_images"])
    height, width = config["size"]
    opened = open_annotations(path, folder, strict, console)
    _tell_cap(opened, path, console)
    dataset = CocoImages(opened, folder, (height, width), strict, 0, console)
    if dataset.annotations.class_names != config["classes"]:
        raise ValueError(f"{path}: expected the run's classes {config['classes']}")
    rows = range(len(dataset))
    detections = runs.detect_all(network, kind, dataset, rows)
    return score_rows(dataset, dict(zip(rows, detections, strict=True)))
