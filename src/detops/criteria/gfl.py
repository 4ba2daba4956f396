"""GFL's and LD's losses, a module each: a dense head's outputs and boxes in, numbers out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detops.checks import require_maps
from detops.losses.distribution import (
    distribution_focal_loss,
    distribution_to_distances,
    localization_distillation_loss,
)  # fmt: skip
from detops.losses.focal_from_boxes import gaussian_focal_loss_from_boxes
from detops.losses.iou import box_iou_loss
from detops.losses.reduction import EPS, average_over_ranks
from detops.ragged.padded import Batch, as_padded
from detops.targets.assignment import Assignment
from detops.targets.atss import atss_assign, grid_anchors
from detops.targets.distances import boxes_to_distances, distances_to_boxes

Losses = dict[str, Tensor] | dict[str, list[Tensor]]


class Positives(NamedTuple):
    """The anchors with a box, M of them an image, by the numbers that their losses need.

    Attributes:
        slots: (B, M) which anchors; those beyond the positives have `exists` false.
        exists: (B, M) bool.
        level: (B, M) index of the level.
        raw: (B, M, 4, reg_max + 1) logits of the distributions.
        logit: (B, M) of the label.
        weight: (B, M) highest class probability, 0 where none exists.
        target: (B, M, 4) xyxy box in units of the stride.
        point: (B, M, 2) centre of the anchor in units of the stride.
    """

    slots: Tensor
    exists: Tensor
    level: Tensor
    raw: Tensor
    logit: Tensor
    weight: Tensor
    target: Tensor
    point: Tensor


class GFLLoss(nn.Module):
    """ATSS, quality focal loss, distribution focal loss and GIoU loss, for a whole batch.

    The numbers of MMDetection's `GFLHead`: box and distribution losses are weighted by the highest class probability of
    each positive and divided by the sum of these weights; the class loss is divided by the number of positives (each
    image counts as having one). Both divisors are at least 1, and under `torch.distributed` averaged over the ranks, so
    that N ranks give the gradient of one rank on the whole batch. The class logits are read once where they are; box
    logits are read at the positives alone; nothing waits for the host.

    Args:
        num_classes: Number of classes C.
        reg_max: Distances are distributions over 0 .. reg_max strides.
        strides: Pixels a cell of each level.
        anchor_scale: Side of an anchor in cells.
        topk: Candidates a level, see `atss_assign`.
        beta: Exponent of the quality focal loss.
        cls_weight: Factor of the class loss.
        bbox_weight: Factor of the GIoU loss.
        dfl_weight: Factor of the distribution focal loss.

    Reference:
        Li et al., "Generalized Focal Loss", 2020; the numbers of MMDetection's `GFLHead`.
    """

    def __init__(
        self,
        num_classes: int,
        reg_max: int = 16,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        *,
        anchor_scale: float = 8.0,
        topk: int = 9,
        beta: float = 2.0,
        cls_weight: float = 1.0,
        bbox_weight: float = 2.0,
        dfl_weight: float = 0.25,
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("reg_max", reg_max), ("topk", topk)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value!r}")
        if not strides or not all(isinstance(stride, int) and stride >= 1 for stride in strides):
            raise ValueError(f"strides: expected whole numbers of pixels, the same along x and y, got {strides!r}")
        self.num_classes, self.reg_max, self.strides = num_classes, reg_max, tuple(strides)
        self.anchor_scale, self.topk, self.beta = anchor_scale, topk, beta
        self.cls_weight, self.bbox_weight, self.dfl_weight = cls_weight, bbox_weight, dfl_weight

    def forward(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        boxes: Batch,
        labels: Batch,
        image_shapes: Tensor | Sequence[tuple[int, int]] | None = None,
        *,
        per_level: bool = False,
    ) -> Losses:
        """Compute the losses.

        Args:
            cls_scores: Each level's (B, C, H, W) logits.
            bbox_preds: Each level's (B, 4 * (reg_max + 1), H, W) logits: left, top, right, bottom.
            boxes: `RaggedBatch` (B, N, 4), or a list of B tensors (n, 4): xyxy in pixels. A tensor (B, N, 4) is a
                batch without padding.
            labels: Likewise (B, N) integers; a negative one means "ignore this box".
            image_shapes: Height and width of each image within the batch's padding, (B, 2) or a list; anchors beyond
                them take no part. None where there is no padding.
            per_level: Return a list with a loss a level, as MMDetection does; their sums are the losses.

        Returns:
            "loss_cls", "loss_bbox" and "loss_dfl", 0-d each or lists of such; their sum is what is trained.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Numbers of levels or channels, shapes or devices do not match; in checked mode also a box that
                is skipped for its values.
        """
        levels, _ = self._losses(cls_scores, bbox_preds, boxes, labels, image_shapes)
        return levels if per_level else {name: torch.stack(parts).sum() for name, parts in levels.items()}

    def assign(
        self,
        cls_scores: Sequence[Tensor],
        boxes: Batch,
        labels: Batch,
        image_shapes: Tensor | Sequence[tuple[int, int]] | None = None,
    ) -> Assignment:
        """Return what each anchor is trained on; arguments as in `forward`, anchors level by level, row by row."""
        require_maps("cls_scores", cls_scores, self.num_classes, len(self.strides))
        _, sizes, anchors, valid = self._anchors(cls_scores, image_shapes)
        return atss_assign(anchors, sizes, boxes, labels, self.num_classes, topk=self.topk, valid=valid)

    def _anchors(
        self, cls_scores: Sequence[Tensor], image_shapes: Tensor | Sequence[tuple[int, int]] | None
    ) -> tuple[list[tuple[int, int]], list[int], Tensor, Tensor | None]:
        """Shapes and sizes of the levels, the anchors, and which of them exist."""
        shapes, device = [(scores.shape[2], scores.shape[3]) for scores in cls_scores], cls_scores[0].device
        anchors = grid_anchors(shapes, self.strides, self.anchor_scale, device)
        valid = None if image_shapes is None else self._valid(shapes, image_shapes, device)
        return shapes, [height * width for height, width in shapes], anchors, valid

    def _losses(
        self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor], boxes: Batch, labels: Batch,
        image_shapes: Tensor | Sequence[tuple[int, int]] | None,
    ) -> tuple[dict[str, list[Tensor]], tuple[Positives, Tensor]]:  # fmt: skip
        """The losses of each level; the positives, and what box losses are divided by."""
        self._check(cls_scores, bbox_preds)
        shapes, sizes, anchors, valid = self._anchors(cls_scores, image_shapes)
        found = atss_assign(anchors, sizes, boxes, labels, self.num_classes, topk=self.topk, valid=valid)
        if len(found.box_index) != len(cls_scores[0]):
            raise ValueError(
                f"boxes: expected {len(cls_scores[0])} images, as cls_scores has, got {len(found.box_index)}"
            )
        positives = self._positives(cls_scores, bbox_preds, boxes, anchors, sizes, found)

        distances = distribution_to_distances(positives.raw.flatten(2), self.reg_max)
        pred = distances_to_boxes(positives.point, distances)
        quality = 1 - box_iou_loss(pred.detach(), positives.target, reduction="none")
        giou = box_iou_loss(pred, positives.target, "giou", reduction="none")
        exact = boxes_to_distances(positives.point, positives.target, self.reg_max)
        dfl = distribution_focal_loss(positives.raw, exact, reduction="none").sum(2)
        divisor = self._box_divisor(positives.weight.sum())
        bbox = self.bbox_weight * positives.weight * giou / (1 + EPS) / divisor
        dfl = self.dfl_weight * positives.weight * dfl / (4 + EPS) / divisor
        count = average_over_ranks((found.box_index >= 0).sum(1).clamp(min=1).sum())
        correction = self._correction(positives, quality) / (count + EPS)
        losses: dict[str, list[Tensor]] = {"loss_cls": [], "loss_bbox": [], "loss_dfl": []}
        start = 0
        for level, scores in enumerate(cls_scores):
            end = start + sizes[level]
            ignored = None if valid is None else valid[:, start:end].unflatten(1, shapes[level]).to(torch.float32)
            background = _background(scores, self.beta, count, ignored)
            here = positives.exists & (positives.level == level)
            losses["loss_cls"].append(self.cls_weight * (background + correction.where(here, 0).sum()))
            losses["loss_bbox"].append(bbox.where(here, 0).sum())
            losses["loss_dfl"].append(dfl.where(here, 0).sum())
            start = end
        return losses, (positives, divisor)

    def _box_divisor(self, weights: Tensor) -> Tensor:
        """What box and distribution losses are divided by."""
        return average_over_ranks(weights)

    def _correction(self, positives: Positives, quality: Tensor) -> Tensor:
        """(B, M): the quality focal loss of a positive's label, less what it counts as background."""
        x = positives.logit
        p = x.sigmoid()
        wanted = F.binary_cross_entropy_with_logits(x, quality, reduction="none") * (quality - p).abs().pow(self.beta)
        return wanted - F.softplus(x) * p.pow(self.beta)

    def _positives(
        self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor], boxes: Batch, anchors: Tensor,
        sizes: list[int], found: Assignment,
    ) -> Positives:  # fmt: skip
        gt, _ = as_padded("boxes", boxes)
        positive = found.box_index >= 0
        # No box takes more than its candidates: so the number of slots follows from shapes.
        most = min(positive.shape[1], gt.shape[1] * sum(min(self.topk, size) for size in sizes))
        slots = (~positive).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        exists = positive.gather(1, slots)
        level = torch.zeros_like(slots)
        for start in _starts(sizes)[1:]:
            level = level + (slots >= start)
        label = found.labels.gather(1, slots).clamp(min=0)
        stride = anchors[:, 2] - anchors[:, 0]
        stride = (stride / self.anchor_scale)[slots][..., None]
        index = found.box_index.gather(1, slots).clamp(min=0)
        target = torch.zeros(*slots.shape, 4, device=slots.device)
        if gt.shape[1]:
            target = gt.detach().to(torch.float32).gather(1, index[..., None].expand(-1, -1, 4))
        point = ((anchors[:, :2] + anchors[:, 2:]) / 2)[slots] / stride
        target = (target / stride).where(exists[..., None], torch.cat([point - 1, point + 1], -1))
        probability = _at([scores.detach() for scores in cls_scores], slots, sizes).sigmoid()
        return Positives(
            slots,
            exists,
            level,
            _at(bbox_preds, slots, sizes).unflatten(2, (4, self.reg_max + 1)),
            _logits_at(cls_scores, slots, label, sizes),
            probability.amax(2).where(exists, 0),
            target,
            point,
        )

    def _valid(
        self, shapes: list[tuple[int, int]], image_shapes: Tensor | Sequence[tuple[int, int]], device: torch.device
    ) -> Tensor:
        """(B, A) bool: cells whose corner lies in the image."""
        sides = torch.as_tensor(image_shapes, device=device)
        if sides.dim() != 2 or sides.shape[1] != 2:
            raise ValueError(f"image_shapes: expected a height and a width an image, got shape {tuple(sides.shape)}")
        valid = []
        for (height, width), stride in zip(shapes, self.strides, strict=True):
            y = torch.arange(height, device=device) * stride < sides[:, :1]
            x = torch.arange(width, device=device) * stride < sides[:, 1:]
            valid.append((y[:, :, None] & x[:, None]).flatten(1))
        return torch.cat(valid, 1)

    def _check(self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor]) -> None:
        channels = {"cls_scores": self.num_classes, "bbox_preds": 4 * (self.reg_max + 1)}
        for name, levels in (("cls_scores", cls_scores), ("bbox_preds", bbox_preds)):
            require_maps(name, levels, channels[name], len(self.strides), cls_scores)


