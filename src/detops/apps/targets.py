"""`detops targets`: annotations in; CenterNet's heatmaps of the whole set out, as pictures and a summary."""

import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from detops.apps import note, warn
from detops.apps.data.coco import Annotations, read
from detops.apps.data.compare import HEADS, find_images
from detops.apps.data.images import facts
from detops.apps.errors import explain
from detops.apps.outputs import Outputs
from detops.apps.pictures import Picture, canvas, contact_sheet, overlay, unique_stems
from detops.apps.terminal import progress
from detops.arguments import flat
from detops.ragged import RaggedBatch
from detops.targets.heatmap import draw_heatmap_batched
from detops.targets.radius import gaussian_radius

CHUNK_VALUES = 1 << 24  # values of the heatmaps that are drawn at once: 64 MiB
LARGEST_VALUES = 1 << 28  # values of one image's heatmap: 1 GiB
SHEET = 24  # pictures on the contact sheet
MEASURED = 500  # images that the speed is measured on, or fewer large ones
MEASURING = 2.0  # seconds after which no repetition begins
MANY = 0.1  # fraction of the boxes


@dataclass(frozen=True)
class Gaussians:
    """The Gaussian of each box: centres (T, 2) and radii (T,), int32, in cells of the heatmap."""

    centers: Tensor
    radii: Tensor


def gaussians(annotations: Annotations, stride: int, min_overlap: float) -> Gaussians:
    """Compute the Gaussians of a whole data set at once, as CenterNet defines them.

    Args:
        annotations: The data set.
        stride: Image pixels per cell.
        min_overlap: Lowest IoU that a box shifted by the radius may have with its original.
    """
    boxes = annotations.boxes / stride
    sides = boxes[:, 2:] - boxes[:, :2]
    radii = gaussian_radius(sides[:, 1], sides[:, 0], min_overlap).to(torch.int32)
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).to(torch.int32)
    return Gaussians(centers, radii)


