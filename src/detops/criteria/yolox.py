"""YOLOX's whole loss as one module: the network's raw maps and boxes in, numbers out."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from detops import ops
from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.assign.assignment import Assignment, labels_of
from detops.assign.simota import check_values
from detops.diagnostics.checked import is_checked
from detops.geometry.boxes import boxes_at_cells, to_cxcywh
from detops.geometry.levels import require_levels
from detops.geometry.points import grid_cells
from detops.losses._fused import fused_level_losses
from detops.losses.reduction import average_over_ranks
from detops.ragged import RaggedBatch
from detops.ragged.padded import Batch, as_padded, boxes_with_labels

IouType = Literal["iou", "giou", "diou", "ciou", "iou_linear"]
Targets = Tensor | RaggedBatch | tuple[Batch, Batch]
KINDS = {"iou": 0, "iou_linear": 1, "giou": 2, "diou": 3, "ciou": 4}  # numbers of the op
STEEPEST = 320.0  # an IoU loss by an offset in cells grows as stride over width: a box of a tenth of a pixel, stride 32


class YoloXDetectionLoss(nn.Module):
    """Assignment by SimOTA, and the box, objectness, class and L1 losses, for a whole batch.

    The raw maps are read where they are; the assignment and the losses are an op each, and the gradient is written by
    the pass that computes the losses. Nothing of the size boxes x cells x classes exists, nothing waits for the host,
    and any number of boxes fits. A box off the image, of negative size, with a number that is not finite or a label
    that is no class takes no cell; an image without boxes, or without a match, trains its objectness.

    Args:
        strides: Pixels a cell of each level.
        num_classes: Number of classes C.
        use_l1: Whether to add an L1 loss on the raw box numbers; may be set between two calls.
        center_sampling_radius: Candidates lie within so many cells of a box's centre, or in the box.
        iou_type: "iou" is 1 - IoU^2 as YOLOX has it; "giou", "diou", "ciou"; "iou_linear" is 1 - IoU.
        iou_weight: Factor of the IoU loss in the sum.
        obj_weight: Factor of the objectness loss.
        cls_weight: Factor of the class loss.
        cls_pos_weight: Factor of the positive part of each class's cross entropy: a number, or one a class.
        sync_num_fgs: Under `torch.distributed`, divide by the number of positives averaged over the ranks, so that N
            ranks give the gradient of one rank on the whole batch.

    Reference:
        Ge et al., "YOLOX: Exceeding YOLO Series in 2021"; constructor, arguments and components are those of
        super-gradients' class of this name.
    """

    candidates = "all"

    def __init__(
        self,
        strides: Sequence[int],
        num_classes: int,
        use_l1: bool = False,
        center_sampling_radius: float = 2.5,
        iou_type: IouType = "iou",
        iou_weight: float = 5.0,
        obj_weight: float = 1.0,
        cls_weight: float = 1.0,
        cls_pos_weight: float | Sequence[float] | Tensor | None = None,
        *,
        sync_num_fgs: bool = True,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes!r}")
        if not strides or min(strides) < 1:
            raise ValueError(f"strides: expected at least one, of at least 1 pixel, got {strides!r}")
        if iou_type not in KINDS:
            raise ValueError(f"iou_type: expected one of {', '.join(KINDS)}, got {iou_type!r}")
        if not center_sampling_radius >= 0:
            raise ValueError(f"center_sampling_radius: expected at least 0, got {center_sampling_radius!r}")
        self.strides, self.num_classes = tuple(strides), num_classes
        self.use_l1, self.center_sampling_radius, self.iou_type = use_l1, center_sampling_radius, iou_type
        self.iou_weight, self.obj_weight, self.cls_weight = float(iou_weight), float(obj_weight), float(cls_weight)
        self.sync_num_fgs, self.obj_loss_fix = sync_num_fgs, False
        self.dynamic_ks_bias: float | None = None
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

    @property
    def component_names(self) -> list[str]:
        """Names of the components that `forward` returns."""
        return ["iou", "obj", "cls", "l1", "num_fg", "loss"]

    def forward(
        self, model_output: Sequence[Tensor] | tuple[object, Sequence[Tensor]], targets: Targets
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss.

        Args:
            model_output: Each level's raw map (B, 1, H, W, 5 + C): x, y, w, h, objectness and class logits; or a tuple
                whose second item is that list. Channels last in memory are read where they are.
            targets: (T, 6): image, class, cx, cy, w, h in pixels. Or a `RaggedBatch` (B, N, 5) of class, cx, cy, w, h.
                Or boxes and labels: two of `RaggedBatch`, list or tensor, (B, N, 4) xyxy in pixels and (B, N)
                integers, of which a negative one means "ignore this box".

        Returns:
            0-d loss: the weighted sum; and (6,) detached components, without the weights: IoU, objectness, class and L1
            loss, positives a box, and the loss.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices do not match; in checked mode also a box that takes no cell for its values.
        """
        outputs = require_levels(model_output, self.strides, self.num_classes)
        boxes, labels, sizes = self._targets(targets, outputs[0])
        levels, cells = [output.flatten(1, 3) for output in outputs], self._cells(outputs)
        with torch.no_grad():
            index, iou = self._assign(levels, cells, boxes, labels, sizes)
            divisors, positives = self._normalizers(index)
        op = partial(
            ops.yolox_loss,
            kind=KINDS[self.iou_type],
            use_l1=self.use_l1,
            iou_weight=self.iou_weight,
            obj_weight=self.obj_weight,
            cls_weight=self.cls_weight,
        )
        loss, parts = fused_level_losses(
            op,
            levels,
            weights=(self.iou_weight, self.obj_weight, self.cls_weight, 1.0),
            cells=cells,
            gt_boxes=boxes,
            gt_labels=labels,
            index=index,
            iou=iou,
            scale=divisors,
            class_pos_weight=self.cls_pos_weight,
            steepest=STEEPEST * max(self.iou_weight, self.obj_weight, self.cls_weight),
            instead="box_iou_loss, and PyTorch's binary_cross_entropy_with_logits",
        )
        given = _count(labels, sizes)
        ratio = (positives / given.clamp(min=1)).to(parts.dtype)
        return loss, torch.cat([parts, torch.stack([ratio, loss.detach()])])

    @torch.no_grad()
    def assign(self, model_output: Sequence[Tensor] | tuple[object, Sequence[Tensor]], targets: Targets) -> Assignment:
        """Return which box each cell is trained on; arguments as in `forward`.

        Boxes have the index of their row where targets are (T, 6), else their index in the image.
        """
        outputs = require_levels(model_output, self.strides, self.num_classes)
        boxes, labels, sizes = self._targets(targets, outputs[0])
        levels = [output.flatten(1, 3) for output in outputs]
        index, iou = self._assign(levels, self._cells(outputs), boxes, labels, sizes)
        return Assignment(index, labels_of(index, labels), iou, (index >= 0).sum())

    def _cells(self, outputs: list[Tensor]) -> Tensor:
        return grid_cells([(o.shape[2], o.shape[3]) for o in outputs], self.strides, outputs[0].device)

    def _assign(
        self, levels: list[Tensor], cells: Tensor, boxes: Tensor, labels: Tensor, sizes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(B, A) index and IoU of each cell's box."""
        raw = torch.cat([level[..., :5].to(torch.float32) for level in levels], 1)  # (B, A, 5)
        return ops.simota_match(
            class_logits=[level[..., 5:] for level in levels],
            objectness=raw[..., 4],
            pred_boxes=boxes_at_cells(raw, cells),
            cells=cells,
            gt_boxes=boxes,
            gt_labels=labels,
            sample_sizes=sizes,
            radius=float(self.center_sampling_radius),
            center_only=False,
            own_candidates=self.candidates == "own",
            topk=10,
            k_scale=1.0 if self.dynamic_ks_bias is None else float(self.dynamic_ks_bias),
            iou_weight=3.0,
            class_weight=1.0,
        )

    def _normalizers(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(2,): one over what the losses of positives, and objectness, are divided by; 0-d number of positives."""
        positives = (index >= 0).sum()
        divisor = average_over_ranks(positives) if self.sync_num_fgs else positives.to(torch.float32).clamp(min=1)
        objectness = divisor
        if self.obj_loss_fix:
            objectness = torch.full_like(divisor, max(index.numel(), 1))
        return 1 / torch.stack([divisor, objectness]), positives

    def _targets(self, targets: object, output: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, N, 4) cxcywh float32, (B, N) labels, and (B,) how many boxes an image has."""
        batch, sizes = len(output), None
        if isinstance(targets, tuple | list) and len(targets) == 2 and not isinstance(targets, Tensor):
            xyxy, labels, sizes = boxes_with_labels(*targets)
            require_tensor("boxes", xyxy, FLOATS + INTEGERS, "numbers")
            require_tensor("labels", labels, INTEGERS, "integers")
            require_shape("boxes", xyxy, (batch, *xyxy.shape[1:2], 4), "to match model_output")
            require_shape("labels", labels, (batch, *xyxy.shape[1:2]), "to match boxes")
            boxes = to_cxcywh(xyxy.detach().to(torch.float32))
        elif isinstance(targets, RaggedBatch):
            rows, sizes = as_padded("targets", targets)
            require_tensor("targets", rows, FLOATS, "a RaggedBatch of floating-point numbers")
            require_shape("targets", rows, (batch, *rows.shape[1:2], 5), "to match model_output")
            boxes, labels = rows[..., 1:].detach().to(torch.float32), _labels(rows[..., 0])
        else:
            rows = require_tensor("targets", targets, FLOATS, "a tensor (T, 6), a RaggedBatch, or boxes and labels")
            if rows.dim() != 2 or rows.shape[1] != 6:
                raise ValueError(f"targets: expected shape (T, 6), got {tuple(rows.shape)}")
            if is_checked():
                _check_images(rows[:, 0], batch)
            # Each image sees all rows, those of other images as boxes to ignore: so the shape needs no counting.
            own = rows[:, 0] == torch.arange(batch, device=rows.device)[:, None]
            boxes = rows[:, 2:].detach().to(torch.float32).expand(batch, -1, -1)
            labels = _labels(rows[:, 1]).where(own, -1)
        require_device("targets", boxes, output, "model_output")
        if is_checked():
            check_values("boxes", boxes, labels, sizes, self.num_classes)
        return boxes, labels, sizes


class YoloXFastDetectionLoss(YoloXDetectionLoss):
    """The variant of super-gradients: each box chooses among its own candidates alone.

    It is as fast as `YoloXDetectionLoss` here, where the original's is not; it stays for models trained with it.

    Args:
        strides: As in `YoloXDetectionLoss`; likewise all up to `cls_pos_weight`.
        num_classes: See there.
        use_l1: See there.
        center_sampling_radius: See there; used, while the original computes with 2.5 whatever is given.
        iou_type: See there.
        iou_weight: See there.
        obj_weight: See there.
        cls_weight: See there.
        cls_pos_weight: See there.
        dynamic_ks_bias: Factor of the sum of IoUs that says how many cells a box takes; None for 1.
        sync_num_fgs: See there; off by default, as in the original.
        obj_loss_fix: Whether the objectness loss is divided by the number of all cells, not of positives.
    """

    candidates = "own"

    def __init__(
        self,
        strides: Sequence[int],
        num_classes: int,
        use_l1: bool = False,
        center_sampling_radius: float = 2.5,
        iou_type: IouType = "iou",
        iou_weight: float = 5.0,
        obj_weight: float = 1.0,
        cls_weight: float = 1.0,
        cls_pos_weight: float | Sequence[float] | Tensor | None = None,
        dynamic_ks_bias: float | None = 1.1,
        sync_num_fgs: bool = False,
        obj_loss_fix: bool = False,
    ) -> None:
        super().__init__(
            strides,
            num_classes,
            use_l1,
            center_sampling_radius,
            iou_type,
            iou_weight,
            obj_weight,
            cls_weight,
            cls_pos_weight,
            sync_num_fgs=sync_num_fgs,
        )
        if dynamic_ks_bias is not None and not 0 <= dynamic_ks_bias <= 1000:
            raise ValueError(f"dynamic_ks_bias: expected 0 .. 1000, got {dynamic_ks_bias!r}")
        self.dynamic_ks_bias, self.obj_loss_fix = dynamic_ks_bias, obj_loss_fix


def _labels(column: Tensor) -> Tensor:
    """Labels from a column of floats; what is no whole number is no class."""
    whole = column.isfinite() & (column == column.floor()) & (column.abs() < 2**31)
    return column.detach().where(whole, -1).to(torch.int64)


def _count(labels: Tensor, sizes: Tensor | None) -> Tensor:
    """0-d number of boxes that are not to be ignored."""
    given = labels >= 0
    if sizes is not None:
        given = given & (torch.arange(labels.shape[1], device=labels.device) < sizes[:, None])
    return given.sum()


def _check_images(column: Tensor, batch: int) -> None:
    """Raise for the first row of another image than the batch has; reads values."""
    wrong = ~((column >= 0) & (column < batch) & (column == column.floor()))
    found = wrong.nonzero()
    if len(found):
        t = int(found[0])
        raise ValueError(f"targets: row {t} has image {column[t].item():g}, expected 0 .. {batch - 1}")
