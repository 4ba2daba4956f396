"""LD's losses: GFL with the distillation of a teacher's box distributions."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from detops import ops
from detops.arguments import renamed
from detops.assign.atss import AnchorMatch
from detops.criteria.gfl import GFLLoss
from detops.geometry.levels import ImageSizes, require_maps
from detops.ground_truth import GroundTruth, Targets
from detops.losses._dense import DenseLosses, WeightDivisor
from detops.losses.reduction import EPS


class LDLoss(GFLLoss):
    """`GFLLoss`, and the distillation of a teacher's box distributions into the student's.

    The values are those of MMDetection's `LDHead`: the fourth loss has the weights of the positives but is not divided
    by their sum, so it grows with the batch; `normalize_ld` divides it too. Box losses are divided by the sum itself,
    which may be below 1. With `ld_region="main+vlr"` anchors near a box, most of which are not positives, also learn
    from the teacher, weighted by their IoU with the box, as a fifth loss.

    Args:
        num_classes: Number of classes C.
        reg_max: Last bin of the distributions: distances are 0 .. reg_max strides.
        strides: Pixels per cell of each level.
        temperature: Softmax temperature of both distributions.
        ld_weight: Factor of the distillation losses.
        normalize_ld: Divide the distillation losses as the box losses are divided.
        ld_region: "main" for the positives, "main+vlr" for the valuable localization region too.
        options: Further keyword arguments of `GFLLoss`.

    Raises:
        ValueError: A number is out of range, or the region is unknown.

    Reference:
        Zheng et al., "Localization Distillation for Dense Object Detection", 2022; the region is that of
        "Localization Distillation for Object Detection", 2023.
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
        ld_region: Literal["main", "main+vlr"] = "main",
        **options: float,
    ) -> None:
        super().__init__(num_classes, reg_max, strides, **options)  # type: ignore[arg-type]
        if not temperature >= 1:
            raise ValueError(f"temperature: expected at least 1, got {temperature!r}")
        if ld_region not in ("main", "main+vlr"):
            raise ValueError(f'ld_region: expected "main" or "main+vlr", got {ld_region!r}')
        self.ld_region = ld_region
        self.temperature, self.ld_weight, self.normalize_ld = temperature, ld_weight, normalize_ld

    @renamed(image_shapes="image_sizes", boxes="targets=(boxes, labels)", labels="targets=(boxes, labels)",
             per_level="the method `level_losses`")  # fmt: skip
    def forward(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        targets: Targets,
        image_sizes: ImageSizes | None = None,
        *,
        soft_targets: Sequence[Tensor] = (),
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            cls_scores: Each level's (B, C, H, W) logits.
            bbox_preds: Each level's (B, 4 * (reg_max + 1), H, W) logits: left, top, right, bottom.
            targets: Ground truth, as in `GFLLoss.forward`.
            image_sizes: Height and width of each image within the batch's padding, as in `GFLLoss.forward`.
            soft_targets: The teacher's `bbox_preds`, of the same shapes; required.

        Returns:
            The losses of `GFLLoss`, "loss_ld", and with the region "loss_ld_vlr"; 0-d each.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Numbers of levels or channels, shapes or devices do not match; in checked mode also a box that
                is skipped for its values.
        """
        losses = self._losses(cls_scores, bbox_preds, soft_targets, targets, image_sizes, by_level=False)
        return {name: parts[0] for name, parts in losses.items()}

    def level_losses(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        targets: Targets,
        image_sizes: ImageSizes | None = None,
        *,
        soft_targets: Sequence[Tensor] = (),
    ) -> dict[str, list[Tensor]]:
        """Compute each level's part of the losses, as MMDetection returns them; arguments as in `forward`.

        Returns:
            For each loss a list of 0-d parts, one per level; the loss is their sum.
        """
        losses = self._losses(cls_scores, bbox_preds, soft_targets, targets, image_sizes, by_level=True)
        return {name: list(parts) for name, parts in losses.items()}

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
        self._check(cls_scores, bbox_preds)
        channels, count = 4 * (self.reg_max + 1), len(self.strides)
        require_maps("soft_targets", soft_targets, channels, count, cls_scores, "cls_scores")
        return super()._losses(cls_scores, bbox_preds, soft_targets, targets, image_sizes, by_level=by_level)

    def _kinds(self) -> DenseLosses:
        kinds = super()._kinds()
        weights = (*kinds.weights[:3], self.ld_weight / (4 + EPS), self.ld_weight / (16 + EPS))
        return kinds._replace(temperature=self.temperature, weights=weights)

    def _box_divisor(self) -> WeightDivisor:
        return WeightDivisor(0.0, 1e-6, self.normalize_ld)

    def _region(self, anchors: Tensor, truth: GroundTruth, found: AnchorMatch) -> Tensor | None:
        if self.ld_region == "main":
            return None
        return ops.vlr_weights(
            anchors=anchors, gt_boxes=truth.boxes.detach(), threshold=found.threshold, valid=found.valid
        )
