"""LD's losses: a GFL that learns from a teacher's box distributions too."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from detops.criteria.gfl import GFLLoss, Losses, Shapes, level_results
from detops.geometry.levels import require_maps
from detops.losses.reduction import EPS, average_over_ranks
from detops.ragged.padded import Batch


class LDLoss(GFLLoss):
    """`GFLLoss`, and the distillation of a teacher's box distributions into the student's.

    The numbers of MMDetection's `LDHead`: the fourth loss has the weights of the positives but is not divided by their
    sum, so it grows with the batch; `normalize_ld` divides it too. Box losses are divided by the sum itself, which may
    be below 1. With `ld_region="main+vlr"` anchors near a box learn from the teacher too, by their IoU with it, as a
    fifth loss; most are no positives.

    Args:
        num_classes: As in `GFLLoss`; likewise `reg_max` and `strides`.
        reg_max: See there.
        strides: See there.
        temperature: That both distributions are softened by.
        ld_weight: Factor of the fourth loss.
        normalize_ld: Whether it (and the fifth) is divided as the box losses are.
        ld_region: "main" for the positives, "main+vlr" for the valuable localization region too.
        options: Keyword arguments of `GFLLoss`.

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

    def forward(  # type: ignore[override]
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        boxes: Batch,
        labels: Batch,
        soft_targets: Sequence[Tensor],
        image_shapes: Shapes = None,
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
            Those of `GFLLoss`, "loss_ld", and with the region "loss_ld_vlr".
        """
        self._check(cls_scores, bbox_preds)
        require_maps("soft_targets", soft_targets, 4 * (self.reg_max + 1), len(self.strides), cls_scores)
        losses, parts, divisor = self._losses(
            cls_scores, bbox_preds, soft_targets, boxes, labels, image_shapes, self.temperature,
            self.ld_region == "main+vlr",
        )  # fmt: skip
        weight = self.ld_weight / divisor if self.normalize_ld else self.ld_weight
        losses["loss_ld"] = weight / (4 + EPS) * parts[4]
        if self.ld_region == "main+vlr":
            losses["loss_ld_vlr"] = weight / (16 + EPS) * parts[5]
        return level_results(losses, per_level)

    def _box_divisor(self, weights: Tensor) -> Tensor:
        return average_over_ranks(weights, least=0.0) + 1e-6
