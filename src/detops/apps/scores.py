"""COCO's scores: judged detections compared with judged annotations by pycocotools, or by a drop-in for it.

Annotations, Results -> columns under ids of ours -> the backend's index and evaluation -> scores
"""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detops.apps import listed, require
from detops.apps.data import coco
from detops.apps.data.coco import Annotations
from detops.apps.data.masks import areas
from detops.apps.data.results import Results, judge_results
from detops.apps.data.table import Array
from detops.arguments import require_module

CAP = 100  # detections per image that COCO's scores count at most
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
HALVES = "classes_AP50"
# Backends: the module of the index and that of the evaluation, the class of the latter, and the package.
BACKENDS = {
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval", "COCOeval", "pycocotools"),
    "faster-coco-eval": ("faster_coco_eval", "faster_coco_eval", "COCOeval_faster", "faster-coco-eval"),
    "hotcoco": ("hotcoco", "hotcoco", "COCOeval", "hotcoco"),
}


def score(path: Path, results: Any, kind: str = "bbox", image_ids: Sequence[int | str] | None = None) -> dict[str, Any]:
    """Compare detections with annotations.

    Invalid annotations are left out. A score without annotations, such as that of a class without boxes, is None.

    Args:
        path: COCO file.
        results: Detections in COCO's results format.
        kind: The IoU is that of boxes ("bbox") or of masks ("segm").
        image_ids: Evaluate only on these images.

    Returns:
        The twelve scores by name, "classes": the AP by class name, and "classes_AP50": the AP50.

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
    annotations: Annotations,
    results: Results,
    kind: str = "bbox",
    rows: Sequence[int] | None = None,
    cap: int = CAP,
    backend: str = "pycocotools",
) -> dict[str, Any]:
    """Compare judged detections with judged annotations; see `score`.

    Args:
        annotations: The annotations, with masks for the kind "segm".
        results: The detections.
        kind: "bbox" or "segm".
        rows: Positions of the images to evaluate on; None takes all.
        cap: Detections per image; for more than COCO's 100, there is the AP of so many too, "AP@300".
        backend: One of `BACKENDS`.
    """
    make_index, make_evaluation = backend_tools(backend)
    truth, found = _truth(annotations, kind, make_index), _found(annotations, results, kind, make_index)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = make_evaluation(truth, found, kind)
        if rows is not None:
            evaluation.params.imgIds = sorted(_ranks(annotations)[list(rows)].tolist())
        if cap > CAP:
            evaluation.params.maxDets = [*evaluation.params.maxDets, cap]
        evaluation.evaluate()
        evaluation.accumulate()
    # Precision by IoU, recall, class, area and detections per image; recall without the second. -1: nothing counts.
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    averaged = [precision[..., 0, 2], precision[0, ..., 0, 2], precision[5, ..., 0, 2]]
    averaged += [precision[..., area, 2] for area in (1, 2, 3)]
    averaged += [recall[..., 0, detections] for detections in (0, 1, 2)] + [recall[..., area, 2] for area in (1, 2, 3)]
    names = [*NAMES, f"AP@{cap}"] if cap > CAP else NAMES
    values = dict(zip(names, map(_mean, [*averaged, precision[..., 0, -1]]), strict=False))
    classes = {name: _mean(precision[:, :, label, 0, 2]) for label, name in enumerate(annotations.class_names)}
    halves = {name: _mean(precision[0, :, label, 0, 2]) for label, name in enumerate(annotations.class_names)}
    return {**values, "classes": classes, HALVES: halves}


def _mean(values: Array) -> float | None:
    """Average what counts; None where nothing does."""
    counted = values[values > -1]
    return float(counted.mean()) if len(counted) else None


def backend_tools(name: str) -> tuple[Any, Any]:
    """Import a backend.

    Args:
        name: One of `BACKENDS`.

    Returns:
        Its class of an index, and that of an evaluation.

    Raises:
        ValueError: There is no such backend.
        ModuleNotFoundError: It is not installed.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend: expected {listed(BACKENDS)}, got {name}")
    index, evaluation, kind, package = BACKENDS[name]
    if package == "pycocotools":
        modules = [require(module, package, "evaluate") for module in (index, evaluation)]
    else:
        modules = [require_module(module, package, f"--backend {name}", package) for module in (index, evaluation)]
    return modules[0].COCO, getattr(modules[1], kind)


def _truth(annotations: Annotations, kind: str, make_index: Any) -> Any:
    """Hand the annotations to the backend under ids of ours, those of annotations from 1, as 0 means "unmatched"."""
    table, np = annotations.table, require("numpy", "numpy")
    sides = np.array([image.size for image in annotations.images], float).reshape(-1, 2)[table.image]
    computed = np.minimum(table.xywh[:, 2:], sides).prod(1)  # of a box that reaches far beyond, what can be found
    if kind == "segm" and annotations.masks:
        computed = np.array(areas(annotations.masks))
    area = np.where(np.isnan(table.area), computed, table.area)
    columns = (_ranks(annotations)[table.image], table.label, table.crowd.astype(int), area, table.xywh)
    keys = ("image_id", "category_id", "iscrowd", "area", "bbox")
    return _index(annotations, keys, columns, annotations.masks if kind == "segm" else None, make_index)


def _found(annotations: Annotations, results: Results, kind: str, make_index: Any) -> Any:
    """Hand the detections to the backend, as pycocotools' `loadRes` would."""
    np = require("numpy", "numpy")
    area = results.xywh[:, 2] * results.xywh[:, 3]
    if kind == "segm":
        area = np.array(areas(results.masks))
    columns = (_ranks(annotations)[results.image], results.label, results.score, area, results.xywh)
    keys = ("image_id", "category_id", "score", "area", "bbox")
    return _index(annotations, keys, columns, results.masks if kind == "segm" else None, make_index)


def _index(
    annotations: Annotations, keys: Sequence[str], columns: Sequence[Any], masks: Sequence[Any] | None, make_index: Any
) -> Any:
    """Make the backend's index of rows that are given by columns."""
    values = zip(*(column.tolist() for column in columns), strict=True)
    rows = [dict(zip(keys, row, strict=True), id=number) for number, row in enumerate(values, 1)]
    for row, mask in zip(rows, masks or (), strict=False):
        row["segmentation"] = mask
    if keys[2] == "score":
        rows = [{**row, "iscrowd": 0} for row in rows]
    coco_index = make_index()
    ranks = _ranks(annotations).tolist()
    images = [{"id": n, "height": i.height, "width": i.width} for n, i in zip(ranks, annotations.images, strict=True)]
    categories = [{"id": label, "name": name} for label, name in enumerate(annotations.class_names)]
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
