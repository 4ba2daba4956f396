"""The kinds of detector: how the outputs of each are trained, decoded and drawn."""

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
    TaskAlignedLoss,
    Teacher,
    YOLOXLoss,
    centernet_targets,
    decode_centernet,
    decode_gfl,
    decode_yolox,
)
from detops.apps import listed
from detops.apps.data.dataset import Batch
from detops.apps.train.detr import Detr
from detops.targets.centernet import centernet_cells

Shape = tuple[int, int]
CANDIDATES = 1000  # cells that suppression considers, or as many as may be detections


class Family(Protocol):
    """The interface of a kind of detector.

    `outputs` are those of its network; with a teacher, the teacher's outputs for the same images come last. `shape` is
    the height and width of the images.

    Attributes:
        criterion: Its whole loss.
        teacher: Network that it learns from, if any.
        max_detections: Largest number of detections per image.
    """

    criterion: Any
    teacher: Teacher | None
    max_detections: int

    def last_epochs(self, reached: bool) -> None:
        """Switch between the first epochs and the last ones, in which YOLOX adds a loss; called at each step."""

    def losses(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss that is trained, and its parts by name."""

    def targets(self, outputs: list[Any], batch: Batch, shape: Shape) -> object:
        """Compute only the targets of the loss, so that they can be timed."""

    def decode(self, outputs: list[Any], shape: Shape) -> Detections:
        """Decode the detections on a batch."""

    def picture(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """Draw the targets: maps (B, C, h, w) from 0 to 1, pixels per cell, and a sentence that explains them."""


class CenterNet:
    """Heatmap, size and offset at one stride."""

    teacher: Teacher | None = None
    max_detections = 100

    def __init__(self, num_classes: int) -> None:
        self.criterion = CenterNetLoss(num_classes)

    def last_epochs(self, reached: bool) -> None:
        """Do nothing: all epochs are alike."""

    def losses(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute CenterNet's three losses; in crowd regions no cell is a negative."""
        parts = self.criterion(*outputs, batch.targets, shape)
        return torch.stack(list(parts.values())).sum(), parts

    def targets(self, outputs: list[Any], batch: Batch, shape: Shape) -> object:
        """Find the cell of each box."""
        height, width = outputs[0].shape[2:]
        return centernet_cells(batch.targets, (height, width), shape, self.criterion.num_classes)

    def decode(self, outputs: list[Any], shape: Shape) -> Detections:
        """Decode the peaks of the heatmap."""
        return decode_centernet(outputs[0], outputs[1], outputs[2], shape, self.max_detections)

    def picture(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """Draw the heatmaps."""
        height, width = outputs[0].shape[2:]
        targets = centernet_targets(batch.targets, (height, width), shape, self.criterion.num_classes)
        return targets.heatmap, shape[0] // height, "Augmented images with their heatmaps."


class YoloX:
    """Raw maps at strides 8, 16 and 32; crowd regions are ignored."""

    strides = (8, 16, 32)
    teacher: Teacher | None = None
    max_detections = 100

    def __init__(self, num_classes: int) -> None:
        self.criterion = YOLOXLoss(num_classes, self.strides)
        self.num_classes = num_classes

    def last_epochs(self, reached: bool) -> None:
        """Add the L1 loss in the last epochs."""
        self.criterion.use_l1 = reached

    def losses(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute YOLOX's losses."""
        parts = self.criterion(outputs, batch.targets)
        return torch.stack(list(parts.values())).sum(), parts

    def targets(self, outputs: list[Any], batch: Batch, shape: Shape) -> object:
        """Assign the boxes."""
        return self.criterion.assign(outputs, batch.targets)

    def decode(self, outputs: list[Any], shape: Shape) -> Detections:
        """Decode the boxes and suppress duplicates."""
        most = self.max_detections
        return decode_yolox(
            outputs, self.strides, score_threshold=0.001, max_detections=most, candidates=max(CANDIDATES, most)
        )

    def picture(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """Draw the cells that are assigned now, as bright as the IoU of the box predicted there."""
        found = self.criterion.assign(outputs, batch.targets)
        maps = _assignment_maps(found, [(output.shape[2], output.shape[3]) for output in outputs], self.num_classes)
        text = (
            "Augmented images with the cells that are assigned to boxes now, as bright as the IoU of their prediction."
        )
        return maps, self.strides[0], text


class GFL:
    """Class logits and distributions of distances at strides 8, 16 and 32; crowd regions are ignored."""

    strides = (8, 16, 32)
    criterion: Any
    teacher: Teacher | None = None
    max_detections = 100

    def __init__(self, num_classes: int) -> None:
        self.criterion = GFLLoss(num_classes, strides=self.strides)

    def last_epochs(self, reached: bool) -> None:
        """Do nothing: all epochs are alike."""

    def losses(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute GFL's three losses."""
        parts = self.criterion(outputs[0], outputs[1], batch.targets)
        return torch.stack(list(parts.values())).sum(), parts

    def targets(self, outputs: list[Any], batch: Batch, shape: Shape) -> Assignment:
        """Assign the boxes."""
        found: Assignment = self.criterion.assign(outputs[0], batch.targets)
        return found

    def decode(self, outputs: list[Any], shape: Shape) -> Detections:
        """Decode the boxes and suppress duplicates."""
        return self._decode(outputs[0], outputs[1])

    def _decode(self, cls_scores: list[Tensor], bbox_preds: list[Tensor], **options: Any) -> Detections:
        most = self.max_detections
        return decode_gfl(
            cls_scores, bbox_preds, self.strides,
            score_threshold=0.001, max_detections=most, candidates=max(CANDIDATES, most), **options,
        )  # fmt: skip

    def picture(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """Draw the anchors that are assigned, as bright as their IoU."""
        shapes = [(level.shape[2], level.shape[3]) for level in outputs[0]]
        maps = _assignment_maps(self.targets(outputs, batch, shape), shapes, self.criterion.num_classes)
        text = "Augmented images with the cells that are assigned to boxes, as bright as the IoU of their anchor."
        return maps, self.strides[0], text


class LD(GFL):
    """GFL that also learns the box distributions of a teacher.

    Args:
        num_classes: Number of classes.
        teacher: Network to learn from; None if nothing is trained.
        options: Keyword arguments of `LDLoss` that set the distillation.
    """

    def __init__(self, num_classes: int, teacher: Teacher | None = None, **options: Any) -> None:
        self.criterion = LDLoss(num_classes, strides=self.strides, normalize_ld=True, **options)
        self.teacher = teacher

    def losses(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute GFL's three losses and those of the distillation."""
        parts = self.criterion(outputs[0], outputs[1], batch.targets, soft_targets=outputs[2])
        return torch.stack(list(parts.values())).sum(), parts


class TaskAligned(GFL):
    """Two heads of class logits and distributions: one of several points per box, decoded with suppression; one of one.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        self.criterion = TaskAlignedLoss(
            num_classes, strides=self.strides, rule="yolov8", class_loss="bce", box_kind="ciou", cls_weight=0.5,
            bbox_weight=7.5, dfl_weight=1.5,
        )  # fmt: skip

    def losses(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the three losses of each head."""
        parts = self.criterion(outputs[0], outputs[1], batch.targets, one_to_one=(outputs[2], outputs[3]))
        return torch.stack(list(parts.values())).sum(), parts

    def targets(self, outputs: list[Any], batch: Batch, shape: Shape) -> Assignment:
        """Assign the boxes to the first head."""
        found: Assignment = self.criterion.assign(outputs[0], outputs[1], batch.targets)
        return found

    def decode(self, outputs: list[Any], shape: Shape) -> Detections:
        """Decode the boxes of the first head and suppress duplicates."""
        return self._decode(outputs[0], outputs[1], point_offset=0.5)

    def picture(self, outputs: list[Any], batch: Batch, shape: Shape) -> tuple[Tensor, int, str]:
        """Draw the cells that are assigned now, as bright as what their class is trained towards."""
        maps, stride, _ = super().picture(outputs, batch, shape)
        return maps, stride, "Augmented images with the cells assigned to boxes now, as bright as their score target."


class TaskAlignedOnce(TaskAligned):
    """The same, trained alike; decoded from the head of one point per box, without suppression."""

    def decode(self, outputs: list[Any], shape: Shape) -> Detections:
        """Decode the best scores of the second head."""
        return self._decode(outputs[2], outputs[3], iou_threshold=None, point_offset=0.5)


def other_way(kind: Family) -> tuple[str, Family] | None:
    """Return how else the outputs of a kind of detector can be decoded, and what to call it, if there is a way."""
    if isinstance(kind, TaskAlignedOnce):
        return "with suppression", family("tal", kind.criterion.num_classes, kind.max_detections)
    if isinstance(kind, TaskAligned):
        return "without suppression", family("tal-once", kind.criterion.num_classes, kind.max_detections)
    return None


def _assignment_maps(found: Assignment, shapes: list[Shape], num_classes: int) -> Tensor:
    """Draw an assignment on all levels as maps (B, C, h, w) of the finest level, as bright as its quality."""
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


FAMILIES: dict[str, type[CenterNet] | type[YoloX] | type[GFL] | type[Detr]] = {
    "centernet": CenterNet, "yolox": YoloX, "gfl": GFL, "ld": LD, "tal": TaskAligned, "tal-once": TaskAlignedOnce,
    "detr": Detr,
}  # fmt: skip


def family(detector: str, num_classes: int, max_detections: int = 100, **options: Any) -> Family:
    """Make the kind of detector of this name.

    Args:
        detector: "centernet", "yolox", "gfl", "ld", "tal", "tal-once" or "detr".
        num_classes: Number of classes.
        max_detections: Largest number of detections per image.
        options: Further arguments of `LD`.

    Raises:
        ValueError: There is no such kind.
    """
    if detector not in FAMILIES:
        raise ValueError(f"detector: expected {listed(FAMILIES)}, got {detector}")
    found = FAMILIES[detector](num_classes, **options)
    found.max_detections = max_detections
    return found
