"""YOLOX's whole loss as one module: the network's raw maps and boxes in, numbers out."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from detops import ops
from detops.assign.assignment import Assignment
from detops.assign.simota import Candidates, SimOTARule, match_points
from detops.geometry.levels import require_strides, require_yolox_maps
from detops.geometry.points import GridCache, grid_points
from detops.ground_truth import GroundTruth, Targets, require_ground_truth
from detops.losses._fused import fused_level_losses
from detops.losses.reduction import average_over_ranks

BoxKind = Literal["iou_squared", "iou", "giou", "diou", "ciou"]
KINDS = {"iou_squared": 0, "iou": 1, "giou": 2, "diou": 3, "ciou": 4}  # numbers of the op
STEEPEST = 320.0  # largest gradient of an IoU loss: stride over width, here of a box 0.1 pixels wide at stride 32


class YOLOXLoss(nn.Module):
    """SimOTA's assignment, and the box, objectness and class losses, for a whole batch.

    The raw maps are read in place; the assignment and the losses are one op each, and the gradient is written in the
    pass that computes the losses. Nothing of the size boxes x points x classes is stored, the host never waits, and any
    number of boxes fits. A box is skipped if it lies off the image, or has a negative side, a coordinate that is not
    finite, or a label that is no class. An image without boxes, or without a match, trains its objectness. Under
    `torch.distributed` the number of positives is averaged over the ranks, so that N ranks give the gradient of one
    rank on the whole batch.

    Args:
        num_classes: Number of classes C.
        strides: Pixels per cell of each level.
        use_l1: Add an L1 loss on the raw box values to the box loss; may be set between two calls.
        center_radius: Candidates lie within this many cells of a box's centre, or in the box.
        candidates: Points that a box chooses from, "all" or "own" as in `simota_assign`.
        dynamic_ks_bias: Factor of the sum of IoUs that gives the number of points per box; None for 1.
        box_kind: Kind of the IoU loss, as in `box_iou_loss`; YOLOX's is "iou_squared", 1 - IoU^2.
        box_weight: Factor of the IoU loss.
        obj_weight: Factor of the objectness loss.
        cls_weight: Factor of the class loss.
        cls_pos_weight: Factor of the positive part of each class's cross entropy: a number, or one per class.
        obj_divisor: Divisor of the objectness loss: the number of "positives" (YOLOX), or of all "points".

    Raises:
        ValueError: A number or name is out of range.

    Reference:
        Ge et al., "YOLOX: Exceeding YOLO Series in 2021".
    """

    def __init__(
        self,
        num_classes: int,
        strides: Sequence[int] = (8, 16, 32),
        *,
        use_l1: bool = False,
        center_radius: float = 2.5,
        candidates: Candidates = "all",
        dynamic_ks_bias: float | None = None,
        box_kind: BoxKind = "iou_squared",
        box_weight: float = 5.0,
        obj_weight: float = 1.0,
        cls_weight: float = 1.0,
        cls_pos_weight: float | Sequence[float] | Tensor | None = None,
        obj_divisor: Literal["positives", "points"] = "positives",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes!r}")
        if box_kind not in KINDS:
            raise ValueError(f"box_kind: expected one of {', '.join(KINDS)}, got {box_kind!r}")
        if obj_divisor not in ("positives", "points"):
            raise ValueError(f'obj_divisor: expected "positives" or "points", got {obj_divisor!r}')
        self.num_classes, self.strides = num_classes, require_strides(strides)
        self.use_l1, self.box_kind, self.obj_divisor = use_l1, box_kind, obj_divisor
        self.box_weight, self.obj_weight, self.cls_weight = float(box_weight), float(obj_weight), float(cls_weight)
        self.rule = SimOTARule(center_radius, candidates, dynamic_ks_bias=dynamic_ks_bias)
        self.rule.check()
        self.average_positives = True
        self._grids = GridCache()
        weight = None
        if cls_pos_weight is not None:
            weight = torch.as_tensor(cls_pos_weight, dtype=torch.float32)
            if weight.numel() not in (1, num_classes) or weight.dim() > 1:
                raise ValueError(
                    f"cls_pos_weight: expected a number or {num_classes} numbers, got shape {tuple(weight.shape)}"
                )
            weight = weight.expand(num_classes).clone()
        self.register_buffer("cls_pos_weight", weight, persistent=False)
        self.cls_pos_weight: Tensor | None

    def forward(
        self, model_output: Sequence[Tensor] | tuple[object, Sequence[Tensor]], targets: Targets
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            model_output: Each level's raw map (B, 1, H, W, 5 + C): x, y, w, h, objectness and class logits; or a tuple
                whose second item is that list. Maps that are channels last in memory are read without a copy.
            targets: `GroundTruth`, the pair (boxes, labels), or a list of dicts; boxes xyxy in pixels, labels
                0 .. C - 1; a negative label means "ignore this box". Points without a box in ignored regions have no
                objectness loss.

        Returns:
            "loss_bbox" (with the L1 loss, if that is used), "loss_obj" and "loss_cls", 0-d each; their sum is trained.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices do not match; in checked mode also a box that would be skipped
                for its values.
        """
        outputs = require_yolox_maps(model_output, self.strides, self.num_classes)
        losses = self._compute(outputs, self._ground_truth(outputs, targets)).losses
        return dict(zip(("loss_bbox", "loss_obj", "loss_cls"), losses.unbind(), strict=True))

    @torch.no_grad()
    def assign(self, model_output: Sequence[Tensor] | tuple[object, Sequence[Tensor]], targets: Targets) -> Assignment:
        """Assign boxes to points; arguments and errors as in `forward`, points level by level, row by row."""
        outputs = require_yolox_maps(model_output, self.strides, self.num_classes)
        return self._assign(outputs, self._ground_truth(outputs, targets))

    def _ground_truth(self, outputs: list[Tensor], targets: Targets) -> GroundTruth:
        first = outputs[0]
        return require_ground_truth(targets, self.num_classes, batch=len(first), like=first, like_name="model_output")

    def _points(self, outputs: list[Tensor]) -> Tensor:
        maps = [output[..., 0] for output in outputs]  # (B, 1, H, W)
        return self._grids.get(maps, lambda sizes, device: (grid_points(sizes, self.strides, device),))[0]

    def _assign(self, outputs: list[Tensor], targets: GroundTruth) -> Assignment:
        levels = [output.flatten(1, 3) for output in outputs]
        index, iou, _ = self._match(levels, self._points(outputs), targets)
        return Assignment.of(index, iou, targets.labels)

    def _match(self, levels: list[Tensor], points: Tensor, targets: GroundTruth) -> tuple[Tensor, Tensor, Tensor]:
        """Return box and IoU of each point, and the number of positives."""
        return match_points([level.detach() for level in levels], None, None, points, targets, self.rule)

    def _compute(self, outputs: list[Tensor], targets: GroundTruth) -> "YOLOXParts":
        boxes, cxcywh = targets._given_boxes()
        levels, points = [output.flatten(1, 3) for output in outputs], self._points(outputs)
        index, iou, positives = self._match(levels, points, targets)
        divisor = average_over_ranks(positives) if self.average_positives else positives.to(torch.float32).clamp(min=1)
        with torch.no_grad():
            scale = divisor.reciprocal().expand(2)
            if self.obj_divisor == "points":
                scale = torch.stack([divisor, torch.full_like(divisor, max(index.numel(), 1))]).reciprocal()
        op = partial(
            ops.yolox_loss,
            kind=KINDS[self.box_kind],
            use_l1=self.use_l1,
            iou_weight=self.box_weight,
            obj_weight=self.obj_weight,
            cls_weight=self.cls_weight,
            cxcywh=cxcywh,
        )
        losses, parts = fused_level_losses(
            op,
            levels,
            columns=[4, 1, self.num_classes],
            cells=points,
            gt_boxes=boxes,
            gt_labels=targets.labels,
            index=index,
            iou=iou,
            scale=scale,
            class_pos_weight=self.cls_pos_weight,
            steepest=STEEPEST * max(self.box_weight, self.obj_weight, self.cls_weight),
            instead="box_iou_loss, and PyTorch's binary_cross_entropy_with_logits",
        )
        return YOLOXParts(losses, parts, positives)


class YOLOXParts(NamedTuple):
    """The losses of `YOLOXLoss`, and their parts.

    Attributes:
        losses: (3,) weighted box, objectness and class loss, differentiable.
        parts: (4,) IoU, objectness, class and L1 loss without their weights, not differentiable.
        positives: 0-d number of points that have a box.
    """

    losses: Tensor
    parts: Tensor
    positives: Tensor
