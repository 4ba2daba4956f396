"""CenterNet's three losses as one module: boxes and the network's maps in, numbers out."""

import torch
from torch import Tensor, nn

from detops import ops
from detops.arguments import FLOATS, renamed, require_device, require_shape, require_tensor
from detops.diagnostics.checked import is_checked, unchecked
from detops.geometry.levels import Size
from detops.ground_truth import Targets, require_ground_truth
from detops.losses._fused import fused_loss
from detops.losses.focal import check_finite
from detops.losses.focal_from_boxes import gaussian_focal_loss_from_boxes
from detops.losses.reduction import EPS, average_over_ranks
from detops.targets.centernet import CenterNetCells, centernet_cells, ignored_cells
from detops.targets.radius import Formula


class CenterNetLoss(nn.Module):
    """CenterNet's heatmap, size and offset losses for a whole batch, without dense targets.

    The values are those of `centernet_targets` with `gaussian_focal_loss` and an L1 loss at the centres. The
    heatmap's logits are read once and their gradient is written once, in the forward pass; size and offset are
    read only at the centres. All three are divided by the number of distinct centres of the batch, at least 1 (size
    and offset by twice that, as each has two values per centre). Under `torch.distributed` the number is averaged over
    the ranks, so that N ranks give the gradient of one rank on the whole batch.

    Args:
        num_classes: Number of classes C.
        min_overlap: IoU that a box keeps when its corners move by the radius of its Gaussian.
        heatmap_weight: Factor of the heatmap's loss.
        wh_weight: Factor of the size's loss.
        offset_weight: Factor of the offset's loss.
        alpha: Exponent of the focal loss that weighs down cells that are classified well already.
        gamma: Exponent of the focal loss that weighs down negatives near a centre.
        pos_weight: Factor of the heatmap's positives.
        neg_weight: Factor of the heatmap's negatives.
        min_radius: Smallest radius in cells.
        formula: Formula of the radius, as in `gaussian_radius`.
        elliptical: Radii along x and y as a fraction of half the box's width and height; None for circles.

    Raises:
        ValueError: `num_classes` is below 1.

    Reference:
        Zhou et al., "Objects as Points", 2019; values as in MMDetection's `CenterNetHead`.
    """

    def __init__(
        self,
        num_classes: int,
        min_overlap: float = 0.3,
        *,
        heatmap_weight: float = 1.0,
        wh_weight: float = 0.1,
        offset_weight: float = 1.0,
        alpha: float = 2.0,
        gamma: float = 4.0,
        pos_weight: float = 1.0,
        neg_weight: float = 1.0,
        min_radius: int = 0,
        formula: Formula = "fixed",
        elliptical: float | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes!r}")
        self.num_classes = num_classes
        self.heatmap_weight, self.wh_weight, self.offset_weight = heatmap_weight, wh_weight, offset_weight
        self.alpha, self.gamma = alpha, gamma
        self.pos_weight, self.neg_weight = pos_weight, neg_weight
        self.min_overlap, self.min_radius = min_overlap, min_radius
        self.formula: Formula = formula
        self.elliptical = elliptical

    @renamed(
        image_shape="image_size; boxes and labels are one argument, targets=(boxes, labels)",
        ignore_boxes="`ignored` of GroundTruth, given as targets",
    )
    def forward(
        self,
        heatmap_logits: Tensor,
        wh: Tensor,
        offset: Tensor,
        targets: Targets,
        image_size: Size,
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            heatmap_logits: (B, C, H, W), before the sigmoid.
            wh: (B, 2, H, W), predicted width and height in cells.
            offset: (B, 2, H, W), predicted x and y of a centre minus its cell.
            targets: `GroundTruth`, the pair (boxes, labels), or a list of dicts; boxes xyxy in pixels of the network's
                input, labels 0 .. C - 1; a negative label means "ignore this box". Cells in ignored regions, such as
                crowds, carry no negative loss.
            image_size: Height and width of the network's input in pixels.

        Returns:
            "loss_center_heatmap", "loss_wh" and "loss_offset", 0-d each; their sum is trained.

        Raises:
            TypeError: An argument has the wrong type or dtype.
            ValueError: Shapes or devices do not match; in checked mode also a box that would be skipped for its
                values, or a logit that is not finite.
        """
        self._check(heatmap_logits, wh, offset)
        batch, _, height, width = heatmap_logits.shape
        truth = require_ground_truth(
            targets, self.num_classes, batch=batch, like=heatmap_logits, like_name="heatmap_logits"
        )
        cells = centernet_cells(
            truth, (height, width), image_size, self.num_classes, self.min_overlap,
            min_radius=self.min_radius, formula=self.formula, elliptical=self.elliptical,
        )  # fmt: skip
        negative_weight = ignored_cells(truth, (height, width), image_size)
        count = average_over_ranks(cells.num_centers)
        if is_checked():
            check_finite("heatmap_logits", heatmap_logits)
        with unchecked():  # boxes to be skipped have label -1 by now
            heatmap_loss = gaussian_focal_loss_from_boxes(
                heatmap_logits,
                cells.center,
                cells.radius,
                cells.labels,
                self.alpha,
                self.gamma,
                pos_weight=self.pos_weight * self.heatmap_weight,
                neg_weight=self.neg_weight * self.heatmap_weight,
                negative_weight=negative_weight,
                avg_factor=count,
            )
        divisor = 2 * count + EPS
        return {
            "loss_center_heatmap": heatmap_loss,
            "loss_wh": _l1_at_centers(wh, cells.wh, cells, self.wh_weight, divisor),
            "loss_offset": _l1_at_centers(offset, cells.offset, cells, self.offset_weight, divisor),
        }

    def _check(self, heatmap_logits: Tensor, wh: Tensor, offset: Tensor) -> None:
        require_tensor("heatmap_logits", heatmap_logits, FLOATS, "a floating-point tensor")
        if heatmap_logits.dim() != 4 or heatmap_logits.shape[1] != self.num_classes:
            raise ValueError(
                f"heatmap_logits: expected shape (B, {self.num_classes}, H, W), got {tuple(heatmap_logits.shape)}"
            )
        batch, _, height, width = heatmap_logits.shape
        for name, value in (("wh", wh), ("offset", offset)):
            require_tensor(name, value, FLOATS, "a floating-point tensor")
            require_shape(name, value, (batch, 2, height, width), "to match heatmap_logits")
            require_device(name, value, heatmap_logits, "heatmap_logits")


def _l1_at_centers(pred: Tensor, target: Tensor, cells: CenterNetCells, weight: float, divisor: Tensor) -> Tensor:
    """Return the weighted sum of absolute differences at the centres, divided."""
    return fused_loss(
        ops.l1_at_cells,
        pred,
        scale=torch.full_like(divisor, weight) / divisor,
        steepest=weight,
        instead="PyTorch's l1_loss, with the maps of centernet_targets",
        target=target,
        index=cells.flat_index,
        used=cells.last,
    )
