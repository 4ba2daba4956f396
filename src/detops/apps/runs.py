"""A trained run's network, its detections in pixels of the images, and pictures of them.

`detops predict`, evaluation and reports stand on this.
"""

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


def fingerprint(network: nn.Module) -> str:
    """The same for networks whose parameters and buffers are the same, bit for bit."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def forward(network: nn.Module, kind: Family, images: Tensor, autocast: bool = False) -> Detections:
    """Start detecting on a batch; on a GPU this does not wait for it.

    Args:
        network: In evaluation mode.
        kind: What decodes its outputs.
        images: (B, 3, H, W) uint8 on the network's device.
        autocast: Compute in bfloat16.

    Returns:
        Boxes in pixels of the input, on the network's device.
    """
    pixels = centered(images).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        outputs = list(network(pixels))
    return kind.decode(outputs, (images.shape[2], images.shape[3]))


def in_images(
    detections: Detections, scales: Sequence[tuple[float, float]], sides: Sequence[tuple[int, int]]
) -> list[Found]:
    """What each image of a batch shows, in its own pixels.

    Args:
        detections: On the CPU, in pixels of the input.
        scales: Pixels of the input a pixel of each image, along x and y.
        sides: Width and height of each image, to which boxes are cut.
    """
    found = []
    for box, score, label, scale, side in zip(*detections, scales, sides, strict=True):
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
        detections = Detections(*(t.cpu() for t in forward(network, kind, images, autocast)))
        found += in_images(detections, [dataset.scale(row) for row in part], sides)
    return found


def as_rows(found: Found, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections as COCO's results have them, without the image."""
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
    """Detections in COCO's results form."""
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
