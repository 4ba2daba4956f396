"""`detops bench inference`: what each improvement saves at each stage of torchvision's Mask R-CNN.

Unlike the suites, it times whole images by their stages, and is not part of `make bench`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detops.apps import note, require
from detops.apps.bench import _inference_scene as scene
from detops.apps.bench import _torchvision
from detops.apps.bench._timing import keep_freed_memory
from detops.apps.bench.runner import default_device, described, machine, write_json
from detops.apps.outputs import Outputs
from detops.diagnostics.stage_timer import StageTimer
from detops.integrations.torchvision import MaskRCNNPipeline
from detops.masks.crops import MaskCrop
from detops.masks.drawing import draw_masks
from detops.masks.instance_masks import InstanceMasks

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console
    from rich.table import Table

COUNT = 100  # detections without weights, and at most with weights
INNER, ENCODE = ("total", "roi_heads"), ("total", "encode")
COLUMNS: dict[str, list[tuple[str, ...]]] = {  # the stages whose times are summed
    "preprocessing": [("total", "preprocessing")],
    "backbone": [("total", "backbone")],
    "RPN": [("total", "rpn")],
    "mask forward": [(*INNER, "mask_forward")],
    "mask post-processing": [(*INNER, "mask_postprocessing"), ENCODE],
    "RoI head": [INNER, ENCODE],
    "total": [("total",)],
}
Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Row:
    """One line of the table: medians of each column, and the range of the total, in milliseconds."""

    name: str
    columns: dict[str, float]
    low: float
    high: float
    detections: int


@dataclass
class Contender:
    """One way to run the model, and its results."""

    name: str
    run: Callable[[Any], list[dict[str, Any]]]
    timer: StageTimer
    detections: int = 0
    result: dict[str, Any] | None = None  # kept only for the two that the picture shows


def run(
    sizes: Sequence[str] = ("1333x800",),
    image: Path | None = None,
    weights: Path | None = None,
    out: Path = Path("out/bench_inference"),
    repeats: int = 3,
    json_path: Path | None = None,
    device: str | None = None,
    console: "Console | None" = None,
    build: Callable[..., Any] | None = None,
) -> list[Row]:
    """Measure, print the tables, and draw both kinds of masks.

    Args:
        sizes: "WIDTHxHEIGHT" of the network's input, and of a generated image.
        image: Picture to detect on, at its own size; None generates one.
        weights: Weights of torchvision's `maskrcnn_resnet50_fpn`; without them, weights are random and detections
            generated.
        out: Folder of the pictures.
        repeats: Images per row, after one that is not timed.
        json_path: File to write the numbers to as JSON; None for nowhere.
        device: "cpu" or "cuda"; None takes a GPU if there is one.
        console: Where to print.
        build: Builds the model from its sizes and weights; None takes `maskrcnn_resnet50_fpn`.

    Returns:
        All rows.

    Raises:
        ModuleNotFoundError: torchvision, Pillow, pycocotools or rich is missing.
        ValueError: A size, the image or `repeats` is invalid.
    """
    console = console or require("rich.console", "rich", "bench inference", "cli").Console()
    if not console.is_terminal:
        console.width = max(console.width, 170)
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    _torchvision.load()
    where = torch.device(device or default_device())
    if where.type == "cpu":
        keep_freed_memory()
    outputs = Outputs(out, filter(None, [image, weights]))
    outputs.claim(*(f"{width}x{height}.jpg" for width, height in map(_size, sizes)))
    record: list[dict[str, Any]] = []
    every: list[Row] = []
    for size in [_size(text) for text in sizes]:
        model = (build or resnet50)(size, weights).to(where).eval()
        view = _image(model, size, image, weights)
        with console.status(f"measuring {size[0]}x{size[1]}") as status:
            rows, pasted, raw = measure(model, view, where, repeats, status.update)
        name = f"{size[0]}x{size[1]}"
        console.print(table(rows, f"Mask R-CNN, {name}, {machine(where.type)}", weights))
        with outputs.open(f"{name}.jpg") as file:
            side_by_side(view, pasted, raw, rows).save(file, "JPEG", quality=90)
        note(console, f"picture: {out / name}.jpg")
        record.append({"size": name, "image": list(view.size), "rows": [asdict(row) for row in rows]})
        every += rows
    if json_path is not None:
        about = {"model": "maskrcnn_resnet50_fpn", "trained weights": weights is not None, "repeats": repeats}
        write_json(json_path, {**described("inference", where.type), **about, "sizes": record})
        console.print(f"results: {json_path}", soft_wrap=True)
    return every


def _size(text: str) -> Size:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) >= 64 for part in parts):
        raise ValueError(f"sizes: expected WIDTHxHEIGHT of at least 64, such as 1333x800, got {text!r}")
    return int(parts[0]), int(parts[1])


def resnet50(size: Size, weights: Path | None) -> Any:
    """Torchvision's `maskrcnn_resnet50_fpn` whose input is fitted into the size."""
    sides = {"min_size": min(size), "max_size": max(size), "box_detections_per_img": COUNT}
    if weights is not None:
        from detops.apps.predict import mask_rcnn_predictor

        return mask_rcnn_predictor.load_mask_rcnn(weights, **sides)
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    torch.manual_seed(0)
    return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **sides)


