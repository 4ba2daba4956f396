"""CenterNet's three losses as one module: boxes and the network's maps in, numbers out."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from detops import ops
from detops.arguments import FLOATS, accumulate_dtype, renamed, require_device, require_shape, require_tensor
from detops.diagnostics.checked import is_checked
from detops.geometry.levels import Size
from detops.ground_truth import Targets, require_ground_truth
from detops.losses._fused import fused_map_losses
from detops.losses.focal import check_finite
from detops.losses.reduction import average_over_ranks, is_averaged
from detops.targets.centernet import centernet_cells, ignored_cells
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
        if is_checked():
            seen = heatmap_logits if negative_weight is None else heatmap_logits.where(negative_weight != 0, 0)
            check_finite("heatmap_logits", seen)
        if negative_weight is not None:
            negative_weight = negative_weight[:, 0].to(accumulate_dtype(heatmap_logits))
        averaged = is_averaged()
        op = partial(
            _by_list,
            least=0.0 if averaged else 1.0,
            diameter_to_sigma_factor=6.0,
            alpha=float(self.alpha),
            gamma=float(self.gamma),
            pos_weight=float(self.pos_weight * self.heatmap_weight),
            neg_weight=float(self.neg_weight * self.heatmap_weight),
            wh_weight=float(self.wh_weight),
            offset_weight=float(self.offset_weight),
        )
        steepest = self.heatmap_weight * max(self.pos_weight, self.neg_weight) * (1 + self.alpha)
        losses = fused_map_losses(
            op,
            [heatmap_logits.contiguous(), wh, offset],
            steepest=(steepest, self.wh_weight, self.offset_weight),
            instead="gaussian_focal_loss with from_logits and PyTorch's l1_loss, with the maps of centernet_targets",
            centers=cells.center,
            radii=cells.radius,
            labels=cells.labels,
            negative_weight=negative_weight,
            gt_wh=cells.wh,
            gt_offset=cells.offset,
            index=cells.flat_index,
            used=cells.last,
            count=average_over_ranks(cells.num_centers) if averaged else cells.num_centers,
        )
        return dict(zip(("loss_center_heatmap", "loss_wh", "loss_offset"), losses.unbind(), strict=True))

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


def _by_list(maps: list[Tensor], **arguments: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    heatmap_logits, wh, offset = maps
    return ops.centernet_losses(heatmap_logits, wh, offset, **arguments)
