"""CenterNet's focal loss straight from boxes, without a heatmap of targets."""

from functools import partial

from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, accumulate_dtype, require_device, require_shape, require_tensor
from detops.diagnostics.checked import is_checked
from detops.geometry.gaussians import as_gaussians, check_factor
from detops.losses._fused import fused_loss, inverse
from detops.losses.focal import PLAIN, check_finite
from detops.losses.reduction import Reduction, check_reduction
from detops.ragged.padded import Batch


def gaussian_focal_loss_from_boxes(
    logits: Tensor,
    centers: Batch,
    radii: Batch,
    labels: Batch,
    alpha: float = 2.0,
    gamma: float = 4.0,
    *,
    diameter_to_sigma_factor: float = 6.0,
    pos_weight: float = 1.0,
    neg_weight: float = 1.0,
    negative_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Compute `gaussian_focal_loss` for the heatmap that `draw_heatmap_batched` would draw, without storing it.

    Loss and gradient are those of these two calls with a float32 heatmap. Nearly all cells have target 0, and only the
    plain negative term; targets are computed only under the boxes. The kernels (C++, Triton) read the logits once,
    write the gradient once, and need no other memory. On devices without a kernel the portable form stores the heatmap.

    Args:
        logits: (B, C, H, W), floating point.
        centers: `RaggedBatch` (B, N, 2), or a list of B tensors (n, 2): x and y in cells, integers or floats. A
            tensor (B, N, 2) is a batch without padding.
        radii: (B, N) in cells in the same forms, or (B, N, 2) for a radius along x and one along y.
        labels: (B, N) integers in the same forms, 0 .. C - 1. A box with another label is skipped.
        alpha: Exponent that weighs down cells that are classified well already.
        gamma: Exponent that weighs down negatives near a centre.
        diameter_to_sigma_factor: Diameter (2 radius + 1) of a Gaussian over its sigma.
        pos_weight: Factor of the positives.
        neg_weight: Factor of the negatives.
        negative_weight: (B, H, W) or (B, 1, H, W), factors of the negatives of a cell in all classes, as
            `CenterNetTargets` has them for ignored regions. Where it is 0, the loss of a negative is 0, whatever its
            logit.
        reduction: "mean" or "sum".
        avg_factor: Divisor of a mean in place of the number of cells (plus float32's epsilon): a number or
            a 0-d tensor, in CenterNet the number of objects. Not differentiated.

    Returns:
        0-d loss; float32, or float64 for float64.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a factor is out of range; in checked mode also a box that
            would be skipped, or a logit that is not finite.

    Example:
        >>> import torch
        >>> logits = torch.full((1, 2, 8, 8), -2.0)
        >>> centers, radii, labels = torch.tensor([[[3, 3]]]), torch.tensor([[2]]), torch.tensor([[1]])
        >>> gaussian_focal_loss_from_boxes(logits, centers, radii, labels, avg_factor=1)
        tensor(1.8646)

    Reference:
        Law and Deng, "CornerNet", 2018, equation 1; Zhou et al., "Objects as Points", 2019.
    """
    check_reduction(reduction, avg_factor)
    if reduction == "none":
        raise ValueError('reduction: expected "mean" or "sum", as the loss of each cell is not stored, got "none"')
    require_tensor("logits", logits, FLOATS, "a floating-point tensor")
    if logits.dim() != 4:
        raise ValueError(f"logits: expected shape (B, C, H, W), got {tuple(logits.shape)}")
    batch, _, height, width = logits.shape
    if negative_weight is not None:
        require_tensor("negative_weight", negative_weight, FLOATS, "a floating-point tensor")
        require_shape("negative_weight", negative_weight, (batch, *(1,) * (negative_weight.dim() == 4), height, width))
        require_device("negative_weight", negative_weight, logits, "logits")
        wide = accumulate_dtype(logits)
        negative_weight = negative_weight.detach().to(wide).reshape(batch, height, width).contiguous()
    if is_checked():
        check_finite("logits", logits if negative_weight is None else logits.where(negative_weight[:, None] != 0, 0))
    gaussians = as_gaussians(centers, radii, labels, logits, "logits")
    op = partial(
        ops.gaussian_focal_loss_from_boxes,
        diameter_to_sigma_factor=check_factor(diameter_to_sigma_factor),
        alpha=float(alpha),
        gamma=float(gamma),
        pos_weight=float(pos_weight),
        neg_weight=float(neg_weight),
    )
    return fused_loss(
        op,
        logits.contiguous(),
        centers=gaussians.centers,
        radii=gaussians.radii,
        labels=gaussians.labels,
        sample_sizes=gaussians.sample_sizes,
        negative_weight=negative_weight,
        scale=inverse(reduction, avg_factor, logits),
        steepest=max(pos_weight, neg_weight) * (1 + alpha),
        instead=PLAIN,
    )