def draw(
    annotations: Annotations, drawn: Gaussians, stride: int, count: int | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Draw the heatmaps, in batches of images whose heatmaps have the same size.

    Args:
        annotations: The data set.
        drawn: Its Gaussians.
        stride: Image pixels per cell.
        count: Draw those of the first images alone.

    Yields:
        Positions of some images in the data set, and their heatmaps (B, C, ceil(height / stride),
        ceil(width / stride)).
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position, image in enumerate(annotations.images[:count]):
        groups[-(-image.height // stride), -(-image.width // stride)].append(position)
    classes = max(1, len(annotations.class_names))
    starts = torch.searchsorted(annotations.image_index, torch.arange(len(annotations.images) + 1))
    counts = starts.diff()
    for (height, width), positions in groups.items():
        step = max(1, CHUNK_VALUES // (classes * height * width))
        for begin in range(0, len(positions), step):
            part = torch.tensor(positions[begin : begin + step])
            offsets = torch.arange(int(counts[part].max()))
            exists = offsets < counts[part, None]
            rows = (starts[part, None] + offsets).where(exists, 0)  # (B, N); boxes are sorted by image
            heatmap = torch.zeros(len(part), classes, height, width)
            if exists.any():
                centers, radii, labels = (
                    RaggedBatch(values[rows], sample_sizes=counts[part])
                    for values in (drawn.centers, drawn.radii, annotations.labels)
                )
                draw_heatmap_batched(heatmap, centers, radii, labels=labels)
            yield part.tolist(), heatmap


def boxes_per_second(annotations: Annotations, stride: int, min_overlap: float, repeats: int = 5) -> float:
    """Measure the median rate at which the targets of the whole set are computed and drawn, without pictures."""
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < MEASURING:
        start = time.perf_counter()
        for _ in draw(annotations, gaussians(annotations, stride, min_overlap), stride):
            pass
        seconds.append(time.perf_counter() - start)
    return len(annotations.boxes) / statistics.median(seconds)


@dataclass(frozen=True)
class Summary:
    """The content of `summary.json`."""

    images: int
    boxes: int
    classes: int
    classes_with_boxes: int
    clipped: int
    skipped: dict[str, int]
    broken: int
    smaller_than_a_cell: int
    sharing_a_cell: int
    missing_images: int
    resized_images: int
    radius: dict[str, float]
    boxes_per_second: float

    def table(self, out: Path) -> Table:
        """Lay the summary out for the terminal."""
        view = Table("what", "count", title="Training targets")
        view.columns[1].justify = "right"
        rows: list[tuple[str, object]] = [
            ("images", self.images),
            ("boxes drawn", self.boxes),
            ("classes", self.classes),
            ("classes that have no box", self.classes - self.classes_with_boxes),
        ]
        rows += [(f"skipped: {reason}", count) for reason, count in sorted(self.skipped.items())]
        rows += [
            ("clipped to the image", self.clipped),
            ("smaller than a cell", self.smaller_than_a_cell),
            ("centre in one cell with another's", self.sharing_a_cell),
            ("images not found, drawn on a blank canvas", self.missing_images),
        ]
        rows += [("images whose size differs from the annotations", self.resized_images)]
        rows += [(f"radius in cells: {name}", f"{value:g}") for name, value in self.radius.items()]
        rows += [("boxes per second", f"{self.boxes_per_second:,.0f}")]
        for name, value in rows:
            if value != 0 or name in ("images", "boxes drawn"):
                view.add_row(name, str(value))
        view.caption = escape(f"in {out}")
        return view


def radius_distribution(radii: Tensor) -> dict[str, float]:
    """Compute the smallest and largest radius and the quantiles between; empty if there are no boxes."""
    if len(radii) == 0:
        return {}
    marks = {"smallest": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "largest": 1.0}
    values = torch.quantile(
        radii[torch.randperm(len(radii))[:1_000_000]].double(), torch.tensor([*marks.values()]).double()
    )
    return dict(zip(marks, values.tolist(), strict=True))


def run(
    path: Path,
    images: Path | None,
    out: Path,
    stride: int = 4,
    min_overlap: float = 0.3,
    image_ids: tuple[str, ...] = (),
    limit: int | None = None,
    pictures: int | None = None,
    strict: bool = False,
    console: Console | None = None,
) -> Summary:
    """Draw the targets of a data set and write pictures, a contact sheet and a summary.

    Args:
        path: COCO annotations, .json or .json.gz.
        images: Folder of the images; None draws on blank canvases.
        out: Folder to write to.
        stride: Image pixels per cell of the heatmaps.
        min_overlap: Lowest IoU that a box shifted by the radius may have with its original.
        image_ids: Only these images.
        limit: Only the first `limit` images.
        pictures: Write only the first `pictures` pictures.
        strict: Stop if anything is left out or doubtful.
        console: Where to print.

    Returns:
        The numbers that were written to `summary.json`.

    Raises:
        ValueError: An argument or the file is invalid.
    """
    console = console or Console()
    if stride < 1:
        raise ValueError(f"stride: expected at least 1, got {stride}")
    outputs = Outputs(out, filter(None, (path, images)))
    outputs.claim("summary.json", "contact_sheet.png")
    outputs.claim_pictures("images")
    whole = read(path, images)
    if images is not None:
        whole = find_images(whole, images, None if strict else HEADS, keep_all=True)
    whole.accept(path, console, strict)
    annotations = _drawable(whole.select(image_ids, limit), stride, console)
    drawn = gaussians(annotations, stride, min_overlap)
    cells = torch.cat([annotations.image_index[:, None], drawn.centers], 1)
    wanted = len(annotations.images) if pictures is None else min(pictures, len(annotations.images))
    states = _states(annotations, images, wanted)
    measured = annotations.select(limit=_few(annotations, stride))
    summary = Summary(
        images=len(annotations.images),
        boxes=len(annotations.boxes),
        classes=len(annotations.class_names),
        classes_with_boxes=len(annotations.labels.unique()),
        clipped=annotations.clipped,
        skipped=annotations.reasons(),
        broken=annotations.broken,
        smaller_than_a_cell=int(((annotations.boxes[:, 2:] - annotations.boxes[:, :2]) < stride).all(1).sum()),
        sharing_a_cell=len(cells) - int((torch.unique(cells, dim=0, return_counts=True)[1] == 1).sum()),
        missing_images=states["missing"],
        resized_images=states["resized"],
        radius=radius_distribution(drawn.radii),
        boxes_per_second=boxes_per_second(measured, stride, min_overlap),
    )
    outputs.write("summary.json", json.dumps(vars(summary), indent=1, allow_nan=False) + "\n")
    console.print(summary.table(out))
    small = max(summary.smaller_than_a_cell, summary.sharing_a_cell)
    if small > MANY * summary.boxes:
        note(
            console,
            f"{small:,} of {summary.boxes:,} boxes are smaller than a cell, or share one: a smaller --stride, or "
            "training on larger images, tells them apart",
        )
    _write_pictures(annotations, drawn, images, outputs, stride, wanted, console)
    return summary


def _states(annotations: Annotations, images: Path | None, count: int) -> Counter[str]:
    """Count which of the first images are "found", "resized" (found, with another size than recorded) or "missing"."""
    states: Counter[str] = Counter()
    if images is None:
        return states
    for record in annotations.images[:count]:
        try:
            states["found" if facts(images / record.file_name, record.size).size == record.size else "resized"] += 1
        except ValueError:
            states["missing"] += 1
    return states


def _few(annotations: Annotations, stride: int) -> int:
    """Return how many of the first images to measure on: at least one, and no more than one large one's cells."""
    cells, classes = 0, max(1, len(annotations.class_names))
    for count, image in enumerate(annotations.images[:MEASURED]):
        cells += classes * -(-image.height // stride) * -(-image.width // stride)
        if cells > LARGEST_VALUES:
            return max(1, count)
    return MEASURED


def _drawable(annotations: Annotations, stride: int, console: Console) -> Annotations:
    """Leave out images whose heatmaps would not fit into memory."""
    classes = max(1, len(annotations.class_names))
    size = [classes * -(-image.height // stride) * -(-image.width // stride) for image in annotations.images]
    kept = [row for row, values in enumerate(size) if values <= LARGEST_VALUES]
    for image in (image for image, values in zip(annotations.images, size, strict=True) if values > LARGEST_VALUES):
        warn(
            console, f"image {image.id} not drawn: a heatmap of {image.width} x {image.height} needs a larger --stride"
        )
    if not kept:
        raise ValueError("stride: no image is left whose heatmap fits into memory; choose a larger one")
    return annotations.at(kept)


def _write_pictures(
    annotations: Annotations,
    drawn: Gaussians,
    images: Path | None,
    outputs: Outputs,
    stride: int,
    wanted: int,
    console: Console,
) -> None:
    """Write the pictures of the first images, and the contact sheet.

    A picture that cannot be drawn or written is named, and costs nothing but itself.
    """
    sheet: dict[int, Picture] = {}
    names = unique_stems([image.file_name for image in annotations.images])
    if wanted < len(annotations.images):
        note(console, f"drawing {wanted:,} of {len(annotations.images):,} images; the numbers are those of all")
    chunks = draw(annotations, drawn, stride, wanted)
    maps = ((p, heat) for positions, heatmap in chunks for p, heat in zip(positions, heatmap, strict=True))
    with progress(console, "drawing", wanted) as tell:
        for count, (position, heatmap) in enumerate(maps):
            tell(count)
            record = annotations.images[position]
            try:
                image = canvas(None if images is None else images / record.file_name, record)
            except ValueError as error:
                warn(console, f"drawn on a blank canvas: {error}")
                image = canvas(None, record)
            boxes, labels = annotations.of_image(position)
            try:
                picture = overlay(image, heatmap, boxes, labels, annotations.class_names, record, stride)
                with outputs.open(f"images/{names[position]}.png", durable=False) as file:
                    picture.save(file, "PNG")
            except Exception as error:  # whatever Pillow, a font or the disk does
                warn(console, f"{record.file_name}: no picture: {explain(error) or flat(error, 200)}")
                continue
            if position < SHEET:
                sheet[position] = Picture(picture, f"{record.file_name}   {len(boxes)} boxes")
    with outputs.open("contact_sheet.png") as file:
        contact_sheet([sheet[p] for p in sorted(sheet)]).save(file, "PNG")
