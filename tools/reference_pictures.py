"""Pictures of what makes pictures, drawn when the reference pages are written: what is shown is what the code does."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import detops
from detops.apps import pictures
from detops.apps.data import shapes
from detops.apps.data.records import ImageRecord

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE = 5  # pixels of a picture per cell of a map


def _enlarged(maps: torch.Tensor) -> "Image":
    """Colour maps (M, H, W), and put them side by side, each cell a square."""
    import matplotlib
    from PIL import Image

    gap = torch.full((maps.shape[1], 1), float("nan"))
    row = torch.cat([part for one in maps for part in (gap, one)][1:], 1)
    colors = matplotlib.colormaps["inferno"](row.nan_to_num(0).numpy())
    colors[row.isnan().numpy()] = 1
    view = Image.fromarray((colors[..., :3] * 255).astype("uint8"))
    return view.resize((view.width * SCALE, view.height * SCALE), Image.Resampling.NEAREST)


def draw_heatmap() -> "Image":
    """Three maps: whole radii, sub-pixel centres, and radii along x and y."""
    maps = torch.zeros(3, 48, 64)
    centers = torch.tensor([[18.0, 20], [40, 26], [18.4, 20.7], [40.2, 26.5], [18, 20], [40, 26]])
    radii = torch.tensor([[12.0, 12], [16, 16], [12.5, 12.5], [16.5, 16.5], [14, 6], [5, 18]])
    return _enlarged(detops.draw_heatmap(maps, centers, radii, torch.tensor([0, 0, 1, 1, 2, 2])))


def draw_heatmap_batched() -> "Image":
    """The maps of a batch of two images with two and three boxes."""
    maps = torch.zeros(2, 48, 64)
    centers = torch.tensor([[[18.0, 20], [40, 26], [0, 0]], [[10, 10], [30, 34], [52, 14]]])
    radii = torch.tensor([[12.0, 16, 0], [8, 12, 10]])
    ragged = [detops.RaggedBatch(one, sample_sizes=torch.tensor([2, 3])) for one in (centers, radii)]
    return _enlarged(detops.draw_heatmap_batched(maps, *ragged))


def _scene() -> tuple["Image", torch.Tensor, torch.Tensor]:
    """Generate a picture with boxes (N, 4) xyxy and labels."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        data = json.loads(shapes.generate(Path(folder), 1, seed=8).read_text())
        image = Image.open(Path(folder) / "images" / data["images"][0]["file_name"]).convert("RGB")
    xywh = torch.tensor([one["bbox"] for one in data["annotations"]])
    labels = torch.tensor([one["category_id"] - 1 for one in data["annotations"]])
    return image, torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1), labels


def centernet_targets() -> "Image":
    """The heatmap over its image."""
    image, boxes, labels = _scene()
    size = (image.height // 4, image.width // 4)
    found = detops.centernet_targets(([boxes], [labels]), size, (image.height, image.width), len(shapes.CLASSES))
    heatmap: Any = found.heatmap[0]
    record = ImageRecord(0, "", image.height, image.width)
    return pictures.overlay(image, heatmap, boxes, labels, list(shapes.CLASSES), record, 4)


def instance_masks() -> "Image":
    """Round masks in the boxes of a scene, drawn by `draw`."""
    image, boxes, labels = _scene()
    image, boxes = image.resize((2 * image.width, 2 * image.height)), 2 * boxes
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 28)] * 2, indexing="ij")
    masks = (0.5 + (1 - (x.square() + y.square())) * 2).clamp(0, 1).expand(len(boxes), -1, -1)
    scores = torch.linspace(0.95, 0.6, len(boxes))
    found = detops.InstanceMasks(boxes, labels, scores, masks, (image.height, image.width))
    return found.draw(image, class_names=list(shapes.CLASSES))


PICTURES: dict[str, Callable[[], "Image"]] = {
    "detops.draw_heatmap": draw_heatmap,
    "detops.draw_heatmap_batched": draw_heatmap_batched,
    "detops.centernet_targets": centernet_targets,
    "detops.InstanceMasks": instance_masks,
}


def write(name: str, folder: Path) -> str:
    """Draw the picture of a name.

    Args:
        name: An importable name.
        folder: Where the picture is to be.

    Returns:
        Markdown that shows it with its caption; empty if the name has no picture.
    """
    if name not in PICTURES:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    PICTURES[name]().save(folder / f"{name}.png")
    return f"![{PICTURES[name].__doc__}](pictures/{name}.png)\n\n*{PICTURES[name].__doc__}*\n"
