"""The task-aligned family's whole loss as one module: a dense head's outputs and boxes in, numbers out."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from detops import ops
from detops.assign.assignment import IGNORED, Assignment
from detops.assign.tal import RuleName, TalRule, match_aligned, require_rule
from detops.geometry.levels import ImageSizes, Size, image_sizes_tensor, require_maps, require_strides
from detops.geometry.points import GridCache, grid_points, points_in_images
from detops.ground_truth import GroundTruth, Targets, require_ground_truth
from detops.losses._class_loss import ClassLoss
from detops.losses._dense import ClassDivisor, DenseLosses, Match, dense_losses
from detops.losses.reduction import average_over_ranks, is_averaged

ClassName = Literal["varifocal", "focal", "bce"]
Maps = Sequence[Tensor]
ENDINGS = ("", "_one_to_one")  # of the names of its losses
MARGIN = 0.01  # of bins, by which the family's targets stay below the last one


class Head(NamedTuple):
    """One head's outputs, each level's class logits and box logits, and the rule of its assignment."""

    scores: Maps
    preds: Maps
    rule: TalRule


class TaskAlignedLoss(nn.Module):
    """Task-aligned assignment, class loss with soft targets, IoU loss and distribution focal loss, for a whole batch.

    One criterion for PP-YOLOE, YOLO-NAS, TOOD and YOLOv8 to v10, whose differences are its arguments:

        family               rule       class_loss   box_kind  reg_max  weights of class, box, distributions
        PP-YOLOE, YOLO-NAS   "ppyoloe"  "varifocal"  "giou"    16       1, 2.5, 0.5 (the defaults)
        YOLOv8, YOLOv10      "yolov8"   "bce"        "ciou"    15       0.5, 7.5, 1.5
        YOLOv9               "yolov9"   "bce"        "ciou"    15       0.5, 7.5, 1.5
        TOOD                 "tood"     "focal"      "giou"    0        1, 2, -

    The class of a point with a box is trained towards its score target, the box is weighted by it, and all losses are
    divided by the sum of score targets over the batch, at least 1, which under `torch.distributed` is averaged over the
    ranks, so that N ranks give the gradient of one rank on the whole batch. Class logits are read once where they are,
    and their gradient is written by that pass; the losses of boxes are computed at points with a box alone; no memory
    grows with boxes times points; nothing waits for the host.

    `reg_max` is the last bin, here as everywhere in this package: a head of YOLOv8 to v10 whose configuration says
    "reg_max 16" has the 16 bins 0 .. 15, so that it is 15 here. PP-YOLOE's and YOLO-NAS' 16 is the last bin.

    Args:
        num_classes: Number of classes C.
        reg_max: Last bin of the distributions: distances are 0 .. reg_max strides. 0 for a head that predicts four
            distances in strides directly, at least 0 each, and has no distribution focal loss (YOLO26).
        strides: Pixels per cell of each level.
        rule: How boxes are assigned: a name or a `TalRule`, see `tal_assign`. The reach of "yolov9" follows `reg_max`.
        class_loss: "varifocal", "focal" (quality focal loss, of exponent 2), or "bce".
        alpha: Factor of the varifocal loss of background, None for 0.75; or share of the positives in the focal loss,
            None for neither.
        box_kind: The IoU loss, "giou" or "ciou", or another of `box_iou_loss`.
        cls_weight: Factor of the class loss.
        bbox_weight: Factor of the IoU loss.
        dfl_weight: Factor of the distribution focal loss, which is a mean over the four sides.
        point_offset: Where in its cell a point lies; 0 for TOOD.

    Raises:
        ValueError: A number or name is out of range.

    Reference:
        Feng et al., "TOOD: Task-aligned One-stage Object Detection", 2021; Xu et al., "PP-YOLOE", 2022; Wang et al.,
        "YOLOv10: Real-Time End-to-End Object Detection", 2024.
    """

    def __init__(
        self,
        num_classes: int,
        reg_max: int = 16,
        strides: Sequence[int] = (8, 16, 32),
        *,
        rule: RuleName | TalRule = "ppyoloe",
        class_loss: ClassName = "varifocal",
        alpha: float | None = None,
        box_kind: Literal["giou", "ciou", "iou", "diou", "iou_squared"] = "giou",
        cls_weight: float = 1.0,
        bbox_weight: float = 2.5,
        dfl_weight: float = 0.5,
        point_offset: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value, least in (("num_classes", num_classes, 1), ("reg_max", reg_max, 0)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value!r}")
        if box_kind not in ("giou", "ciou", "iou", "diou", "iou_squared"):
            raise ValueError(f"box_kind: expected giou, ciou, iou, diou or iou_squared, got {box_kind!r}")
        self.num_classes, self.reg_max, self.strides = num_classes, reg_max, require_strides(strides)
        self.rule = require_rule(rule)
        if rule == "yolov9":
            self.rule = self.rule._replace(reach=reg_max - MARGIN if reg_max else None)
        self.kinds = DenseLosses(class_loss_of(class_loss, alpha), box_kind, MARGIN)
        self.cls_weight, self.bbox_weight, self.dfl_weight = cls_weight, bbox_weight, dfl_weight
        self.point_offset = point_offset
        self._grids = GridCache()

    def forward(
        self,
        cls_scores: Maps,
        bbox_preds: Maps,
        targets: Targets,
        image_sizes: ImageSizes | None = None,
        *,
        one_to_one: tuple[Maps, Maps] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            cls_scores: Each level's (B, C, H, W) logits.
            bbox_preds: Each level's (B, 4 * (reg_max + 1), H, W) logits: left, top, right, bottom.
            targets: `GroundTruth`, the pair (boxes, labels), or a list of dicts; boxes xyxy in pixels, labels
                0 .. C - 1; a negative label means "ignore this box". Points without a box in ignored regions take no
                part.
            image_sizes: Height and width of each image within the batch's padding, (B, 2) or a list; points beyond them
                take no part, whatever their logits. None for those of the targets, if they have any.
            one_to_one: `cls_scores` and `bbox_preds` of a second head, which predicts each box once and needs no
                suppression; it is assigned by the same rule, one point per box.

        Returns:
            "loss_cls", "loss_bbox" and, unless `reg_max` is 0, "loss_dfl"; for a second head the same with
            "_one_to_one" at the end. 0-d each; their sum is what is trained.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Numbers of levels or channels, shapes or devices do not match; in checked mode also a box that
                is skipped for its values.
        """
        truth, points, valid = self._prepare(cls_scores, bbox_preds, targets, image_sizes)
        heads = [Head(cls_scores, bbox_preds, self.rule)]
        if one_to_one is not None:
            scores, preds = one_to_one
            self._check(scores, preds)
            require_maps("one_to_one", scores, self.num_classes, len(self.strides), cls_scores, "cls_scores")
            if torch.compiler.is_compiling():  # it takes no tensor twice, and heads may share some
                scores, preds = ([level.view_as(level) for level in levels] for levels in (scores, preds))
            heads.append(Head(scores, preds, self.rule._replace(topk=1)))
        losses = self._losses(heads, truth, points, valid).items()
        endings = ENDINGS[: len(heads)]
        return {f"{name}{ending}": parts[i] for i, ending in enumerate(endings) for name, parts in losses}

    @torch.no_grad()
    def assign(
        self,
        cls_scores: Maps,
        bbox_preds: Maps,
        targets: Targets,
        image_sizes: ImageSizes | None = None,
        *,
        topk: int | None = None,
    ) -> Assignment:
        """Return what each point is trained on; arguments as in `forward`, points level by level, row by row.

        Args:
            cls_scores: See `forward`.
            bbox_preds: See `forward`.
            targets: See `forward`.
            image_sizes: See `forward`.
            topk: In place of the rule's; 1 for what a second head is trained on.
        """
        truth, points, valid = self._prepare(cls_scores, bbox_preds, targets, image_sizes)
        found = aligned(cls_scores, bbox_preds, truth, points, require_rule(self.rule, topk=topk), valid)
        return Assignment.of(*found, truth.labels)

    def _grid(self, sizes: list[Size], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the points of one head, (A, 3), and of two."""
        points = grid_points(sizes, self.strides, device, self.point_offset)
        return points, torch.cat([points, points])

    def _prepare(
        self, cls_scores: Maps, bbox_preds: Maps, targets: Targets, image_sizes: ImageSizes | None
    ) -> tuple[GroundTruth, Tensor, Tensor | None]:
        """Ground truth, points (A, 3), and which of them exist (B, A), None for all."""
        self._check(cls_scores, bbox_preds)
        first, offset = cls_scores[0], self.point_offset
        truth = require_ground_truth(targets, self.num_classes, batch=len(first), like=first, like_name="cls_scores")
        points = self._grids.get(cls_scores, self._grid)[0]
        given = truth.image_sizes if image_sizes is None else image_sizes
        if given is None:
            return truth, points, None
        return truth, points, points_in_images(points, image_sizes_tensor(given, len(truth), points.device), offset)

    def _losses(
        self, heads: list[Head], truth: GroundTruth, points: Tensor, valid: Tensor | None
    ) -> dict[str, tuple[Tensor, ...]]:
        """Each loss by name, a 0-d tensor per head; the heads are taken as levels that follow one another."""
        found = [aligned(head.scores, head.preds, truth, points, head.rule, valid) for head in heads]
        index, quality = found[0]
        if len(heads) > 1:
            index, quality = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
            points = self._grids.get(heads[0].scores, self._grid)[1]
            valid = None if valid is None else torch.cat([valid, valid], 1)
        cls_scores = [level for head in heads for level in head.scores]
        bbox_preds = [level for head in heads for level in head.preds]
        most = max(head.rule.topk for head in heads) * len(heads) * truth.boxes.shape[1]
        return self._weighted(cls_scores, bbox_preds, truth, points, index, quality, valid, most, len(heads))

    def _weighted(
        self,
        cls_scores: Maps,
        bbox_preds: Maps,
        truth: GroundTruth,
        points: Tensor,
        index: Tensor,
        quality: Tensor,
        valid: Tensor | None,
        most: int,
        heads: int = 1,
    ) -> dict[str, tuple[Tensor, ...]]:
        """Each loss as it is trained, given what the points are trained on."""
        divisor = ClassDivisor(quality.view(len(truth), heads, -1).sum((0, 2))[:, None])
        if is_averaged():
            divisor = ClassDivisor(average_over_ranks(divisor.counts), 0.0)
        if truth.ignored is not None:
            counts = index != IGNORED
            valid = counts if valid is None else valid & counts
        match = Match(
            points, truth.boxes.detach(), truth.labels, index, min(most, len(points)), valid, quality, quality
        )
        kinds = self.kinds._replace(weights=(self.cls_weight, self.bbox_weight, self.dfl_weight / 4, 0.0, 0.0))
        parts = dense_losses(cls_scores, bbox_preds, match, kinds, divisor)
        return dict(zip(("loss_cls", "loss_bbox", "loss_dfl"), parts, strict=False))

    def _check(self, cls_scores: Maps, bbox_preds: Maps) -> None:
        require_maps("cls_scores", cls_scores, self.num_classes, len(self.strides))
        require_maps("bbox_preds", bbox_preds, 4 * (self.reg_max + 1), len(self.strides), cls_scores, "cls_scores")
        for name, levels in (("cls_scores", cls_scores), ("bbox_preds", bbox_preds)):
            for level in levels:
                if level.dtype != levels[0].dtype:
                    raise TypeError(f"{name}: expected levels of one dtype, got {levels[0].dtype} and {level.dtype}")


@torch.no_grad()
def aligned(
    cls_scores: Maps, bbox_preds: Maps, truth: GroundTruth, points: Tensor, rule: TalRule, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Assign the boxes to the points of a head's maps; results as of `match_aligned`."""
    boxes = ops.decode_distances(bbox_preds=[level.detach() for level in bbox_preds], points=points)
    logits = [level.detach().flatten(2).transpose(1, 2) for level in cls_scores]
    return match_aligned(logits, boxes, points, truth, rule, valid)


def class_loss_of(name: str, alpha: float | None) -> ClassLoss:
    """Return a class loss by the family's name.

    Raises:
        ValueError: There is none of this name, or alpha is out of range.
    """
    if name not in ("varifocal", "focal", "bce"):
        raise ValueError(f"class_loss: expected 'varifocal', 'focal' or 'bce', got {name!r}")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected 0 .. 1, or None, got {alpha!r}")
    if name == "bce":
        return ClassLoss("bce")
    if name == "varifocal":
        return ClassLoss("varifocal", 2.0, 0.75 if alpha is None else alpha)
    return ClassLoss("quality", 2.0) if alpha is None else ClassLoss("focal", 2.0, alpha)
