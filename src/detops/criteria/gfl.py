"""GFL's losses as one module: a dense head's outputs and boxes in, numbers out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detops.arguments import renamed
from detops.assign.assignment import Assignment
from detops.assign.atss import AnchorMatch, AtssRule, match_anchors, require_topk
from detops.geometry.levels import ImageSizes, Size, image_sizes_tensor, require_maps, require_strides
from detops.geometry.points import GridCache, anchors_at, grid_points, points_in_images
from detops.ground_truth import GroundTruth, Targets, require_ground_truth
from detops.losses._class_loss import ClassLoss
from detops.losses._dense import ClassDivisor, DenseLosses, Match, WeightDivisor, dense_losses
from detops.losses.reduction import EPS, average_over_ranks, is_averaged


class GFLLoss(nn.Module):
    """ATSS, quality focal loss, distribution focal loss and GIoU loss, for a whole batch.

    The values are those of MMDetection's `GFLHead`: box and distribution losses are weighted by the highest class
    probability of each positive and divided by the sum of these weights; the class loss is divided by the number of
    positives (each image counts as having one). Both divisors are at least 1, and under `torch.distributed` averaged
    over the ranks, so that N ranks give the gradient of one rank on the whole batch. The class logits are read once, in
    place; box logits are read only at the positives; the host never waits.

    Args:
        num_classes: Number of classes C.
        reg_max: Last bin of the distributions: distances are 0 .. reg_max strides.
        strides: Pixels per cell of each level.
        anchor_scale: Side of an anchor in strides.
        topk: Candidates per level in `atss_assign`, 1 .. 1000.
        beta: Exponent of the quality focal loss, above 0.
        cls_weight: Factor of the class loss.
        bbox_weight: Factor of the GIoU loss.
        dfl_weight: Factor of the distribution focal loss.

    Raises:
        ValueError: A number is out of range.

    Reference:
        Li et al., "Generalized Focal Loss", 2020; values as in MMDetection's `GFLHead`.
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
        for name, number in (("anchor_scale", anchor_scale), ("beta", beta)):
            if not number > 0:
                raise ValueError(f"{name}: expected a number above 0, got {number!r}")
        require_topk(topk)
        self.num_classes, self.reg_max, self.strides = num_classes, reg_max, require_strides(strides)
        self.anchor_scale, self.topk, self.beta = anchor_scale, topk, beta
        self.cls_weight, self.bbox_weight, self.dfl_weight = cls_weight, bbox_weight, dfl_weight
        self._grids = GridCache()

    @renamed(image_shapes="image_sizes", boxes="targets=(boxes, labels)", labels="targets=(boxes, labels)",
             per_level="the method `level_losses`")  # fmt: skip
    def forward(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        targets: Targets,
        image_sizes: ImageSizes | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            cls_scores: Each level's (B, C, H, W) logits.
            bbox_preds: Each level's (B, 4 * (reg_max + 1), H, W) logits: left, top, right, bottom.
            targets: `GroundTruth`, the pair (boxes, labels), or a list of dicts; boxes xyxy in pixels, labels
                0 .. C - 1; a negative label means "ignore this box". An anchor is ignored if more than half of its
                area lies in an ignored region.
            image_sizes: Height and width of each image within the batch's padding, (B, 2) or a list; anchors beyond
                them take no part, whatever their logits. None takes those of the targets, if they have any.

        Returns:
            "loss_cls", "loss_bbox" and "loss_dfl", 0-d each; their sum is trained.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Numbers of levels or channels, shapes or devices do not match; in checked mode also a box that
                is skipped for its values.
        """
        losses = self._losses(cls_scores, bbox_preds, [], targets, image_sizes, by_level=False)
        return {name: parts[0] for name, parts in losses.items()}

    def level_losses(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        targets: Targets,
        image_sizes: ImageSizes | None = None,
    ) -> dict[str, list[Tensor]]:
        """Compute each level's part of the losses, as MMDetection returns them; arguments as in `forward`.

        Returns:
            For each loss a list of 0-d parts, one per level; the loss is their sum.
        """
        losses = self._losses(cls_scores, bbox_preds, [], targets, image_sizes, by_level=True)
        return {name: list(parts) for name, parts in losses.items()}

    def assign(
        self, cls_scores: Sequence[Tensor], targets: Targets, image_sizes: ImageSizes | None = None
    ) -> Assignment:
        """Assign boxes to anchors; arguments and errors as in `forward`, anchors level by level, row by row."""
        require_maps("cls_scores", cls_scores, self.num_classes, len(self.strides))
        truth = self._ground_truth(cls_scores, targets)
        points, anchors = self._grids.get(cls_scores, self._grid)
        return self._match(cls_scores, truth, points, anchors, image_sizes).assignment(truth)

    def _losses(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        soft_targets: Sequence[Tensor],
        targets: Targets,
        image_sizes: ImageSizes | None,
        *,
        by_level: bool,
    ) -> dict[str, tuple[Tensor, ...]]:
        """Return each loss's parts by name: one per level, or one in all."""
        self._check(cls_scores, bbox_preds)
        truth = self._ground_truth(cls_scores, targets)
        points, anchors = self._grids.get(cls_scores, self._grid)
        found = self._match(cls_scores, truth, points, anchors, image_sizes)
        region = self._region(anchors, truth, found)
        # No box has more anchors than candidates, so the memory of gathered positives follows from shapes.
        sizes = _level_sizes(cls_scores)
        most = truth.boxes.shape[1] * sum(min(self.topk, size) for size in sizes) if region is None else sum(sizes)
        matched = Match(points, truth.boxes.detach(), truth.labels, found.index, most, found.valid, region=region)
        divisors = _class_divisor(found.positives), self._box_divisor()
        parts = dense_losses(cls_scores, bbox_preds, matched, self._kinds(), *divisors, soft_targets, by_level=by_level)
        return dict(zip(("loss_cls", "loss_bbox", "loss_dfl", "loss_ld", "loss_ld_vlr"), parts, strict=False))

    def _kinds(self) -> DenseLosses:
        weights = (self.cls_weight, self.bbox_weight / (1 + EPS), self.dfl_weight / (4 + EPS), 0.0, 0.0)
        return DenseLosses(ClassLoss("quality", self.beta), weights=weights)

    def _box_divisor(self) -> WeightDivisor:
        return WeightDivisor()

    def _region(self, anchors: Tensor, truth: GroundTruth, found: AnchorMatch) -> Tensor | None:
        """Return the factors of the points that learn from a teacher whether they have a box or not."""
        return None

    def _ground_truth(self, cls_scores: Sequence[Tensor], targets: Targets) -> GroundTruth:
        first = cls_scores[0]
        return require_ground_truth(
            targets, self.num_classes, batch=len(first), like=first, like_name="cls_scores", needs_area=True
        )

    def _grid(self, feature_sizes: list[Size], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return (A, 3) points and (A, 4) anchors."""
        points = grid_points(feature_sizes, self.strides, device, offset=0.0)
        return points, anchors_at(points, self.anchor_scale)

    def _match(
        self,
        cls_scores: Sequence[Tensor],
        targets: GroundTruth,
        points: Tensor,
        anchors: Tensor,
        image_sizes: ImageSizes | None,
    ) -> AnchorMatch:
        given = targets.image_sizes if image_sizes is None else image_sizes
        valid = None
        if given is not None:
            valid = points_in_images(points, image_sizes_tensor(given, len(targets), points.device))
        return match_anchors(anchors, _level_sizes(cls_scores), targets, self.num_classes, AtssRule(self.topk), valid)

    def _check(self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor]) -> None:
        require_maps("cls_scores", cls_scores, self.num_classes, len(self.strides))
        require_maps("bbox_preds", bbox_preds, 4 * (self.reg_max + 1), len(self.strides), cls_scores, "cls_scores")
        for name, levels in (("cls_scores", cls_scores), ("bbox_preds", bbox_preds)):
            for level in levels:
                if level.dtype != levels[0].dtype:
                    raise TypeError(f"{name}: expected levels of one dtype, got {levels[0].dtype} and {level.dtype}")


def _class_divisor(positives: Tensor) -> ClassDivisor:
    """Return the sum over images of the numbers of positives (B,), each at least 1, averaged over ranks."""
    if not is_averaged():
        return ClassDivisor(positives[None], 1.0, EPS)
    count = average_over_ranks(positives.clamp(min=1).sum(dtype=torch.float32))
    return ClassDivisor(count.view(1, 1), 0.0, EPS)


def _level_sizes(levels: Sequence[Tensor]) -> list[int]:
    return [level.shape[2] * level.shape[3] for level in levels]