def _image(model: Any, size: Size, path: Path | None, weights: Path | None) -> "Image":
    """Return the picture to detect on; a model without weights is made to find the objects in it."""
    module = require("PIL.Image", "Pillow", "bench inference")
    if path is not None:
        try:
            image: Image = module.open(path).convert("RGB")
        except (OSError, SyntaxError, module.DecompressionBombError) as error:
            raise ValueError(f"{path}: cannot be decoded: {error}") from error
    classes = model.roi_heads.mask_predictor.mask_fcn_logits.out_channels
    width, height = size if path is None else image.size
    objects = scene.generate(COUNT, classes, width / height)
    if weights is None:
        scene.find(model, objects)
    return scene.picture(objects, width, height) if path is None else image


def measure(
    model: Any, view: "Image", device: torch.device, repeats: int, tell: Callable[[str], None] = lambda text: None
) -> tuple[list[Row], dict[str, Any], InstanceMasks]:
    """Time all rows in turns, so that a slow moment of the machine affects all of them.

    Args:
        model: A Mask R-CNN.
        view: The image to detect on.
        device: Device of the model.
        repeats: Images per row.
        tell: Called with the name of each step.

    Returns:
        The rows, and the results of plain torchvision and of raw masks.
    """
    half_name = "float16" if device.type == "cuda" else "bfloat16"
    plain, half = (
        _contender("plain", model, device),
        _contender(f"+ half precision ({half_name})", model, device, half=True),
    )
    _run([plain, half], view, repeats, tell)
    rows = [_row(plain), _row(half)]
    faster = rows[1].columns["total"] < rows[0].columns["total"]
    if not faster:
        rows[1] = replace(rows[1], name=f"{half.name}: slower here, left out below")
    switches: dict[str, Any] = {"half": faster, "device_preprocess": True}
    raw = _contender("+ raw masks", model, device, masks="raw", **switches)
    others = [
        _contender("+ preprocessing on the device", model, device, **switches),
        raw,
        _contender("+ RLE of raw masks", model, device, masks="rle", **switches),
        _encoding(_contender("instead: paste and encode", model, device, **switches)),
    ]
    _run(others, view, repeats, tell)
    assert plain.result is not None
    assert raw.result is not None
    return rows + [_row(contender) for contender in others], plain.result, raw.result["masks"]


def _contender(name: str, model: Any, device: torch.device, **switches: Any) -> Contender:
    timer = StageTimer(device)
    return Contender(name, MaskRCNNPipeline(model, timer=timer, **switches), timer)


