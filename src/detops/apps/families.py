"""What sets one kind of detector apart from another, for training and prediction: its losses, decoding and pictures."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from detops import CenterNetLoss, Detections, YoloXDetectionLoss, centernet_targets, decode_centernet, decode_yolox
from detops.apps.dataset import Batch
from detops.targets.centernet import centernet_cells

Shape = tuple[int, int]


class Family(Protocol):
    """One kind of detector; `outputs` are what its networks return, `shape` is the images' height and width."""

    criterion: Any

    def last_epochs(self, reached: bool) -> None:
        """Told at each step whether the last epochs have come, which some train otherwise."""

    def losses(self, outputs: list[Tensor], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """What is trained, and its parts by name."""

    def targets(self, outputs: list[Tensor], batch: Batch, shape: Shape) -> object:
        """What the loss does first, alone, to be timed."""

    def decode(self, outputs: list[Tensor], shape: Shape) -> Detections:
        """Boxes of a batch."""

    def picture(self, outputs: list[Tensor], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """What the network is asked for: maps (B, C, h, w) from 0 to 1, pixels a cell, and a sentence about them."""


class CenterNet:
    """Heatmap, size and offset at one stride."""

    def __init__(self, num_classes: int) -> None:
        self.criterion = CenterNetLoss(num_classes)

    def last_epochs(self, reached: bool) -> None:
        """All epochs are alike."""

    def losses(self, outputs: list[Tensor], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """CenterNet's three; crowd regions carry no negative loss."""
        parts = self.criterion(*outputs, batch.boxes, batch.labels, shape, batch.ignore_boxes)
        return torch.stack(list(parts.values())).sum(), parts

    def targets(self, outputs: list[Tensor], batch: Batch, shape: Shape) -> object:
        """Boxes on the feature map."""
        height, width = outputs[0].shape[2:]
        return centernet_cells(batch.boxes, batch.labels, (height, width), shape, self.criterion.num_classes)

    def decode(self, outputs: list[Tensor], shape: Shape) -> Detections:
        """Peaks of the heatmap."""
        return decode_centernet(outputs[0], outputs[1], outputs[2], shape)

    def picture(self, outputs: list[Tensor], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """The heatmaps."""
        height, width = outputs[0].shape[2:]
        targets = centernet_targets(batch.boxes, batch.labels, (height, width), shape, self.criterion.num_classes)
        return targets.heatmap, shape[0] // height, "Images as they were augmented, with their heatmaps over them."


class YoloX:
    """Raw maps at strides 8, 16 and 32; crowd regions are background."""

    strides = (8, 16, 32)

    def __init__(self, num_classes: int) -> None:
        self.criterion = YoloXDetectionLoss(self.strides, num_classes)
        self.num_classes = num_classes

    def last_epochs(self, reached: bool) -> None:
        """These have the L1 loss."""
        self.criterion.use_l1 = reached

    def losses(self, outputs: list[Tensor], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """YOLOX's four, without their weights."""
        loss, parts = self.criterion(outputs, (batch.boxes, batch.labels))
        return loss, dict(zip(self.criterion.component_names[:4], parts, strict=False))

    def targets(self, outputs: list[Tensor], batch: Batch, shape: Shape) -> object:
        """The assignment."""
        return self.criterion.assign(outputs, (batch.boxes, batch.labels))

    def decode(self, outputs: list[Tensor], shape: Shape) -> Detections:
        """Scored boxes, after suppression."""
        return decode_yolox(outputs, self.strides, score_threshold=0.001)

    def picture(self, outputs: list[Tensor], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """The cells that boxes take now, as bright as the IoU of the box that is found there."""
        found = self.criterion.assign(outputs, (batch.boxes, batch.labels))
        finest = outputs[0].shape[2:4]
        maps = torch.zeros(len(outputs[0]), self.num_classes, *finest)
        start = 0
        for output in outputs:
            height, width = output.shape[2:4]
            part = slice(start, start + height * width)
            start += height * width
            label, iou = found.labels[:, part].cpu(), found.iou[:, part].cpu()
            level = torch.zeros(len(maps), self.num_classes + 1, height * width).scatter_(
                1, label.where(label >= 0, self.num_classes)[:, None], iou[:, None]
            )
            level = level[:, :-1].unflatten(2, (height, width))
            maps = torch.maximum(maps, F.interpolate(level, finest, mode="nearest"))
        text = "Images as they were augmented, with the cells that boxes take now, as bright as the IoU there."
        return maps, self.strides[0], text


FAMILIES: dict[str, type[CenterNet] | type[YoloX]] = {"centernet": CenterNet, "yolox": YoloX}


def family(detector: str, num_classes: int) -> Family:
    """The family of this name.

    Raises:
        ValueError: There is none.
    """
    if detector not in FAMILIES:
        raise ValueError(f"detector: expected {' or '.join(FAMILIES)}, got {detector}")
    return FAMILIES[detector](num_classes)
