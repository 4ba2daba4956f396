"""`detops predict`: a trained run and images in, pictures and a COCO results file out, in pixels of the images.

Also what evaluation and reports need: a run's network, its detections, and some beside the truth.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from detops.apps import models, report, require
from detops.apps.augment import centered
from detops.apps.dataset import CocoImages, fitted, load_image, open_annotations
from detops.apps.families import Family, family

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
FAINT = 0.001  # detections below this score are not written: they cost time and change no number
SHORT_SIDE = 480  # small images are enlarged to this in pictures, so that labels are legible


@dataclass(frozen=True)
class Found:
    """Detections on one image, the best first: xyxy in its pixels, scores, labels."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def above(self, score: float) -> "Found":
        """Those of at least this score."""
        kept = self.scores >= score
        return Found(self.boxes[kept], self.scores[kept], self.labels[kept])


def read_config(run: Path) -> dict[str, Any]:
    """The `config.json` of a run.

    Raises:
        FileNotFoundError: There is none.
    """
    path = run / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{run}: expected a folder that detops train wrote, with config.json")
    config: dict[str, Any] = json.loads(path.read_text())
    return config


def load(run: Path, device: torch.device) -> tuple[nn.Module, Family, dict[str, Any]]:
    """A run's network with its averaged weights, ready to detect, its kind, and its configuration.

    Raises:
        FileNotFoundError: The run has no configuration or no checkpoint yet.
    """
    config, path = read_config(run), run / "checkpoints" / "last.ckpt"
    if not path.exists():
        raise FileNotFoundError(f"{run}: expected checkpoints/last.ckpt, which detops train writes")
    detector, count = config["detector"], len(config["classes"])
    network = models.build(config["model"], count, config["width"], detector)
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({name[4:]: value for name, value in state.items() if name.startswith("ema.")})
    network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return network, family(detector, count), config


def detect(
    network: nn.Module,
    kind: Family,
    images: Tensor,
    scales: Sequence[tuple[float, float]],
    sides: Sequence[tuple[int, int]],
    autocast: bool = False,
) -> list[Found]:
    """Detect on a batch.

    Args:
        network: In evaluation mode.
        kind: What decodes its outputs.
        images: (B, 3, H, W) uint8 on the network's device.
        scales: Pixels of the input a pixel of each image, along x and y.
        sides: Width and height of each image, to which boxes are cut.
        autocast: Compute in bfloat16.

    Returns:
        What each image shows, on the CPU.
    """
    pixels = centered(images).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        outputs = list(network(pixels))
    boxes, scores, labels = (t.cpu() for t in kind.decode(outputs, (images.shape[2], images.shape[3])))
    found = []
    for box, score, label, scale, side in zip(boxes, scores, labels, scales, sides, strict=True):
        box = torch.minimum((box / torch.tensor(scale * 2)).clamp(min=0), torch.tensor(side * 2))
        good = (label >= 0) & (score >= FAINT) & (box[:, 2:] > box[:, :2]).all(1)
        found.append(Found(box[good], score[good], label[good]))
    return found


def detect_all(
    network: nn.Module,
    kind: Family,
    dataset: CocoImages,
    rows: Sequence[int],
    batch_size: int = 8,
    autocast: bool = False,
) -> list[Found]:
    """Detect on rows of a data set."""
    device = next(network.parameters()).device
    found: list[Found] = []
    for begin in range(0, len(rows), batch_size):
        part = rows[begin : begin + batch_size]
        records = [dataset.annotations.images[row] for row in part]
        images = dataset.__getitems__(part).images.to(device)
        sides = [(record.width, record.height) for record in records]
        found += detect(network, kind, images, [dataset.scale(row) for row in part], sides, autocast)
    return found


def as_results(image_id: int | str, found: Found, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections in COCO's results form."""
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
        }
        for (x1, y1, x2, y2), score, label in zip(
            found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]


