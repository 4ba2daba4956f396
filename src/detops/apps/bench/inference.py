"""`detops bench inference`: what each improvement saves at each stage of a Mask R-CNN, in torchvision's own model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from detops.apps import require
from detops.apps.bench import _inference_scene as scene
from detops.apps.bench import _torchvision
from detops.apps.bench.runner import keep_freed_memory
from detops.apps.predict import mask_rcnn_predictor
from detops.diagnostics.environment import env
from detops.diagnostics.stage_timer import StageTimer
from detops.integrations.torchvision import MaskRCNNPipeline
from detops.masks.drawing import draw
from detops.masks.instance_masks import InstanceMasks, MaskCrop

if TYPE_CHECKING:
    from PIL.Image import Image

COUNT = 100  # detections where there are no weights, and at most where there are
INNER, ENCODE = ("total", "roi_heads"), ("total", "encode")
COLUMNS: dict[str, list[tuple[str, ...]]] = {  # the stages whose times each holds
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
    """One way to run the model, and what came of it."""

    name: str
    run: Callable[[Any], list[dict[str, Any]]]
    timer: StageTimer
    detections: int = 0
    result: dict[str, Any] | None = None  # of those that the picture shows


def run(
    sizes: Sequence[str] = ("1333x800",),
    image: Path | None = None,
    weights: Path | None = None,
    out: Path = Path("out/bench_inference"),
    repeats: int = 3,
    json_path: Path | None = None,
    device: str | None = None,
    console: Console | None = None,
    build: Callable[..., Any] | None = None,
) -> list[Row]:
    """Measure, print the tables, and draw what both kinds of masks look like.

    Args:
        sizes: "WIDTHxHEIGHT" of the network's input, and of the image where none is given.
        image: What to detect on, at its own size; None generates a picture.
        weights: Weights of torchvision's `maskrcnn_resnet50_fpn`; without them, weights are random and detections
            generated.
        out: Folder of the pictures.
        repeats: Images a row, after one that does not count.
        json_path: Where the numbers go as JSON; None for nowhere.
        device: "cpu" or "cuda"; None takes a GPU where there is one.
        console: Where to print.
        build: Makes the model from its sizes; None is `maskrcnn_resnet50_fpn`.

    Returns:
        All rows.

    Raises:
        ModuleNotFoundError: torchvision, Pillow or pycocotools is missing.
        ValueError: An argument is of no use.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 170)
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    _torchvision.load()
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cpu":
        keep_freed_memory()
    record: list[dict[str, Any]] = []
    every: list[Row] = []
    for size in [_size(text) for text in sizes]:
        model = (build or resnet50)(size, weights).to(where).eval()
        view = _image(model, size, image, weights)
        with console.status(f"measuring {size[0]}x{size[1]}") as status:
            rows, pasted, raw = measure(model, view, where, repeats, status.update)
        name = f"{size[0]}x{size[1]}"
        console.print(table(rows, f"Mask R-CNN, {name}, {_machine(where)}", weights))
        path = out / f"{name}.jpg"
        out.mkdir(parents=True, exist_ok=True)
        side_by_side(view, pasted, raw, rows).save(path, quality=90)
        console.print(f"picture: {path}", soft_wrap=True)
        record.append({"size": name, "image": list(view.size), "rows": [asdict(row) for row in rows]})
        every += rows
    if json_path is not None:
        write_json(json_path, where, record, weights is not None, repeats)
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
        return mask_rcnn_predictor.load_mask_rcnn(weights, **sides)
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    torch.manual_seed(0)
    return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **sides)


def _image(model: Any, size: Size, path: Path | None, weights: Path | None) -> "Image":
    """The picture to detect on; a model without weights is told what it shows."""
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
    """Time all rows in turns, so that a slow moment of the machine hits all of them.

    Args:
        model: A Mask R-CNN.
        view: What it sees.
        device: Where it is.
        repeats: Images a row.
        tell: Called with what is being done.

    Returns:
        The rows, and what torchvision and the raw masks make of the image.
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
    """The same, and pycocotools' encoding of its pasted masks."""
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
    """Let them detect in turns; each one's timer then holds the repeats."""
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
            del result  # gigabytes as well, which the next one must not find taken


def _row(contender: Contender) -> Row:
    stats = {s.path: s for s in contender.timer.stats()}
    columns = {
        name: sum((stats[path].median_ms for path in paths if path in stats), 0.0) for name, paths in COLUMNS.items()
    }
    total = stats[("total",)]
    return Row(contender.name, columns, total.min_ms, total.max_ms, contender.detections)


def table(rows: list[Row], title: str, weights: Path | None) -> Table:
    """The rows for the terminal."""
    note = "milliseconds an image, medians; RoI head holds both columns of masks"
    if weights is None:
        note += f"\nno weights: the heads' boxes and masks are replaced by those of {COUNT} generated objects"
    view = Table("", *COLUMNS, "from", "to", "speed-up", title=title, caption=note)
    for column in view.columns[1:]:
        column.justify = "right"
    first = rows[0].columns["total"]
    for row in rows:
        times = (*row.columns.values(), row.low, row.high)
        view.add_row(row.name, *(f"{time:.1f}" for time in times), f"{first / row.columns['total']:.2f}x")
    return view


def _machine(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


def side_by_side(
    view: "Image", pasted: dict[str, Any], raw: InstanceMasks, rows: list[Row], width: int = 1000
) -> "Image":
    """What is seen of torchvision's pasted masks, and of raw ones, under a line that says what each cost."""
    module = require("PIL.Image", "Pillow", "bench inference")
    pens = require("PIL.ImageDraw", "Pillow", "bench inference")
    fonts = require("PIL.ImageFont", "Pillow", "bench inference")
    crops = [MaskCrop(mask, 0, 0) for mask in pasted["masks"]]
    boxes, labels, scores = (pasted[name].cpu() for name in ("boxes", "labels", "scores"))
    left = draw(view, (view.height, view.width), crops, boxes, labels, scores, None, 0.5)
    pictures = (left, raw.draw(view, mode="torchvision"))
    height, band = round(width * view.height / view.width), width // 25
    sheet: Image = module.new("RGB", (2 * width + 8, height + band), "white")
    pen, font = pens.Draw(sheet), fonts.load_default(size=band * 3 // 5)
    costs = [row.columns["mask post-processing"] for row in (rows[0], rows[3])]
    for index, (name, cost, drawn) in enumerate(zip(("pasted", "raw masks"), costs, pictures, strict=True)):
        x = index * (width + 8)
        pen.text((x + 6, band // 6), f"{name}: mask post-processing {cost:.1f} ms", "black", font)
        sheet.paste(drawn.resize((width, height)), (x, band))
    return sheet


def write_json(path: Path, device: torch.device, sizes: list[dict[str, Any]], weights: bool, repeats: int) -> None:
    """Write the numbers with all that one must know to read them."""
    record = {
        "suite": "inference",
        "device": device.type,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "unit": "milliseconds",
        "model": "maskrcnn_resnet50_fpn",
        "trained weights": weights,
        "repeats": repeats,
        "env": env(),
        "sizes": sizes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
