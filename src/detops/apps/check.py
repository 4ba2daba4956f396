"""`detops check`: what a COCO data set holds, and what is wrong with it, in the terminal and as a page."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detops.apps import note, require
from detops.apps.data import coco
from detops.apps.data.coco import Annotations
from detops.apps.data.compare import find_images
from detops.apps.data.problems import Level, shown
from detops.apps.files import write_atomically
from detops.apps.page import claim_page, page

BAR = 30  # characters of the longest bar in the terminal
CLASSES = 40  # classes in the terminal; the page has all
SIDES = (0, 2, 4, 8, 16, 32, 64, 96, 128, 256, 512, 1024)  # pixels, edges of the bins of box sizes
OBJECTS = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500)  # edges of the bins of objects per image
LEVELS = {
    Level.REFUSED: "refused",
    Level.LEFT_OUT: "left out",
    Level.DOUBTFUL: "doubtful",
    Level.NOTE: "note",
}
STYLE = """
body{max-width:980px}
h1{font-size:24px;margin:0;overflow-wrap:anywhere}h2{font-size:19px;margin:32px 0 8px}
td,th{padding:3px 14px 3px 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}
td.n{text-align:right}td.bar{width:420px}td.bar i{display:block;height:12px;margin-top:5px;background:#4285b4}
tr.refused b,tr.left b{color:#b3261e}tr.doubtful b{color:#a15c00}
"""


@dataclass(frozen=True)
class Histogram:
    """Counts by name, under a title."""

    title: str
    rows: list[tuple[str, int]]

    @property
    def most(self) -> int:
        """Return the largest count, at least 1."""
        return max([1, *(count for _, count in self.rows)])


def run(
    path: Path, images: Path | None = None, masks: bool = False, out: Path | None = None, console: Console | None = None
) -> bool:
    """Judge a data set and print the report.

    Args:
        path: COCO annotations.
        images: Folder of the images, each of which is compared with its record; None compares none.
        masks: Judge the segmentations too.
        out: HTML page to write the report to as well.
        console: Where to print.

    Returns:
        Whether all of it can be used: nothing is refused, left out or doubtful, and there is an object.

    Raises:
        ValueError: The file is not in COCO's format at all, or `out` is something else than an earlier report.
        OSError: It cannot be read, or the page cannot be written.
    """
    console = console or Console()
    if images is not None and not images.is_dir():
        raise ValueError(f"images: expected a folder, got {images}")
    if out is not None:
        claim_page(out)
    annotations = coco.read(path, images, masks)
    if images is not None and annotations.images:
        annotations = find_images(annotations, images, heads=None)
    counts, histograms = _counts(annotations), _histograms(annotations)
    _print(annotations, counts, histograms, console)
    if out is not None:
        write_atomically(out, _page(path, annotations, counts, histograms).encode("utf-8", "replace"))
        note(console, f"report: {out}")
    if not len(annotations.boxes):
        note(console, f"{path}: no object is left", "red")
    return len(annotations.boxes) > 0 and annotations.problems.worst < Level.DOUBTFUL


def _counts(annotations: Annotations) -> list[tuple[str, str]]:
    """Say how much of everything there is."""
    widths = sorted(image.size for image in annotations.images)
    rows = [
        ("images", f"{len(annotations.images):,}"),
        ("annotations in the file", f"{annotations.total:,}"),
        ("objects", f"{len(annotations.boxes):,}"),
        ("crowd regions", f"{len(annotations.crowds):,}"),
        ("classes", f"{len(annotations.class_names):,}"),
    ]
    if widths:
        small, middle, large = (f"{w} x {h}" for w, h in (widths[0], widths[len(widths) // 2], widths[-1]))
        rows.append(("image sizes, by width", f"{small} to {large}, median {middle}"))
    return rows


def _histograms(annotations: Annotations) -> list[Histogram]:
    np = require("numpy", "numpy")
    labels = np.bincount(annotations.labels.numpy(), minlength=len(annotations.class_names)).tolist()
    classes = sorted(zip(annotations.class_names, labels, strict=True), key=lambda row: -row[1])
    boxes = annotations.boxes.numpy()
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    per_image = np.bincount(annotations.image_index.numpy(), minlength=len(annotations.images))
    return [
        Histogram("objects by class", classes),
        Histogram("objects by size: square root of the area, in pixels", _binned(np, sides, SIDES)),
        Histogram("images by number of objects", _binned(np, per_image, OBJECTS)),
    ]


def _binned(np: Any, values: Any, edges: Sequence[int]) -> list[tuple[str, int]]:
    """Count values between edges; whole numbers that are alone in a bin stand for themselves."""
    counts = np.histogram(values, [*edges, np.inf])[0].tolist() if len(values) else [0] * len(edges)
    integral = bool(len(values)) and values.dtype.kind == "i"
    names = []
    for low, high in pairwise(edges):
        last = high - 1 if integral else high
        names.append(f"{low}" if last == low else f"{low} to {last}")
    return list(zip([*names, f"{edges[-1]} or more"], counts, strict=True))


def _print(
    annotations: Annotations, counts: list[tuple[str, str]], histograms: list[Histogram], console: Console
) -> None:
    view = Table("", "", title="Data set", show_header=False)
    for name, value in counts:
        view.add_row(name, value)
    console.print(view)
    for histogram in histograms:
        table = Table("", "", "", title=histogram.title, show_header=False)
        table.columns[1].justify = "right"
        for name, count in histogram.rows[:CLASSES]:
            table.add_row(escape(shown(name, 40)), f"{count:,}", "█" * round(BAR * count / histogram.most))
        if len(histogram.rows) > CLASSES:
            rest = histogram.rows[CLASSES:]
            table.add_row(f"{len(rest)} more", f"{sum(count for _, count in rest):,}", "")
        console.print(table)
    problems = list(annotations.problems)
    if not problems:
        note(console, "nothing is wrong with it", "green")
    for _, problem in problems:
        colour = "red" if problem.level >= Level.LEFT_OUT else "yellow" if problem.level == Level.DOUBTFUL else None
        note(console, f"{LEVELS[problem.level]}: {problem}", colour)


def _page(path: Path, annotations: Annotations, counts: list[tuple[str, str]], histograms: list[Histogram]) -> str:
    """Lay the report out as one page that needs no other file."""
    name = html.escape(shown(str(path), 400))
    problems = "".join(
        f'<tr class="{level}"><td><b>{level}</b></td><td>{html.escape(text)}</td></tr>'
        for level, text in ((LEVELS[problem.level], str(problem)) for _, problem in annotations.problems)
    )
    parts = [f"<h1>{name}</h1><table>"]
    parts += [f"<tr><td>{html.escape(what)}</td><td>{html.escape(value)}</td></tr>" for what, value in counts]
    parts.append("</table><h2>Problems</h2>")
    parts.append(f"<table>{problems}</table>" if problems else "<p>None was found.</p>")
    for histogram in histograms:
        parts.append(f"<h2>{html.escape(histogram.title[0].upper() + histogram.title[1:])}</h2><table>")
        parts += [
            f'<tr><td>{html.escape(shown(what, 80))}</td><td class="n">{count:,}</td>'
            f'<td class="bar"><i style="width:{100 * count / histogram.most:.1f}%"></i></td></tr>'
            for what, count in histogram.rows
        ]
        parts.append("</table>")
    return page(name, STYLE, parts)
