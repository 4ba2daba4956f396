"""`detops targets`: annotations in, CenterNet's class-wise heatmaps for the whole set out, as pictures and numbers."""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from detops.apps.data.coco import Annotations, read
from detops.apps.pictures import Picture, canvas, contact_sheet, overlay, unique_stems
from detops.ragged import RaggedBatch
from detops.targets.heatmap import draw_heatmap_batched
from detops.targets.radius import gaussian_radius

CHUNK_VALUES = 1 << 24  # values of the maps drawn at once, 64 MiB
SHEET = 24  # pictures on the contact sheet


@dataclass(frozen=True)
class Gaussians:
    """Where each box is drawn: centres (T, 2) and radii (T,), int32, in cells of the feature map."""

    centers: Tensor
    radii: Tensor


def gaussians(annotations: Annotations, stride: int, min_overlap: float) -> Gaussians:
    """Compute the Gaussians of a whole set at once, as CenterNet defines them.

    Args:
        annotations: The set.
        stride: Pixels a cell.
        min_overlap: IoU that a box keeps when its corners move by the radius.
    """
    boxes = annotations.boxes / stride
    sides = boxes[:, 2:] - boxes[:, :2]
    radii = gaussian_radius(sides[:, 1], sides[:, 0], min_overlap).to(torch.int32)
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).to(torch.int32)
    return Gaussians(centers, radii)


def draw(annotations: Annotations, drawn: Gaussians, stride: int) -> Iterator[tuple[list[int], Tensor]]:
    """Draw the maps, batched over images whose maps have one size.

    Args:
        annotations: The set.
        drawn: Its Gaussians.
        stride: Pixels a cell.

    Yields:
        Positions of some images in the set, and their maps (B, C, ceil(height / stride), ceil(width / stride)).
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position, image in enumerate(annotations.images):
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


def boxes_a_second(annotations: Annotations, stride: int, min_overlap: float, repeats: int = 5) -> float:
    """Median rate of computing and drawing the targets of the whole set, pictures not counted."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in draw(annotations, gaussians(annotations, stride, min_overlap), stride):
            pass
        seconds.append(time.perf_counter() - start)
    return len(annotations.boxes) / statistics.median(seconds)


@dataclass(frozen=True)
class Summary:
    """What `summary.json` holds."""

    images: int
    boxes: int
    classes: int
    clipped: int
    skipped: dict[str, int]
    broken: int
    missing_images: int
    resized_images: int
    radius: dict[str, float]
    boxes_per_second: float

    def table(self, out: Path) -> Table:
        """The summary for the terminal."""
        view = Table("what", "how many", title="Training targets")
        view.columns[1].justify = "right"
        rows: list[tuple[str, object]] = [
            ("images", self.images),
            ("boxes drawn", self.boxes),
            ("classes", self.classes),
        ]
        rows += [(f"skipped: {reason}", count) for reason, count in sorted(self.skipped.items())]
        rows += [("clipped to the image", self.clipped), ("images not found, drawn on blank", self.missing_images)]
        rows += [("images of another size than recorded", self.resized_images)]
        rows += [(f"radius in cells: {name}", f"{value:g}") for name, value in self.radius.items()]
        rows += [("boxes a second", f"{self.boxes_per_second:,.0f}")]
        for name, value in rows:
            if value not in (0, "0") or name in ("images", "boxes drawn"):
                view.add_row(name, str(value))
        view.caption = f"in {out}"
        return view


def radius_distribution(radii: Tensor) -> dict[str, float]:
    """Smallest, tenth, middle, nine tenths and largest radius; nothing for no boxes."""
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
    console: Console | None = None,
) -> Summary:
    """Draw a set's targets and write pictures, contact sheet and summary.

    Args:
        path: COCO annotations, .json or .json.gz.
        images: Folder of the images; None draws on blank canvases.
        out: Folder to write into.
        stride: Pixels a cell of the maps.
        min_overlap: IoU that a box keeps when its corners move by the radius.
        image_ids: Only these images.
        limit: Only the first so many images.
        pictures: Write only the first so many pictures; targets are drawn for all.
        console: Where to print.

    Returns:
        The numbers that were written to `summary.json`.

    Raises:
        ValueError: An argument or the file is of no use.
    """
    console = console or Console()
    if stride < 1:
        raise ValueError(f"stride: expected at least 1, got {stride}")
    annotations = read(path).select(image_ids, limit)
    for skipped in annotations.broken:
        console.print(f"skipped {skipped}", style="yellow", highlight=False, soft_wrap=True)
    drawn = gaussians(annotations, stride, min_overlap)

    (out / "images").mkdir(parents=True, exist_ok=True)
    sheet: dict[int, Picture] = {}
    missing = resized = 0
    names = unique_stems([image.file_name for image in annotations.images])
    wanted = len(annotations.images) if pictures is None else min(pictures, len(annotations.images))
    chunks = draw(annotations, drawn, stride)
    maps = ((p, heat) for positions, heatmap in chunks for p, heat in zip(positions, heatmap, strict=True))
    progress = track(maps, "drawing", len(annotations.images), console=console, transient=True)
    for position, heatmap in progress:
        if position >= wanted:
            continue
        record = annotations.images[position]
        image, state = canvas(None if images is None else images / record.file_name, record)
        missing += state == "missing"
        resized += state == "resized"
        boxes, labels = annotations.of_image(position)
        picture = overlay(image, heatmap, boxes, labels, annotations.class_names, record, stride)
        picture.save(out / "images" / f"{names[position]}.png")
        if position < SHEET:
            sheet[position] = Picture(picture, f"{record.file_name}   {len(boxes)} boxes")
    contact_sheet([sheet[p] for p in sorted(sheet)]).save(out / "contact_sheet.png")

    summary = Summary(
        len(annotations.images),
        len(annotations.boxes),
        len(annotations.class_names),
        annotations.clipped,
        annotations.reasons(),
        len(annotations.broken),
        missing,
        resized,
        radius_distribution(drawn.radii),
        boxes_a_second(annotations, stride, min_overlap),
    )
    (out / "summary.json").write_text(json.dumps(vars(summary), indent=1, allow_nan=False) + "\n")
    console.print(summary.table(out))
    return summary
