"""Distribution focal loss, GFL's loss of the distances to a box's sides, as a function and as a module."""

import torch
from torch import Tensor, nn

from detops.arguments import FLOATS, accumulate_dtype, require_device, require_shape, require_tensor
from detops.diagnostics.checked import is_checked
from detops.losses.reduction import Reduction, check_reduction, reduce_loss


def distribution_focal_loss(
    pred: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Compute the cross entropy towards the two bins beside the target, weighted by their nearness to it.

        -((l + 1 - y) * log p_l + (y - l) * log p_(l+1)),  l = floor(y)

    Args:
        pred: (..., reg_max + 1) logits, floating point.
        target: (...) distances in bins, 0 .. reg_max, both ends included; not differentiated. Distances beyond are
            clamped to this range; `detops.checked()` names them.
        weight: (...) factors.
        reduction: "none", "mean" or "sum".
        avg_factor: Divisor of a mean in place of the number of distances (plus float32's epsilon): a number or
            a 0-d tensor.

    Returns:
        0-d loss, or (...) elements with "none"; float32, or float64 for float64.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or `reduction` is unknown.

    Example:
        >>> distribution_focal_loss(torch.arange(17.0) / 4, torch.tensor(3.25))
        tensor(4.6818)

    Reference:
        Li et al., "Generalized Focal Loss", 2020, equation 6.
    """
    check_reduction(reduction, avg_factor)
    require_tensor("pred", pred, FLOATS, "a floating-point tensor")
    require_tensor("target", target, FLOATS, "a floating-point tensor")
    if pred.dim() < 1 or pred.shape[-1] < 2:
        raise ValueError(f"pred: expected shape (..., reg_max + 1) of at least 2 bins, got {tuple(pred.shape)}")
    require_shape("target", target, tuple(pred.shape[:-1]), "to match pred")
    require_device("target", target, pred, "pred")
    last = pred.shape[-1] - 1
    x = pred.to(accumulate_dtype(pred))
    y = target.detach().to(x.dtype)
    if is_checked():
        wrong = (~((y >= 0) & (y <= last))).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            raise ValueError(f"target: expected 0 .. {last}, got {y[place].item():g} at {place}")
    y = y.nan_to_num(0.0).clamp(0, last)
    low = y.floor().clamp(max=last - 1)
    index = low.to(torch.int64)[..., None]
    log_p = x.log_softmax(-1)
    below, above = log_p.gather(-1, index)[..., 0], log_p.gather(-1, index + 1)[..., 0]
    return reduce_loss(-((low + 1 - y) * below + (y - low) * above), weight, reduction, avg_factor)


class DistributionFocalLoss(nn.Module):
    """`distribution_focal_loss` as a module, multiplied by `loss_weight`.

    Args:
        reduction: "none", "mean" or "sum".
        loss_weight: Factor of the result; 0.25 in GFL.

    Raises:
        ValueError: `reduction` is unknown.
    """

    def __init__(self, reduction: Reduction = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        check_reduction(reduction, None)
        self.reduction: Reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: Tensor | float | None = None
    ) -> Tensor:
        """Compute the loss; see `distribution_focal_loss` for shapes."""
        return self.loss_weight * distribution_focal_loss(
            pred, target, weight=weight, reduction=self.reduction, avg_factor=avg_factor
        )