class LDLoss(GFLLoss):
    """`GFLLoss`, and the distillation of a teacher's box distributions into the student's.

    The numbers of MMDetection's `LDHead`: the fourth loss has the weights of the positives but is not divided by their
    sum, so it grows with the batch; `normalize_ld` divides it too. Box losses are divided by the sum itself, which may
    be below 1.

    Args:
        num_classes: As in `GFLLoss`; likewise `reg_max` and `strides`.
        reg_max: See there.
        strides: See there.
        temperature: That both distributions are softened by.
        ld_weight: Factor of the fourth loss.
        normalize_ld: Whether it is divided as the box losses are.
        options: Keyword arguments of `GFLLoss`.

    Reference:
        Zheng et al., "Localization Distillation for Dense Object Detection", 2022.
    """

    def __init__(
        self,
        num_classes: int,
        reg_max: int = 16,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        temperature: float = 10.0,
        *,
        ld_weight: float = 0.25,
        normalize_ld: bool = False,
        **options: float,
    ) -> None:
        super().__init__(num_classes, reg_max, strides, **options)  # type: ignore[arg-type]
        if not temperature >= 1:
            raise ValueError(f"temperature: expected at least 1, got {temperature!r}")
        self.temperature, self.ld_weight, self.normalize_ld = temperature, ld_weight, normalize_ld

    def forward(  # type: ignore[override]
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        boxes: Batch,
        labels: Batch,
        soft_targets: Sequence[Tensor],
        image_shapes: Tensor | Sequence[tuple[int, int]] | None = None,
        *,
        per_level: bool = False,
    ) -> Losses:
        """Compute the losses; arguments and results as in `GFLLoss.forward`, and these.

        Args:
            cls_scores: See there.
            bbox_preds: See there.
            boxes: See there.
            labels: See there.
            soft_targets: The teacher's `bbox_preds`, of the same shapes.
            image_shapes: See there.
            per_level: See there.

        Returns:
            Those of `GFLLoss`, and "loss_ld".
        """
        self._check(cls_scores, bbox_preds)
        channels = 4 * (self.reg_max + 1)
        require_maps("soft_targets", soft_targets, channels, len(self.strides), cls_scores)
        levels, (positives, divisor) = self._losses(cls_scores, bbox_preds, boxes, labels, image_shapes)
        sizes = [scores.shape[2] * scores.shape[3] for scores in cls_scores]
        soft = _at([level.detach() for level in soft_targets], positives.slots, sizes)
        soft = soft.unflatten(2, (4, self.reg_max + 1))
        loss = localization_distillation_loss(positives.raw, soft, self.temperature, reduction="none").sum(2)
        loss = self.ld_weight * positives.weight * loss / (4 + EPS)
        if self.normalize_ld:
            loss = loss / divisor
        levels["loss_ld"] = [
            loss.where(positives.exists & (positives.level == level), 0).sum() for level in range(len(sizes))
        ]
        return levels if per_level else {name: torch.stack(parts).sum() for name, parts in levels.items()}

    def _box_divisor(self, weights: Tensor) -> Tensor:
        return average_over_ranks(weights, least=0.0) + 1e-6


