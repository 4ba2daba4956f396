"""A trained run: its network and configuration, its detections in pixels of the images, and pictures of them."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detops import Detections
from detops.apps import pictures
from detops.apps.data.dataset import CocoImages
from detops.apps.train import models
from detops.apps.train.augment import centered
from detops.apps.train.families import Family, family
from detops.arguments import flat

if TYPE_CHECKING:
    from PIL.Image import Image

CONFIG: dict[str, Callable[[Any], bool]] = {  # what every configuration holds, and how it is known
    "detector": lambda value: isinstance(value, str),
    "model": lambda value: isinstance(value, str),
    "width": lambda value: type(value) is int and value > 0,
    "size": lambda value: isinstance(value, list) and len(value) == 2 and all(type(v) is int and v > 0 for v in value),
    "classes": lambda value: isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value),
    "category_ids": lambda value: isinstance(value, list) and all(type(v) in (int, str) for v in value),
}
FAINT = 0.001  # detections below this score are not written: they cost time and change no number


@dataclass(frozen=True)
class Found:
    """Detections on one image, the best first: boxes as xyxy in pixels of the image, labels and scores.

    `broken` says that the network's outputs for the image hold NaN, and so no detections.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    broken: bool = False

    def above(self, score: float) -> "Found":
        """Return the detections with at least this score."""
        kept = self.scores >= score
        return Found(self.boxes[kept], self.labels[kept], self.scores[kept], self.broken)


def read_config(run: Path) -> dict[str, Any]:
    """Read the `config.json` of a run.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or is not what `detops train` wrote.
    """
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run}: expected a folder that detops train wrote, with config.json")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is damaged: {flat(error, 200)}") from error
    for name, good in CONFIG.items():
        if not (isinstance(config, dict) and name in config and good(config[name])):
            raise ValueError(f"{path}: is damaged, or not of detops train: expected {name} as detops train writes it")
    if not len(config["classes"]) == len(config["category_ids"]) == len(set(config["category_ids"])):
        raise ValueError(f"{path}: is damaged: expected as many category_ids as classes, all different")
    return dict(config)


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint of `detops train`: tensors and numbers, never code.

    Args:
        path: The file.
        mmap: Read the tensors when they are used.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or is something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, which detops train writes")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # of zipfile, pickle or torch, whatever the damage hits
        raise ValueError(f"{path}: is damaged, or no checkpoint: {flat(error, 200)}{_other(path)}") from error
    if not (isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict)):
        raise ValueError(f"{path}: is no checkpoint of detops train{_other(path)}")
    return checkpoint


def _other(path: Path) -> str:
    """Name the run's other checkpoint, if there is one."""
    best = path.with_name("best.ckpt")
    return f"; {best} is there too" if path.name == "last.ckpt" and best.is_file() else ""


def places(run: Path) -> tuple[Path, Path]:
    """Return the folder of a run and its checkpoint: the last one, or the one that the path itself names."""
    if run.suffix == ".ckpt":
        return run.parent.parent, run
    return run, run / "checkpoints" / "last.ckpt"


def load(
    run: Path, device: torch.device, max_detections: int | None = None
) -> tuple[nn.Module, Family, dict[str, Any]]:
    """Load a run: its network with the averaged weights, its kind of detector, and its configuration.

    Args:
        run: Folder of the run, or one of its checkpoints.
        device: Where the network is to be.
        max_detections: Largest number of detections per image; by default that of the training.

    Raises:
        FileNotFoundError: The run has no configuration or no checkpoint yet.
        ValueError: One of them is damaged, they do not belong together, or the weights are not finite.
    """
    folder, path = places(run)
    if run.suffix == ".ckpt" and not run.is_file():
        raise FileNotFoundError(f"{run}: no such checkpoint")
    config = read_config(folder)
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: expected checkpoints/{path.name}, which detops train writes")
    detector, count = config["detector"], len(config["classes"])
    backbone = config.get("backbone", "compact")  # runs of earlier versions have none
    network = models.build(config["model"], count, config["width"], detector, backbone=backbone)
    state = read_checkpoint(path)["state_dict"]
    averaged = {str(name)[4:]: value for name, value in state.items() if str(name).startswith("ema.")}
    try:
        network.load_state_dict(averaged)
    except Exception as error:  # torch raises several kinds
        raise ValueError(
            f"{path}: holds the weights of another network than {folder / 'config.json'} describes: {flat(error, 200)}"
        ) from error
    broken = not_finite(network)
    if broken:
        raise ValueError(
            f"{path}: holds weights that are not finite ({broken}), with which nothing can be detected"
            + (_other(path) or "; train again")
        )
    network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return network, family(detector, count, max_detections or _max_detections(config)), config