def _encoding(contender: Contender) -> Contender:
    """Return the same contender, followed by pycocotools' encoding of the pasted masks."""
    numpy, coco = (require(name, "pycocotools", "bench inference") for name in ("numpy", "pycocotools.mask"))

    def encoded(images: Any) -> list[dict[str, Any]]:
        results = contender.run(images)
        with contender.timer.stage("encode"):
            for result in results:
                masks = (result["masks"][:, 0] >= 0.5).cpu().numpy()
                result["masks"] = [coco.encode(numpy.asfortranarray(mask, dtype=numpy.uint8)) for mask in masks]
        return results

    return Contender(contender.name, encoded, contender.timer)


def _run(contenders: list[Contender], view: "Image", repeats: int, tell: Callable[[str], None]) -> None:
    """Let the contenders detect in turns; their timers then hold the repeats."""
    for turn in range(repeats + 1):
        for contender in contenders:
            tell(f"{contender.name}, {turn} of {repeats}" if turn else f"{contender.name}, warming up")
            if turn == 1:
                contender.timer.reset()
            with contender.timer.stage("total"):
                result = contender.run([view])[0]
            contender.detections = len(result["boxes"])
            if turn == repeats and contender.name in ("plain", "+ raw masks"):
                if isinstance(result["masks"], Tensor):  # gigabytes of probabilities
                    result["masks"] = (result["masks"][:, 0] >= 0.5).cpu()
                contender.result = result
            del result  # gigabytes as well, which the next one needs


def _row(contender: Contender) -> Row:
    stats = {s.path: s for s in contender.timer.stats()}
    columns = {
        name: sum((stats[path].median_ms for path in paths if path in stats), 0.0) for name, paths in COLUMNS.items()
    }
    total = stats[("total",)]
    return Row(contender.name, columns, total.min_ms, total.max_ms, contender.detections)


def table(rows: list[Row], title: str, weights: Path | None) -> "Table":
    """Lay the rows out for the terminal."""
    note = "milliseconds per image, medians; RoI head includes both columns of masks"
    if weights is None:
        note += f"\nno weights: the heads' boxes and masks are replaced by those of {COUNT} generated objects"
    view: Table = require("rich.table", "rich", "bench inference", "cli").Table(
        "", *COLUMNS, "from", "to", "speed-up", title=title, caption=note
    )
    for column in view.columns[1:]:
        column.justify = "right"
    first = rows[0].columns["total"]
    for row in rows:
        times = (*row.columns.values(), row.low, row.high)
        view.add_row(row.name, *(f"{time:.1f}" for time in times), f"{first / row.columns['total']:.2f}x")
    return view


def side_by_side(
    view: "Image", pasted: dict[str, Any], raw: InstanceMasks, rows: list[Row], width: int = 1000
) -> "Image":
    """Draw the image with torchvision's pasted masks and with raw ones, under a line with the cost of each."""
    module = require("PIL.Image", "Pillow", "bench inference")
    pens = require("PIL.ImageDraw", "Pillow", "bench inference")
    fonts = require("PIL.ImageFont", "Pillow", "bench inference")
    crops = [MaskCrop(mask, 0, 0) for mask in pasted["masks"]]
    boxes, labels, scores = (pasted[name].cpu() for name in ("boxes", "labels", "scores"))
    left = draw_masks(view, (view.height, view.width), crops, boxes, labels, scores, None, 0.5)
    pictures = (left, raw.draw(view))
    height, band = round(width * view.height / view.width), width // 25
    sheet: Image = module.new("RGB", (2 * width + 8, height + band), "white")
    pen, font = pens.Draw(sheet), fonts.load_default(size=band * 3 // 5)
    costs = [row.columns["mask post-processing"] for row in (rows[0], rows[3])]
    for index, (name, cost, drawn) in enumerate(zip(("pasted", "raw masks"), costs, pictures, strict=True)):
        x = index * (width + 8)
        pen.text((x + 6, band // 6), f"{name}: mask post-processing {cost:.1f} ms", "black", font)
        sheet.paste(drawn.resize((width, height)), (x, band))
    return sheet