def _starts(sizes: list[int]) -> list[int]:
    return [sum(sizes[:level]) for level in range(len(sizes))]


def _background(scores: Tensor, beta: float, count: Tensor, weight: Tensor | None) -> Tensor:
    """The quality focal loss of a level as if it held nothing: CenterNet's focal loss without a box."""
    none = scores.new_zeros(len(scores), 0, 2, dtype=torch.float32)
    labels = torch.zeros(len(scores), 0, dtype=torch.int64, device=scores.device)
    return gaussian_focal_loss_from_boxes(
        scores, none, none[..., 0], labels, beta, negative_weight=weight, avg_factor=count
    )


def _at(levels: Sequence[Tensor], slots: Tensor, sizes: list[int]) -> Tensor:
    """Channels (B, M, C), float32, of maps (B, C, H, W) at cells (B, M) that are numbered through all levels."""
    read: Tensor | None = None
    for level, start, size in zip(levels, _starts(sizes), sizes, strict=True):
        local = (slots - start).clamp(0, size - 1)
        here = level.flatten(2).gather(2, local[:, None].expand(-1, level.shape[1], -1)).to(torch.float32)
        read = here if read is None else torch.where((slots >= start)[:, None], here, read)
    assert read is not None
    return read.transpose(1, 2)


def _logits_at(levels: Sequence[Tensor], slots: Tensor, labels: Tensor, sizes: list[int]) -> Tensor:
    """(B, M) float32: one channel of each cell."""
    read: Tensor | None = None
    for level, start, size in zip(levels, _starts(sizes), sizes, strict=True):
        local = labels * size + (slots - start).clamp(0, size - 1)
        here = level.flatten(1).gather(1, local).to(torch.float32)
        read = here if read is None else torch.where(slots >= start, here, read)
    assert read is not None
    return read
