"""The sections of the page that stand on the detections and the data: scores, curves, errors and histograms."""

import html
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from detops.apps import require
from detops.apps.data.coco import Annotations
from detops.apps.data.dataset import open_annotations
from detops.apps.data.matching import Rates, curve, total
from detops.apps.report import charts, pictures
from detops.apps.report.evidence import Evidence
from detops.apps.report.parts import charts as side_by_side
from detops.apps.report.parts import number, numbers, table

SHOWN = 20  # classes in a chart; the table has all
CURVES = 7  # classes whose curve is drawn
MATRIX = 16  # classes in the confusion matrix
AREAS = (("small, below 32 x 32", 0.0, 32.0**2), ("medium, up to 96 x 96", 32.0**2, 96.0**2),
         ("large", 96.0**2, float("inf")))  # fmt: skip
SIDES = (0, 4, 8, 16, 32, 64, 128, 256, 512, float("inf"))  # pixels
OBJECTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, float("inf"))


def headline(scores: dict[str, Any], evidence: Evidence | None) -> str:
    """Show the numbers that are asked for first."""
    shown: list[tuple[str, str]] = [(number(scores[n]), n) for n in ("AP", "AP50", "AP75") if n in scores]
    if "other" in scores:
        shown.append((number(scores["other"]["AP"]), f"AP {scores['other']['name']}"))
    if evidence is not None:
        whole = total(evidence.rates)
        shown += [(number(getattr(whole, name)), name) for name in ("precision", "recall")]
        shown += [(number(whole.f1), "F1"), (number(evidence.threshold, 2), "at scores from")]
        shown.append((f"{len(evidence.annotations.images):,}", "images"))
        shown.append((f"{whole.objects:,}", "objects"))
    return numbers(shown)


def twelve(scores: dict[str, Any], meanings: dict[str, str]) -> str:
    """Lay out COCO's twelve scores, each with its meaning."""
    rows = [(name, number(scores[name]), html.escape(meanings[name])) for name in meanings if name in scores]
    return table((), rows, text=(2,)) if rows else ""


def curves(evidence: Evidence, scores: dict[str, Any]) -> str:
    """Draw precision and recall against each other and over the score, and the AP by size and class."""
    names, line = evidence.annotations.class_names, evidence.curve
    by_objects = sorted(range(len(names)), key=lambda label: -evidence.rates[label].objects)
    parts = {}
    for label in by_objects[:CURVES] if len(names) > 1 else ():
        one = curve(evidence.annotations, evidence.results, evidence.matches, label)
        if evidence.rates[label].objects and len(one.score):
            parts[names[label]] = charts.of_curve(one.recall, one.precision)
    parts["all"] = charts.of_curve(line.recall, line.precision)
    unit, top = ((0.0, 1.0), (0.0, 1.02)), float(line.f1.max()) if len(line.score) else 0.0
    drawn = [
        charts.lines("Precision over recall, IoU 0.5", parts, ("recall", "precision"), bold="all", limits=unit),
        charts.lines(
            f"Over the lowest score: F1 {top:.2f} from {evidence.threshold:.2f}" if top else "Over the lowest score",
            {name: charts.of_curve(line.score, getattr(line, name)) for name in ("precision", "recall")}
            | {"F1": charts.of_curve(line.score, line.f1)},
            ("score", ""), bold="F1", limits=unit, mark=(evidence.threshold, top) if top else None,
        ),
    ]  # fmt: skip
    sizes = {
        "AP": [scores.get(name) or 0.0 for name in ("APs", "APm", "APl")],
        "fraction that is found": _found_by_size(evidence),
    }
    drawn.append(charts.bars("By box size", sizes, ("small", "medium", "large"), "", 1.0))
    return side_by_side(*drawn)


def _found_by_size(evidence: Evidence) -> list[float]:
    """Return the fraction of the small, medium and large objects that are found at the threshold."""
    area, crowd = _areas(evidence.annotations), evidence.annotations.table.crowd
    shares = []
    for _, low, high in AREAS:
        mine = ~crowd & (area >= low) & (area < high)
        shares.append(float((mine & ~evidence.missed).sum() / max(1, mine.sum())))
    return shares


def _areas(annotations: Annotations) -> Any:
    np, table = require("numpy", "numpy"), annotations.table
    return np.where(np.isnan(table.area), table.xywh[:, 2] * table.xywh[:, 3], table.area)


def classes(evidence: Evidence | None, scores: dict[str, Any]) -> str:
    """Lay out the scores of each class."""
    ap: dict[str, float | None] = scores.get("classes", {})
    if evidence is None:
        return table(("class", "AP"), [(html.escape(name), number(value)) for name, value in ap.items()]) if ap else ""
    rows = list(zip(evidence.annotations.class_names, evidence.rates, strict=True))
    rows.sort(key=lambda row: -(ap.get(row[0]) or 0))

    def line(name: str, counts: Rates, value: float | None) -> Sequence[str]:
        values = (value, counts.precision, counts.recall, counts.f1)
        return name, *map(number, values), *(f"{n:,}" for n in (counts.objects, counts.true, counts.false))

    whole = line("<b>all</b>", total(evidence.rates), scores.get("AP"))
    shown = table(
        ("class", "AP", "precision", "recall", "F1", "objects", "true", "false"),
        [whole, *(line(html.escape(name), counts, ap.get(name)) for name, counts in rows)],
    )
    if len(rows) == 1:
        return shown
    best = [name for name, _ in rows][:SHOWN]
    title = "AP of each class" if len(rows) <= SHOWN else f"AP of the best {SHOWN} classes"
    return side_by_side(charts.ranking(title, {"": [ap.get(n) or 0.0 for n in best]}, best, "AP", 1.0), shown)


