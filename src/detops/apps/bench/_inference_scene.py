"""The objects that `detops bench inference` detects without trained weights: a hundred, of everyday sizes.

Random weights detect nothing sensible, and the cost of masks depends on the detections. So a picture of generated
objects is drawn, and the model is made to find them: its heads compute as usual, and then their boxes and masks are
replaced by those of the objects.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detops.apps import require
from detops.inference.drawing import class_color

if TYPE_CHECKING:
    from PIL.Image import Image

CELLS = 28  # along each side of a mask


@dataclass(frozen=True)
class Objects:
    """Generated objects, with coordinates relative to the image, the highest score first.

    Attributes:
        boxes: (N, 4) xyxy, 0 .. 1.
        labels: (N,) int64, from 1, as 0 is torchvision's background.
        scores: (N,).
        masks: (N, 28, 28) logits.
        waves: (N, 3): height, number and phase of the waves along the outline.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor
    waves: Tensor


def generate(count: int, num_classes: int, aspect: float, seed: int = 0) -> Objects:
    """Generate objects with sides from 3 to 60 % of the image's shorter one, most of them small.

    Args:
        count: Number of objects.
        num_classes: Labels are 1 .. num_classes - 1.
        aspect: Width of the image over its height.
        seed: The same seed gives the same objects.
    """
    g = torch.Generator().manual_seed(seed)
    side = torch.exp(torch.empty(count).uniform_(math.log(0.03), math.log(0.6), generator=g))
    stretch = torch.exp(0.35 * torch.randn(count, generator=g))
    half = torch.stack([side * stretch / max(aspect, 1.0), side / stretch * min(aspect, 1.0)], 1).clamp(max=0.95) / 2
    center = half + (1 - 2 * half) * torch.rand(count, 2, generator=g)
    waves = torch.stack(
        [
            torch.empty(count).uniform_(0.0, 0.25, generator=g),
            torch.randint(2, 6, (count,), generator=g).float(),
            torch.empty(count).uniform_(0, 2 * math.pi, generator=g),
        ],
        1,
    )
    return Objects(
        torch.cat([center - half, center + half], 1),
        torch.randint(1, num_classes, (count,), generator=g),
        torch.rand(count, generator=g).mul(0.6).add(0.39).sort(descending=True).values,
        _logits(waves),
        waves,
    )


def _radius(waves: Tensor, angle: Tensor) -> Tensor:
    """Distance of the outline from the centre, relative to half the box, for waves (N, 3) and angles (N, ...)."""
    height, number, phase = (waves[(slice(None), i) + (None,) * (angle.dim() - 1)] for i in range(3))
    return (1 + height * torch.cos(number * angle + phase)) / (1 + height)


def _logits(waves: Tensor) -> Tensor:
    """Masks (N, 28, 28) that are 0 on the outline and grow towards the centre."""
    at = (torch.arange(CELLS) + 0.5) * 2 / CELLS - 1
    y, x = at[:, None], at[None, :]
    return 12 * (_radius(waves, torch.atan2(y, x).expand(len(waves), -1, -1)) - torch.hypot(x, y))


def picture(objects: Objects, width: int, height: int) -> "Image":
    """Draw the objects as smooth shapes on a soft background, large ones behind."""
    module = require("PIL.Image", "Pillow", "bench inference")
    pens = require("PIL.ImageDraw", "Pillow", "bench inference")
    ground = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(1)) * 60 + 150
    small = module.fromarray(ground.movedim(0, -1).byte().numpy())
    image: Image = small.resize((width, height), module.Resampling.BICUBIC)
    pen = pens.Draw(image)
    angles = torch.linspace(0, 2 * math.pi, 91)[:-1].expand(len(objects.boxes), -1)
    radius = _radius(objects.waves, angles)
    low, high = objects.boxes[:, None, :2], objects.boxes[:, None, 2:]
    points = torch.stack([angles.cos() * radius, angles.sin() * radius], -1)  # (N, 90, 2) from -1 to 1
    points = (low + (points + 1) / 2 * (high - low)) * torch.tensor([width, height])
    areas = (objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(1)
    for n in areas.argsort(descending=True).tolist():
        color = tuple(channel * 5 // 8 for channel in class_color(int(objects.labels[n])))
        pen.polygon([tuple(point) for point in points[n].tolist()], fill=color)
    return image


def find(model: Any, objects: Objects) -> None:
    """Make a Mask R-CNN of torchvision detect the objects, whatever the image; it computes as much as before."""
    heads = model.roi_heads
    compute, predictor = heads.postprocess_detections, heads.mask_predictor

    def detections(logits: Tensor, deltas: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]]) -> Any:
        compute(logits, deltas, proposals, sizes)
        boxes = [objects.boxes.to(logits) * torch.tensor([w, h, w, h]).to(logits) for h, w in sizes]
        scores, labels = objects.scores.to(logits), objects.labels.to(logits.device)
        return boxes, [scores] * len(sizes), [labels] * len(sizes)

    heads.postprocess_detections = detections
    heads.mask_predictor = _Known(predictor, objects.masks)


class _Known(nn.Module):
    """A mask predictor that computes, and then returns the known masks."""

    def __init__(self, predictor: nn.Module, masks: Tensor) -> None:
        super().__init__()
        self.predictor = predictor
        self.register_buffer("masks", masks, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        computed: Tensor = self.predictor(features)
        known = self.get_buffer("masks").to(computed)
        known = known.repeat(len(computed) // len(known), 1, 1)
        return known[:, None].expand(-1, computed.shape[1], -1, -1)
