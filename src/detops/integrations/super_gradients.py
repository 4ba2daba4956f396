"""super-gradients' YOLOX losses: its names, arguments and results around `YOLOXLoss`."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detops.arguments import FLOATS, INTEGERS, require_shape, require_tensor
from detops.assign.assignment import Assignment
from detops.criteria.yolox import YOLOXLoss
from detops.diagnostics.checked import is_checked
from detops.geometry.levels import require_yolox_maps
from detops.ground_truth import GroundTruth, Targets
from detops.ground_truth.rows import check_rows, whole_labels
from detops.ragged import RaggedBatch
from detops.ragged.padded import as_padded

IouType = Literal["iou", "giou", "diou", "ciou", "iou_linear"]
BOX_KINDS = {"iou": "iou_squared", "iou_linear": "iou", "giou": "giou", "diou": "diou", "ciou": "ciou"}
Outputs = Sequence[Tensor] | tuple[object, Sequence[Tensor]]


class YoloXDetectionLoss(nn.Module):
    """`YOLOXLoss` with the arguments, targets and results of super-gradients' class of this name.

    Args:
        strides: Pixels per cell of each level.
        num_classes: Number of classes C.
        use_l1: Whether to add an L1 loss on the raw box numbers; may be set between two calls.
        center_sampling_radius: Candidates lie within so many cells of a box's centre, or in the box.
        iou_type: "iou" is 1 - IoU^2 here, as in super-gradients; "giou", "diou", "ciou"; "iou_linear" is 1 - IoU.
        iou_weight: Factor of the IoU loss in the sum; None for 5.
        obj_weight: Factor of the objectness loss; None for 1.
        cls_weight: Factor of the class loss; None for 1.
        cls_pos_weight: Factor of the positive part of each class's cross entropy: a number, or one per class.
        sync_num_fgs: Under `torch.distributed`, divide by the number of positives averaged over the ranks, so that N
            ranks give the gradient of one rank on the whole batch.

    Raises:
        ValueError: A number or name is out of range.

    Reference:
        Constructor, arguments and components are those of super-gradients' class of this name.
    """

    candidates: Literal["all", "own"] = "all"

    def __init__(
        self,
        strides: Sequence[int],
        num_classes: int,
        use_l1: bool = False,
        center_sampling_radius: float = 2.5,
        iou_type: IouType = "iou",
        iou_weight: float | None = 5.0,
        obj_weight: float | None = 1.0,
        cls_weight: float | None = 1.0,
        cls_pos_weight: float | Sequence[float] | Tensor | None = None,
        *,
        sync_num_fgs: bool = True,
    ) -> None:
        super().__init__()
        if iou_type not in BOX_KINDS:
            raise ValueError(f"iou_type: expected one of {', '.join(BOX_KINDS)}, got {iou_type!r}")
        if not center_sampling_radius >= 0:
            raise ValueError(f"center_sampling_radius: expected at least 0, got {center_sampling_radius!r}")
        self.loss = YOLOXLoss(
            num_classes,
            strides,
            use_l1=use_l1,
            center_radius=center_sampling_radius,
            candidates=self.candidates,
            box_kind=BOX_KINDS[iou_type],  # type: ignore[arg-type]
            box_weight=5.0 if iou_weight is None else iou_weight,
            obj_weight=1.0 if obj_weight is None else obj_weight,
            cls_weight=1.0 if cls_weight is None else cls_weight,
            cls_pos_weight=cls_pos_weight,
        )
        self.loss.average_positives = sync_num_fgs

    @property
    def use_l1(self) -> bool:
        """Whether the L1 loss is added."""
        return self.loss.use_l1

    @use_l1.setter
    def use_l1(self, value: bool) -> None:
        self.loss.use_l1 = value

    @property
    def component_names(self) -> list[str]:
        """Names of the components that `forward` returns."""
        return ["iou", "obj", "cls", "l1", "num_fg", "Loss"]

    def forward(self, model_output: Outputs, targets: Tensor | RaggedBatch | Targets) -> tuple[Tensor, Tensor]:
        """Compute the loss.

        Args:
            model_output: Each level's raw map (B, 1, H, W, 5 + C): x, y, w, h, objectness and class logits; or a tuple
                whose second item is that list. Maps that are channels last in memory are read without a copy.
            targets: (T, 6): image, class, cx, cy, w, h in pixels. Or a `RaggedBatch` (B, N, 5) of class, cx, cy, w, h.
                Or any targets that `YOLOXLoss` takes.

        Returns:
            0-d loss: the weighted sum; and (6,) detached components, without the weights: IoU, objectness, class and L1
            loss, positives per box (both counted as at least 1), and the loss.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices do not match; in checked mode also a box that would be skipped
                for its values.
        """
        outputs = require_yolox_maps(model_output, self.loss.strides, self.loss.num_classes)
        truth = self._targets(outputs, targets)
        losses, parts, positives = self.loss._compute(outputs, truth)
        loss = losses.sum()
        given = truth.labels >= 0
        if truth.sample_sizes is not None:
            given = given & truth.exists()
        ratio = (positives.clamp(min=1) / given.sum().clamp(min=1)).to(parts.dtype)
        return loss, torch.cat([parts, torch.stack([ratio, loss.detach()])])

    @torch.no_grad()
    def assign(self, model_output: Outputs, targets: Tensor | RaggedBatch | Targets) -> Assignment:
        """Assign boxes to points; arguments and errors as in `forward`.

        For targets (T, 6) the index of a box is that of its row, else its index in the image.
        """
        outputs = require_yolox_maps(model_output, self.loss.strides, self.loss.num_classes)
        return self.loss._assign(outputs, self._targets(outputs, targets))

    def _targets(self, outputs: list[Tensor], targets: Tensor | RaggedBatch | Targets) -> GroundTruth:
        batch = len(outputs[0])
        if isinstance(targets, RaggedBatch):
            rows, sizes = as_padded("targets", targets)
            require_tensor("targets", rows, FLOATS, "a RaggedBatch of floating-point numbers")
            require_shape("targets", rows, (batch, *rows.shape[1:2], 5), "to match model_output")
            boxes = rows[..., 1:].detach()
            targets = GroundTruth._of_cxcywh(boxes, whole_labels(rows[..., 0]), sizes)
        elif isinstance(targets, Tensor):
            require_tensor("targets", targets, FLOATS + INTEGERS, "a tensor (T, 6), a RaggedBatch, or boxes and labels")
            if targets.dim() != 2 or targets.shape[1] != 6:
                raise ValueError(f"targets: expected shape (T, 6), got {tuple(targets.shape)}")
            if is_checked():
                check_rows("targets", targets, batch)
            targets = GroundTruth.from_rows(targets, batch)
        return self.loss._ground_truth(outputs, targets)


class YoloXFastDetectionLoss(YoloXDetectionLoss):
    """super-gradients' fast variant: each box chooses only among its own candidates.

    Here both variants are about as fast; this one is for models that were trained with the original.

    Args:
        strides: Pixels per cell of each level.
        num_classes: Number of classes C.
        use_l1: Whether to add an L1 loss on the raw box numbers; may be set between two calls.
        center_sampling_radius: Candidates lie within so many cells of a box's centre, or in the box. It is used here,
            while the original always computes with 2.5.
        iou_type: "iou" is 1 - IoU^2 here, as in super-gradients; "giou", "diou", "ciou"; "iou_linear" is 1 - IoU.
        iou_weight: Factor of the IoU loss in the sum; None for 5.
        obj_weight: Factor of the objectness loss; None for 1.
        cls_weight: Factor of the class loss; None for 1.
        cls_pos_weight: Factor of the positive part of each class's cross entropy: a number, or one per class.
        dynamic_ks_bias: Factor of the sum of IoUs that gives the number of points per box; None for 1.
        sync_num_fgs: Average the number of positives over ranks; off by default, as in the original.
        obj_loss_fix: Divide the objectness loss by the number of all points, not of positives.

    Raises:
        ValueError: A number or name is out of range.

    Reference:
        Constructor, arguments and components are those of super-gradients' class of this name.
    """

    candidates = "own"

    def __init__(
        self,
        strides: Sequence[int],
        num_classes: int,
        use_l1: bool = False,
        center_sampling_radius: float = 2.5,
        iou_type: IouType = "iou",
        iou_weight: float | None = 5.0,
        obj_weight: float | None = 1.0,
        cls_weight: float | None = 1.0,
        cls_pos_weight: float | Sequence[float] | Tensor | None = None,
        dynamic_ks_bias: float | None = 1.1,
        sync_num_fgs: bool = False,
        obj_loss_fix: bool = False,
    ) -> None:
        super().__init__(
            strides, num_classes, use_l1, center_sampling_radius, iou_type, iou_weight, obj_weight, cls_weight,
            cls_pos_weight, sync_num_fgs=sync_num_fgs,
        )  # fmt: skip
        self.loss.rule = self.loss.rule._replace(dynamic_ks_bias=dynamic_ks_bias)
        self.loss.rule.check()
        self.loss.obj_divisor = "points" if obj_loss_fix else "positives"
