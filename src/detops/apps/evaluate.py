"""`detops evaluate`: COCO's twelve scores and the AP of each class, of a run or of a results file."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detops.apps import require, runs
from detops.apps.data import coco
from detops.apps.data.dataset import CocoImages, open_annotations

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
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


def score(
    annotations: Path, results: list[dict[str, Any]], kind: str = "bbox", image_ids: Sequence[int | str] | None = None
) -> dict[str, Any]:
    """Compare detections with annotations.

    Invalid annotations are left out. A score without annotations, such as that of a class without boxes, is None.

    Args:
        annotations: COCO file.
        results: Detections in COCO's results format.
        kind: The IoU is that of boxes ("bbox") or of masks ("segm").
        image_ids: Evaluate only on these images.

    Returns:
        The twelve scores by name, and "classes": the AP by class name.

    Raises:
        ValueError: The results are not in COCO's format, or name other images.
    """
    truth = _clean(annotations)
    _check(results, truth, kind)
    found = require("pycocotools.coco", "pycocotools", "evaluate").COCO()
    found.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": []}
    with contextlib.redirect_stdout(io.StringIO()):
        if results:
            found = truth.loadRes([dict(row) for row in results])
        else:
            found.createIndex()  # loadRes fails on an empty list
        evaluation = require("pycocotools.cocoeval", "pycocotools", "evaluate").COCOeval(truth, found, kind)
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = {category["id"]: str(category.get("name", category["id"])) for category in truth.dataset["categories"]}
    # Dimensions: IoU, recall, class, area, detections. Taken: all areas, 100 detections per image.
    precision = torch.from_numpy(evaluation.eval["precision"])[:, :, :, 0, 2]  # (IoU, recall, class)
    classes = {}
    for index, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, index]
        values = values[values > -1]
        classes[names[category]] = float(values.mean()) if len(values) else None
    numbers = (float(value) if value > -1 else None for value in evaluation.stats)
    return {**dict(zip(NAMES, numbers, strict=True)), "classes": classes}


def _clean(path: Path) -> Any:
    """Load the ground truth into pycocotools, without invalid annotations; ids from 1, as 0 would mean "unmatched"."""
    broken = {skipped.annotation_id for skipped in coco.read(path).broken}
    data = coco.load(path)
    good = [a for a in data.get("annotations") or [] if isinstance(a, dict) and a.get("id") not in broken]
    kept = []
    for index, annotation in enumerate(good):
        width, height = annotation["bbox"][2:]
        kept.append({"area": width * height, "iscrowd": 0, **annotation, "id": index + 1})
    truth = require("pycocotools.coco", "pycocotools", "evaluate").COCO()
    truth.dataset = {"images": data["images"], "categories": data.get("categories") or [], "annotations": kept}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def _check(results: Any, truth: Any, kind: str) -> None:
    needed = {"image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation"}
    if not isinstance(results, list):
        raise ValueError(f"results: expected a list of detections, got {type(results).__name__}")
    for row in results:
        if not (isinstance(row, dict) and needed <= row.keys()):
            raise ValueError(f"results: expected {', '.join(sorted(needed))} in every detection, got {row!r:.80}")
    unknown = {row["image_id"] for row in results} - truth.imgs.keys()
    if unknown:
        raise ValueError(f"results: image {sorted(unknown, key=str)[0]} is not in the annotations")


def score_rows(dataset: CocoImages, path: Path, found: dict[int, runs.Found]) -> dict[str, Any]:
    """Compare the detections on rows of a data set with its annotation file."""
    annotations = dataset.annotations
    results = [
        row
        for index, detections in found.items()
        for row in runs.as_results(annotations.images[index].id, detections, annotations.category_ids)
    ]
    return score(path, results, image_ids=[annotations.images[index].id for index in found])


def table(scores: dict[str, Any]) -> Table:
    """Lay the scores out for the terminal."""
    view = Table("", "", "counted", title="COCO scores")
    for name, meaning in zip(NAMES, MEANINGS, strict=True):
        view.add_row(name, _number(scores[name]), meaning)
    for name, value in scores["classes"].items():
        view.add_row("AP", _number(value), escape(f"class {name}"))
    return view


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def run(
    run_folder: Path | None = None,
    results: Path | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
    kind: str = "bbox",
    json_path: Path | None = None,
    device: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate a run or a results file, print the scores and write them to a file.

    Args:
        run_folder: Folder of a trained run.
        results: COCO results file, in place of a run.
        annotations: COCO file; required with `results`, by default the validation data of the run.
        images: Folder of the images of `annotations`; by default `images` beside it.
        kind: The IoU is that of boxes ("bbox") or, for results with masks, of masks ("segm").
        json_path: File to write the scores to; by default `evaluation.json` in the run.
        device: Torch device of the run's network; by default a GPU if there is one.
        console: Where to print.

    Raises:
        ValueError: The arguments do not go together.
    """
    console = console or Console()
    if kind not in ("bbox", "segm"):
        raise ValueError(f"kind: expected bbox or segm, got {kind}")
    if (run_folder is None) == (results is None):
        raise ValueError("expected either a run or --results, got " + ("neither" if results is None else "both"))
    if run_folder is not None:
        scores = _score_run(run_folder, annotations, images, device, console)
        json_path = json_path or run_folder / "evaluation.json"
    else:
        assert results is not None
        if annotations is None:
            raise ValueError("annotations: --results needs the --annotations that they belong to")
        scores = score(annotations, coco.load(results), kind)
    if json_path is not None:
        json_path.write_text(json.dumps(scores, indent=1, allow_nan=False) + "\n")
    console.print(table(scores))
    return scores


def _score_run(
    run: Path, annotations: Path | None, images: Path | None, device: str | None, console: Console
) -> dict[str, Any]:
    """Detect on the run's validation data, or on the data that is given, and score the detections."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network, kind, config = runs.load(run, where)
    if annotations is not None and images is None:
        images = annotations.parent / "images"
    path, folder = annotations or Path(config["val_annotations"]), images or Path(config["val_images"])
    height, width = config["size"]
    dataset = CocoImages(open_annotations(path, folder, False, console), folder, (height, width), False, 0, console)
    if dataset.annotations.class_names != config["classes"]:
        raise ValueError(f"{path}: expected the run's classes {config['classes']}")
    rows = range(len(dataset))
    detections = runs.detect_all(network, kind, dataset, rows)
    return score_rows(dataset, path, dict(zip(rows, detections, strict=True)))