def confusion(evidence: Evidence) -> str:
    """Show which class is taken for which, as a table whose colour is the share of the row."""
    names, matrix = evidence.annotations.class_names, evidence.confusion
    count = len(names)
    errors = matrix.sum(0)[:count] + matrix.sum(1)[:count] - 2 * matrix.diagonal()[:count]
    kept = sorted(sorted(range(count), key=lambda label: -errors[label])[:MATRIX])
    order = [*kept, count]
    head = "".join(f'<th class="up"><span>{_name(names, label, "missed")}</span></th>' for label in order)
    rows = ""
    for label in order:
        most = max(1, int(matrix[label].sum()))
        cells = "".join(_cell(int(matrix[label, other]), most, label == other) for other in order)
        rows += f'<tr><th class="text">{_name(names, label, "nothing there")}</th>{cells}</tr>'
    left_out = f" The {len(kept)} classes with the most errors of {count}." if len(kept) < count else ""
    return (
        f"<p>Rows: what it is. Columns: what it was taken for. Detections with a score of at least"
        f" {evidence.threshold:.2f}, IoU 0.5; the colour is the share of the row.{left_out}</p>"
        f'<div class="scroll"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>{rows}</table></div>'
    )


def _name(names: Sequence[str], label: int, last: str) -> str:
    return html.escape(names[label]) if label < len(names) else f"<i>{last}</i>"


def _cell(value: int, most: int, right: bool) -> str:
    share = value / most
    color = "24,128,56" if right else "217,48,37"
    style = f' style="background:rgba({color},{0.08 + 0.5 * share:.2f})"' if value else ""
    return f"<td{style}>{f'{value:,}' if value else ''}</td>"


def worst(evidence: Evidence, count: int) -> str:
    """Show the images with the most errors beside the truth."""
    legend = "".join(f"<span>{pictures.swatch(style)}{text}</span>" for style, text in pictures.LEGEND)
    figures = []
    for row in evidence.worst(count):
        left, right, caption = pictures.pair(evidence, row)
        figures.append(
            f'<figure class="pair">{pictures.zoomed(left, "detections")}{pictures.zoomed(right, "annotations")}'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return (
        f"<p>The {len(figures)} images with the most errors, the worst first. Left: detections with a score of at least"
        f" {evidence.threshold:.2f}, from which F1 is highest. Right: the annotations. A click enlarges a picture.</p>"
        f'<p class="legend">{legend}</p>{"".join(figures)}'
    )


def data(config: dict[str, Any], evidence: Evidence | None) -> str:
    """Draw what the data hold: objects by class and size, and per image."""
    path, folder, quiet = Path(config["train_annotations"]), Path(config["train_images"]), Console(quiet=True)
    sets = {"training": open_annotations(path, folder, False, quiet)}
    if evidence is not None and config["val_annotations"] != config["train_annotations"]:
        sets["validation"] = evidence.annotations
    np, names = require("numpy", "numpy"), sets["training"].class_names
    labels = {name: np.bincount(one.labels.numpy(), minlength=len(names)) for name, one in sets.items()}
    order = labels["training"].argsort(kind="stable")[::-1][:SHOWN].tolist()
    title = "Objects by class" if len(names) <= SHOWN else f"Objects of the {SHOWN} most frequent classes"
    shares = "share of the images" if len(sets) > 1 else "images"
    boxes = "share of the boxes" if len(sets) > 1 else "boxes"

    def histogram(title: str, values: dict[str, Any], edges: Sequence[float], integral: bool, label: str) -> str:
        counts = {name: np.histogram(of, edges)[0] for name, of in values.items()}
        filled = np.flatnonzero(sum(counts.values()))
        shown = slice(filled[0], filled[-1] + 1) if len(filled) else slice(0)
        heights = {n: (c / max(1, c.sum()) if len(sets) > 1 else c)[shown].tolist() for n, c in counts.items()}
        return charts.bars(title, heights, _bins(edges, integral)[shown], label)

    sides = {name: np.sqrt((one.boxes[:, 2:] - one.boxes[:, :2]).prod(1).numpy()) for name, one in sets.items()}
    per_image = {n: np.bincount(one.image_index.numpy(), minlength=len(one.images)) for n, one in sets.items()}
    return side_by_side(
        charts.ranking(title, {n: c[order].tolist() for n, c in labels.items()}, [names[i] for i in order], "objects"),
        histogram("Box size: square root of the area, pixels", sides, SIDES, False, boxes),
        histogram("Objects per image", per_image, OBJECTS, True, shares),
    )


def _bins(edges: Sequence[float], integral: bool) -> list[str]:
    """Name the bins between edges."""
    names = []
    for low, high in pairwise(edges):
        last = high - 1 if integral else high
        names.append(f"{low:g}+" if high == float("inf") else f"{low:g}" if last == low else f"{low:g} to {last:g}")
    return names
