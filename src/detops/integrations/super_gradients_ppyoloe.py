"""super-gradients' loss of PP-YOLOE and YOLO-NAS: its class's name, arguments and results over `TaskAlignedLoss`."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detops import ops
from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.assign.assignment import Assignment
from detops.assign.atss import AtssRule, match_anchors
from detops.assign.tal import RULES
from detops.criteria.task_aligned import TaskAlignedLoss, aligned
from detops.diagnostics.checked import is_checked
from detops.geometry.boxes import iou_of_pairs
from detops.ground_truth import GroundTruth, Targets, require_ground_truth
from detops.ground_truth.rows import check_rows, whole_labels

STATIC = AtssRule(margin=1e-9, strict=True, all_boxes=True)


class PPYoloELoss(nn.Module):
    """`TaskAlignedLoss` with the arguments, targets and results of super-gradients' class of this name.

    Args:
        num_classes: Number of classes C.
        use_varifocal_loss: Whether the class loss is the varifocal loss, else the focal one.
        use_static_assigner: Whether boxes are assigned by ATSS, as in the first epochs of PP-YOLOE, else by task
            alignment, as YOLO-NAS always does; may be set between two calls.
        reg_max: Accepted, with a warning, and ignored, as in super-gradients: it follows from the outputs.
        classification_loss_weight: Factor of the class loss.
        iou_loss_weight: Factor of the GIoU loss.
        dfl_loss_weight: Factor of the distribution focal loss.
        use_batched_assignment: Accepted and ignored: a batch is assigned in one call, and no box is dropped.

    Raises:
        ValueError: A number is out of range.

    Reference:
        Constructor, outputs, targets and components are those of super-gradients' class of this name.
    """

    def __init__(
        self,
        num_classes: int,
        use_varifocal_loss: bool = True,
        use_static_assigner: bool = True,
        reg_max: int | None = None,
        classification_loss_weight: float = 1.0,
        iou_loss_weight: float = 2.5,
        dfl_loss_weight: float = 0.5,
        use_batched_assignment: bool = True,
    ) -> None:
        super().__init__()
        if reg_max is not None:
            warnings.warn("reg_max: ignored, as it follows from the outputs", DeprecationWarning, stacklevel=2)
        weights: dict[str, Any] = {
            "cls_weight": classification_loss_weight, "bbox_weight": iou_loss_weight, "dfl_weight": dfl_loss_weight
        }  # fmt: skip
        kind: Any = "varifocal" if use_varifocal_loss else "focal"
        self.loss = TaskAlignedLoss(num_classes, class_loss=kind, **weights)
        # With ATSS the focal loss weighs positives by 0.25 and negatives by 0.75.
        alpha = None if use_varifocal_loss else 0.25
        self.static_loss = TaskAlignedLoss(num_classes, class_loss=kind, alpha=alpha, **weights)
        self.num_classes, self.use_static_assigner = num_classes, use_static_assigner
        self.use_varifocal_loss, self.use_batched_assignment = use_varifocal_loss, use_batched_assignment

    @property
    def component_names(self) -> list[str]:
        """Names of the components that `forward` returns."""
        return ["loss_cls", "loss_iou", "loss_dfl", "loss"]

    def forward(self, outputs: Sequence[Any], targets: Tensor | Targets) -> tuple[Tensor, Tensor]:
        """Compute the loss.

        Args:
            outputs: The network's six: class logits (B, A, C), box logits (B, A, 4 * bins), anchors (A, 4) in pixels,
                points (A, 2) in pixels, number of anchors per level, strides (A, 1); or a tuple whose second item these
                are. Logits are read where they are, whichever of points and classes is contiguous.
            targets: (T, 6): image, class, cx, cy, w, h in pixels. Or (B, M, 5): class, cx, cy, w, h, where a row counts
                if w and h are above 0. Or what `TaskAlignedLoss` takes.

        Returns:
            0-d loss; and (4,) detached components: class, IoU and distribution loss with their weights, and the loss.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices do not match; in checked mode also a box that takes no point for its values.
        """
        given = _Outputs(outputs, self.num_classes)
        truth = self._ground_truth(given, targets)
        found = self._assign(given, truth)
        criterion = self.static_loss if self.use_static_assigner else self.loss
        parts = criterion._weighted([given.scores], [given.preds], truth, given.points, *found, None, given.count)
        losses = torch.stack([part for (part,) in parts.values()])
        loss = losses.sum()
        return loss, torch.cat([losses.detach(), loss.detach()[None]])

    @torch.no_grad()
    def assign(self, outputs: Sequence[Any], targets: Tensor | Targets) -> Assignment:
        """Return which box each point is trained on; arguments as in `forward`."""
        given = _Outputs(outputs, self.num_classes)
        truth = self._ground_truth(given, targets)
        return Assignment.of(*self._assign(given, truth), truth.labels)

    @torch.no_grad()
    def _assign(self, given: "_Outputs", truth: GroundTruth) -> tuple[Tensor, Tensor]:
        """Return `box_index` and `quality` of the assignment."""
        if not self.use_static_assigner:
            return aligned([given.scores], [given.preds], truth, given.points, RULES["ppyoloe"], None)
        found = match_anchors(given.anchors, given.level_sizes, truth, self.num_classes, STATIC, None)
        assigned = found.assignment(truth)
        if truth.boxes.shape[1] == 0:
            return assigned.box_index, assigned.quality
        boxes = ops.decode_distances(bbox_preds=[given.preds.detach()], points=given.points)
        gt = truth.boxes.to(torch.float32).gather(1, found.index.clamp(min=0)[..., None].expand(-1, -1, 4))
        return assigned.box_index, iou_of_pairs(boxes, gt).where(found.index >= 0, 0)

    def _ground_truth(self, given: "_Outputs", targets: Tensor | Targets) -> GroundTruth:
        batch = len(given.scores)
        if isinstance(targets, Tensor):
            require_tensor("targets", targets, FLOATS + INTEGERS, "a tensor (T, 6) or (B, M, 5), or boxes and labels")
            if targets.dim() == 3:
                require_shape("targets", targets, (batch, targets.shape[1], 5), "to match outputs")
                there = (targets[..., 3:] > 0).all(-1)
                targets = GroundTruth._of_cxcywh(targets[..., 1:], whole_labels(targets[..., 0]).where(there, -1), None)
            elif targets.dim() == 2 and targets.shape[1] == 6:
                if is_checked():
                    check_rows("targets", targets, batch)
                targets = GroundTruth.from_rows(targets, batch)
            else:
                raise ValueError(f"targets: expected shape (T, 6) or (B, M, 5), got {tuple(targets.shape)}")
        return require_ground_truth(
            targets, self.num_classes, batch=batch, like=given.scores, like_name="outputs",
            needs_area=self.use_static_assigner,
        )  # fmt: skip


class _Outputs:
    """A network's outputs, checked, as the maps of one level whose points each have their stride.

    Attributes:
        scores: (B, C, 1, A).
        preds: (B, 4 * bins, 1, A).
        anchors: (A, 4).
        level_sizes: Anchors per level.
        points: (A, 3).
        count: A.
    """

    def __init__(self, outputs: Sequence[Any], num_classes: int) -> None:
        if len(outputs) == 2:
            outputs = outputs[1]
        if len(outputs) != 6:
            raise ValueError(f"outputs: expected six, or a tuple whose second item they are, got {len(outputs)}")
        scores, preds, self.anchors, points, sizes, strides = outputs
        for name, value in (("class logits", scores), ("box logits", preds)):
            require_tensor(f"outputs, {name}", value, FLOATS, "a floating-point tensor")
            if value.dim() != 3 or value.shape[:2] != scores.shape[:2]:
                raise ValueError(f"outputs, {name}: expected shape (B, A, channels), got {tuple(value.shape)}")
        batch, self.count = scores.shape[:2]
        require_shape("outputs, class logits", scores, (batch, self.count, num_classes))
        if preds.shape[2] < 8 or preds.shape[2] % 4:
            raise ValueError(f"outputs, box logits: expected 4 * bins channels, got {preds.shape[2]}")
        for name, value, width in (("anchors", self.anchors, 4), ("points", points, 2), ("strides", strides, 1)):
            require_tensor(f"outputs, {name}", value, FLOATS + INTEGERS, "numbers")
            require_shape(f"outputs, {name}", value, (self.count, width), "to match the class logits")
            require_device(f"outputs, {name}", value, scores, "the class logits")
        self.scores, self.preds = (value.transpose(1, 2).unsqueeze(2) for value in (scores, preds))
        self.level_sizes = [int(size) for size in sizes]
        if sum(self.level_sizes) != self.count:
            raise ValueError(f"outputs, anchors per level: expected the sum {self.count}, got {self.level_sizes}")
        self.points = torch.cat([points.detach().to(torch.float32), strides.detach().to(torch.float32)], 1)