def draw(image: "Image", found: Found, class_names: Sequence[str], scores: bool = True) -> "Image":
    """Boxes, names and scores over an RGB image; small images come back enlarged, and in a crowd names are left out."""
    module, font_module = require("PIL.ImageDraw", "Pillow", "predict"), require("PIL.ImageFont", "Pillow", "predict")
    scale = max(1.0, SHORT_SIDE / min(image.size))
    view = image.resize((round(image.width * scale), round(image.height * scale)))
    pen, font = module.Draw(view, "RGBA"), font_module.load_default(size=max(11, min(view.size) // 38))
    rows = zip((found.boxes * scale).tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    for (left, top, right, bottom), score, label in reversed(list(rows)):  # the best on top
        color = report.class_color(label)
        pen.rectangle((left, top, right, bottom), outline=(*color, 235), width=max(1, min(view.size) // 240))
        if len(found.boxes) > report.CROWD:
            continue
        text = f"{class_names[label]} {score:.2f}" if scores else class_names[label]
        height = font.size + 4
        top = top - height if top >= height else top
        pen.rectangle((left, top, left + pen.textlength(text, font) + 8, top + height), fill=(*color, 215))
        pen.text((left + 4, top + 1), text, report.INK, font)
    return view


def samples(run: Path, count: int = 8, score: float = 0.3) -> list[dict[str, Any]]:
    """Detections beside the truth on the first images of a run's validation set.

    Args:
        run: Folder of the run.
        count: How many images.
        score: Of the detections, at least.

    Returns:
        For each image: "path", "found" (`Found`), "boxes" (n, 4) and "labels" (n,) of the truth, "class_names".
    """
    network, kind, config = load(run, torch.device("cpu"))
    console = Console(quiet=True)
    folder = Path(config["val_images"])
    annotations = open_annotations(Path(config["val_annotations"]), folder, False, console).select(limit=count)
    size = (config["size"][0], config["size"][1])
    dataset = CocoImages(annotations, folder, size, False, 0, console)
    found = detect_all(network, kind, dataset, range(len(dataset)))
    return [
        {
            "path": folder / record.file_name,
            "found": found[row].above(score),
            "boxes": annotations.of_image(row)[0],
            "labels": annotations.of_image(row)[1],
            "class_names": annotations.class_names,
        }
        for row, record in enumerate(annotations.images)
    ]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as they are named, and the images within folders.

    Raises:
        FileNotFoundError: There is no such file, or none at all.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file")
    if not found:
        raise FileNotFoundError("images: expected at least one, found none in the folders")
    return found


def run(
    run: Path,
    images: Sequence[Path],
    out: Path,
    score: float = 0.3,
    annotations: Path | None = None,
    device: str | None = None,
    console: Console | None = None,
) -> int:
    """Detect on images; write `images/*.jpg` and `results.json`.

    Args:
        run: Folder of a trained run.
        images: Files and folders.
        out: Where to write.
        score: Detections in the pictures have at least this score; the results hold all.
        annotations: COCO file whose image ids the results use; without it, the first image is 1.
        device: Torch device; by default a GPU where there is one.
        console: Where to print.

    Returns:
        How many images could not be decoded; they are named and left out.
    """
    console = console or Console()
    module = require("PIL.Image", "Pillow", "predict")
    network, kind, config = load(run, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    paths = find_images(images)
    ids: dict[str, Any] = {}
    if annotations is not None:
        from detops.apps.coco import read

        ids = {Path(image.file_name).name: image.id for image in read(annotations).images}
    size = (config["size"][0], config["size"][1])
    target = next(network.parameters()).device
    (out / "images").mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    failed = 0
    names = report.unique_stems([path.name for path in paths])
    for index, path in enumerate(track(paths, "detecting", console=console, transient=True)):
        try:
            pixels, sides = load_image(path, size)
        except ValueError as error:
            console.print(f"skipped {error}", style="yellow", highlight=False, markup=False, soft_wrap=True)
            failed += 1
            continue
        width, height = fitted(sides, size)
        found = detect(network, kind, pixels[None].to(target), [(width / sides[0], height / sides[1])], [sides])[0]
        image_id = ids.get(path.name, index + 1)
        results += [{**row, "file_name": path.name} for row in as_results(image_id, found, config["category_ids"])]
        with module.open(path) as file:
            picture = draw(file.convert("RGB"), found.above(score), config["classes"])
        picture.save(out / "images" / f"{names[index]}.jpg", quality=90)
    (out / "results.json").write_text(json.dumps(results) + "\n")
    console.print(f"{len(paths) - failed} pictures and results.json in {out}", markup=False, soft_wrap=True)
    return failed
