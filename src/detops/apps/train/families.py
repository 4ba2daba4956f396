"""What sets one kind of detector apart from another, for training and prediction: its losses, decoding and pictures."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from detops import (
    Assignment,
    CenterNetLoss,
    Detections,
    GFLLoss,
    LDLoss,
    Teacher,
    YOLOXLoss,
    centernet_targets,
    decode_centernet,
    decode_gfl,
    decode_yolox,
)
from detops.apps import listed
from detops.apps.data.dataset import Batch
from detops.targets.centernet import centernet_cells

Shape = tuple[int, int]


class Family(Protocol):
    """One kind of detector; `outputs` are what its networks return, `shape` is the images' height and width.

    Where there is a teacher, its outputs for the same images come last.
    """

    criterion: Any
    teacher: Teacher | None

    def last_epochs(self, reached: bool) -> None:
        """Told at each step whether the last epochs have come, which some train otherwise."""

    def losses(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """What is trained, and its parts by name."""

    def targets(self, outputs: list[Any], batch: Batch, shape: Shape) -> object:
        """What the loss does first, alone, to be timed."""

    def decode(self, outputs: list[Any], shape: Shape) -> Detections:
        """Boxes of a batch."""

    def picture(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """What the network is asked for: maps (B, C, h, w) from 0 to 1, pixels a cell, and a sentence about them."""


class CenterNet:
    """Heatmap, size and offset at one stride."""

    teacher: Teacher | None = None

    def __init__(self, num_classes: int) -> None:
        self.criterion = CenterNetLoss(num_classes)

    def last_epochs(self, reached: bool) -> None:
        """All epochs are alike."""

    def losses(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """CenterNet's three; crowd regions carry no negative loss."""
        parts = self.criterion(*outputs, batch.targets, shape)
        return torch.stack(list(parts.values())).sum(), parts

    def targets(self, outputs: list[Any], batch: Batch, shape: Shape) -> object:
        """Boxes on the feature map."""
        height, width = outputs[0].shape[2:]
        return centernet_cells(batch.targets, (height, width), shape, self.criterion.num_classes)

    def decode(self, outputs: list[Any], shape: Shape) -> Detections:
        """Peaks of the heatmap."""
        return decode_centernet(outputs[0], outputs[1], outputs[2], shape)

    def picture(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """The heatmaps."""
        height, width = outputs[0].shape[2:]
        targets = centernet_targets(batch.targets, (height, width), shape, self.criterion.num_classes)
        return targets.heatmap, shape[0] // height, "Images as they were augmented, with their heatmaps over them."


class YoloX:
    """Raw maps at strides 8, 16 and 32; crowd regions are ignored."""

    strides = (8, 16, 32)
    teacher: Teacher | None = None

    def __init__(self, num_classes: int) -> None:
        self.criterion = YOLOXLoss(num_classes, self.strides)
        self.num_classes = num_classes

    def last_epochs(self, reached: bool) -> None:
        """These have the L1 loss."""
        self.criterion.use_l1 = reached

    def losses(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """YOLOX's three."""
        parts = self.criterion(outputs, batch.targets)
        return torch.stack(list(parts.values())).sum(), parts

    def targets(self, outputs: list[Any], batch: Batch, shape: Shape) -> object:
        """The assignment."""
        return self.criterion.assign(outputs, batch.targets)

    def decode(self, outputs: list[Any], shape: Shape) -> Detections:
        """Scored boxes, after suppression."""
        return decode_yolox(outputs, self.strides, score_threshold=0.001)

    def picture(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """The cells that boxes take now, as bright as the IoU of the box that is found there."""
        found = self.criterion.assign(outputs, batch.targets)
        maps = _taken(found, [(output.shape[2], output.shape[3]) for output in outputs], self.num_classes)
        text = "Images as they were augmented, with the cells that boxes take now, as bright as the IoU there."
        return maps, self.strides[0], text


class GFL:
    """Class logits and distributions of distances at strides 8, 16 and 32; crowd regions are ignored."""

    strides = (8, 16, 32)
    criterion: Any
    teacher: Teacher | None = None

    def __init__(self, num_classes: int) -> None:
        self.criterion = GFLLoss(num_classes, strides=self.strides)

    def last_epochs(self, reached: bool) -> None:
        """All epochs are alike."""

    def losses(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """GFL's three."""
        parts = self.criterion(outputs[0], outputs[1], batch.targets)
        return torch.stack(list(parts.values())).sum(), parts

    def targets(self, outputs: list[Any], batch: Batch, shape: Shape) -> Assignment:
        """The assignment."""
        found: Assignment = self.criterion.assign(outputs[0], batch.targets)
        return found

    def decode(self, outputs: list[Any], shape: Shape) -> Detections:
        """Scored boxes, after suppression."""
        return decode_gfl(outputs[0], outputs[1], self.strides, score_threshold=0.001)

    def picture(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """The anchors that boxes take, as bright as their IoU."""
        shapes = [(level.shape[2], level.shape[3]) for level in outputs[0]]
        maps = _taken(self.targets(outputs, batch, shape), shapes, self.criterion.num_classes)
        text = (
            "Images as they were augmented, with the cells that boxes take, as bright as the IoU of the anchor there."
        )
        return maps, self.strides[0], text


class LD(GFL):
    """GFL, taught the distributions of a larger network.

    Args:
        num_classes: Number of classes.
        teacher: What is learnt from; None where nothing is trained.
        options: Of the distillation: keyword arguments of `LDLoss`.
    """

    def __init__(self, num_classes: int, teacher: Teacher | None = None, **options: Any) -> None:
        self.criterion = LDLoss(num_classes, strides=self.strides, normalize_ld=True, **options)
        self.teacher = teacher

    def losses(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """GFL's three and the distillation."""
        parts = self.criterion(outputs[0], outputs[1], batch.targets, soft_targets=outputs[2])
        return torch.stack(list(parts.values())).sum(), parts


def _taken(found: Assignment, shapes: list[Shape], num_classes: int) -> Tensor:
    """Maps (B, C, h, w) of the finest level, as bright as the IoU of what each cell of any level takes."""
    maps = torch.zeros(len(found.labels), num_classes, *shapes[0])
    start = 0
    for height, width in shapes:
        part = slice(start, start + height * width)
        start += height * width
        label, iou = found.labels[:, part].cpu(), found.quality[:, part].cpu()
        level = torch.zeros(len(maps), num_classes + 1, height * width).scatter_(
            1, label.where(label >= 0, num_classes)[:, None], iou[:, None]
        )
        level = level[:, :-1].unflatten(2, (height, width))
        maps = torch.maximum(maps, F.interpolate(level, shapes[0], mode="nearest"))
    return maps


FAMILIES: dict[str, type[CenterNet] | type[YoloX] | type[GFL]] = {
    "centernet": CenterNet, "yolox": YoloX, "gfl": GFL, "ld": LD
}  # fmt: skip


def family(detector: str, num_classes: int, **options: Any) -> Family:
    """The family of this name; options are for LD.

    Raises:
        ValueError: There is none.
    """
    if detector not in FAMILIES:
        raise ValueError(f"detector: expected {listed(FAMILIES)}, got {detector}")
    return FAMILIES[detector](num_classes, **options)
