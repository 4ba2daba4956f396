"""A trained run: its network and configuration, its detections in pixels of the images, and pictures of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn

from detops import Detections
from detops.apps import pictures
from detops.apps.data.dataset import CocoImages, open_annotations
from detops.apps.train import models
from detops.apps.train.augment import centered
from detops.apps.train.families import Family, family

if TYPE_CHECKING:
    from PIL.Image import Image

FAINT = 0.001  # detections below this score are not written: they cost time and change no number


@dataclass(frozen=True)
class Found:
    """Detections on one image, the best first: boxes as xyxy in pixels of the image, labels and scores."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor

    def above(self, score: float) -> "Found":
        """Return the detections with at least this score."""
        kept = self.scores >= score
        return Found(self.boxes[kept], self.labels[kept], self.scores[kept])


def read_config(run: Path) -> dict[str, Any]:
    """Read the `config.json` of a run.

    Raises:
        FileNotFoundError: There is none.
    """
    path = run / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{run}: expected a folder that detops train wrote, with config.json")
    config: dict[str, Any] = json.loads(path.read_text())
    return config


def load(run: Path, device: torch.device) -> tuple[nn.Module, Family, dict[str, Any]]:
    """Load a run: its network with the averaged weights, its kind of detector, and its configuration.

    Raises:
        FileNotFoundError: The run has no configuration or no checkpoint yet.
    """
    config, path = read_config(run), run / "checkpoints" / "last.ckpt"
    if not path.exists():
        raise FileNotFoundError(f"{run}: expected checkpoints/last.ckpt, which detops train writes")
    detector, count = config["detector"], len(config["classes"])
    backbone = config.get("backbone", "compact")  # runs of earlier versions have none
    network = models.build(config["model"], count, config["width"], detector, backbone=backbone)
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network.load_state_dict({name[4:]: value for name, value in state.items() if name.startswith("ema.")})
    network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return network, family(detector, count), config


def fingerprint(network: nn.Module) -> str:
    """Hash a network's parameters and buffers: equal hashes mean equal weights, bit for bit."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def forward(network: nn.Module, kind: Family, images: Tensor, autocast: bool = False) -> Detections:
    """Detect on a batch, without waiting for the GPU.

    Args:
        network: Network in evaluation mode.
        kind: Kind of detector, which decodes the outputs.
        images: (B, 3, H, W) uint8 on the network's device.
        autocast: Compute in bfloat16.

    Returns:
        Detections on the network's device, in pixels of the input.
    """
    pixels = centered(images).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        outputs = list(network(pixels))
    return kind.decode(outputs, (images.shape[2], images.shape[3]))


def in_images(
    detections: Detections, scales: Sequence[tuple[float, float]], sides: Sequence[tuple[int, int]]
) -> list[Found]:
    """Convert the detections on a batch to pixels of each image.

    Args:
        detections: Detections on the CPU, in pixels of the input.
        scales: Input pixels per pixel of each image, along x and y.
        sides: Width and height of each image, to which boxes are clipped.
    """
    found = []
    columns = (detections.boxes, detections.labels, detections.scores, scales, sides)
    for box, label, score, scale, side in zip(*columns, strict=True):
        box = torch.minimum((box / torch.tensor(scale * 2)).clamp(min=0), torch.tensor(side * 2))
        good = (label >= 0) & (score >= FAINT) & (box[:, 2:] > box[:, :2]).all(1)
        found.append(Found(box[good], label[good], score[good]))
    return found


def detect_all(
    network: nn.Module,
    kind: Family,
    dataset: CocoImages,
    rows: Sequence[int],
    batch_size: int = 8,
    autocast: bool = False,
) -> list[Found]:
    """Detect on some rows of a data set, in batches."""
    device = next(network.parameters()).device
    found: list[Found] = []
    for begin in range(0, len(rows), batch_size):
        part = rows[begin : begin + batch_size]
        records = [dataset.annotations.images[row] for row in part]
        images = dataset.__getitems__(part).images.to(device)
        sides = [(record.width, record.height) for record in records]
        detections = Detections(*(t.cpu() for t in forward(network, kind, images, autocast)))
        found += in_images(detections, [dataset.scale(row) for row in part], sides)
    return found


def as_rows(found: Found, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert detections to rows of COCO's results format, without the image id."""
    return [
        {
            "category_id": category_ids[label],
            "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
        }
        for (x1, y1, x2, y2), score, label in zip(
            found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]


def as_results(image_id: int | str, found: Found, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert detections to rows of COCO's results format."""
    return [{"image_id": image_id, **row} for row in as_rows(found, category_ids)]


def draw(image: "Image", found: Found, class_names: Sequence[str] | Mapping[int, str], scores: bool = True) -> "Image":
    """Draw detections over an RGB image, the best on top; small images come back enlarged.

    Args:
        image: The image.
        found: The detections.
        class_names: Names by label.
        scores: Write scores behind the names.

    Returns:
        A new RGB image.
    """
    view = pictures.enlarged(image)
    names = [class_names[label] for label in found.labels.tolist()]
    if scores:
        names = [f"{name} {score:.2f}" for name, score in zip(names, found.scores.tolist(), strict=True)]
    to_view = found.boxes * found.boxes.new_tensor([view.width / image.width, view.height / image.height] * 2)
    pictures.draw_boxes(view, to_view.flip(0), found.labels.flip(0), names[::-1])
    return view


def samples(run: Path, count: int = 8, score: float = 0.3) -> list[dict[str, Any]]:
    """Detect on the first images of a run's validation data.

    Args:
        run: Folder of the run.
        count: Number of images.
        score: Lowest score of the detections.

    Returns:
        For each image: "path", "found" (the detections), "boxes" (n, 4) and "labels" (n,) of the annotations, and
        "class_names".
    """
    network, kind, config = load(run, torch.device("cpu"))
    console = Console(quiet=True)
    folder = Path(config["val_images"])
    annotations = open_annotations(Path(config["val_annotations"]), folder, False, console, False).select(limit=count)
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