def _max_detections(config: dict[str, Any]) -> int:
    """Return the number of detections per image that a run was trained with; earlier versions had 100."""
    settings = config.get("settings")
    found = settings.get("max_detections", 100) if isinstance(settings, dict) else 100
    return found if isinstance(found, int) and found > 0 else 100


def not_finite(network: nn.Module) -> str:
    """Return the name of a parameter or buffer that holds a number which is not finite; empty if there is none."""
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            return name
    return ""


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
        Detections on the network's device, in pixels of the input. All scores of an image are NaN if any of the
        network's outputs for it is.
    """
    pixels = centered(images).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        outputs = list(network(pixels))
    found = kind.decode(outputs, (images.shape[2], images.shape[3]))
    broken = torch.stack([output.isnan().flatten(1).any(1) for output in _tensors(outputs)]).any(0)
    return found._replace(scores=found.scores.masked_fill(broken[:, None], math.nan))


def _tensors(outputs: Any) -> list[Tensor]:
    """List the tensors in a network's outputs."""
    return [outputs] if isinstance(outputs, Tensor) else [one for part in outputs for one in _tensors(part)]


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
        found.append(Found(box[good], label[good], score[good], bool(score.isnan().any())))
    return found


def detect_all(
    network: nn.Module,
    kind: Family,
    dataset: CocoImages,
    rows: Sequence[int],
    batch_size: int = 8,
    autocast: bool = False,
    on_broken: Callable[[str], None] | None = None,
) -> list[Found]:
    """Detect on some rows of a data set, in batches.

    Args:
        network: Network in evaluation mode.
        kind: Kind of detector.
        dataset: The data set.
        rows: Its rows.
        batch_size: Images per batch.
        autocast: Compute in bfloat16.
        on_broken: Called with a line if the network's outputs for some image hold NaN.

    Raises:
        ValueError: They do, and there is no `on_broken`.
    """
    device = next(network.parameters()).device
    found: list[Found] = []
    for begin in range(0, len(rows), batch_size):
        part = rows[begin : begin + batch_size]
        records = [dataset.annotations.images[row] for row in part]
        images = dataset.__getitems__(part).images.to(device)
        sides = [record.size for record in records]
        detections = Detections(*(t.cpu() for t in forward(network, kind, images, autocast)))
        found += in_images(detections, [dataset.scale(row) for row in part], sides)
    broken = [dataset.annotations.images[row].file_name for row, one in zip(rows, found, strict=True) if one.broken]
    if broken:
        text = f"the network's outputs hold NaN for {len(broken)} of {len(rows)} images, such as {broken[0]}"
        if on_broken is None:
            raise ValueError(text)
        on_broken(text)
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
    """Draw detections over an RGB image, the best on top; small images come back enlarged, and huge ones reduced.

    Args:
        image: The image.
        found: The detections.
        class_names: Names by label; the only one is not written.
        scores: Write scores behind the names.

    Returns:
        A new RGB image.
    """
    view = pictures.enlarged(image)
    names = [class_names[label] if len(class_names) > 1 else "" for label in found.labels.tolist()]
    if scores:
        names = [f"{name} {score:.2f}".lstrip() for name, score in zip(names, found.scores.tolist(), strict=True)]
    to_view = found.boxes * found.boxes.new_tensor([view.width / image.width, view.height / image.height] * 2)
    pictures.draw_boxes(view, to_view.flip(0), found.labels.flip(0), names[::-1])
    return view
