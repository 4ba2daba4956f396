"""Quality focal loss, GFL's class loss, as a function and as a module."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detops.arguments import FLOATS, INTEGERS, accumulate_dtype, require_device, require_shape, require_tensor
from detops.losses.reduction import Reduction, check_reduction, reduce_loss


def quality_focal_loss(
    pred: Tensor,
    labels: Tensor,
    scores: Tensor,
    beta: float = 2.0,
    *,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Compute a focal loss whose target for the true class is the IoU of the predicted box.

    With the logit x of a class, p = sigmoid(x), and the target y, which is the score at the label and 0 elsewhere:

        |y - p|^beta * BCE(p, y)

    summed over classes. It is computed from logits, so it is exact where p rounds to 0 or 1.

    Args:
        pred: (..., C) logits, floating point.
        labels: (...) integers; one that is no class (negative, or C and above) is background.
        scores: (...) targets at the labels, 0 .. 1; not differentiated.
        beta: Exponent that weighs down probabilities close to their target.
        weight: (...) factors of the rows.
        reduction: "none", "mean" or "sum".
        avg_factor: Divisor of a mean in place of the number of rows (plus float32's epsilon): a number or a
            0-d tensor.

    Returns:
        0-d loss, or (...) elements with "none"; float32, or float64 for float64.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or `reduction` is unknown.

    Example:
        >>> quality_focal_loss(torch.tensor([[0.0, 1, -1]]), torch.tensor([1]), torch.tensor([0.8]))
        tensor(0.1984)

    Reference:
        Li et al., "Generalized Focal Loss", 2020, equation 5.
    """
    check_reduction(reduction, avg_factor)
    require_tensor("pred", pred, FLOATS, "a floating-point tensor")
    if pred.dim() < 1:
        raise ValueError(f"pred: expected shape (..., C), got {tuple(pred.shape)}")
    require_tensor("labels", labels, INTEGERS, "integers")
    require_tensor("scores", scores, FLOATS, "a floating-point tensor")
    for name, value in (("labels", labels), ("scores", scores)):
        require_shape(name, value, tuple(pred.shape[:-1]), "to match pred")
        require_device(name, value, pred, "pred")
    x = pred.to(accumulate_dtype(pred))
    known = labels[..., None] == torch.arange(x.shape[-1], device=x.device)
    target = torch.where(known, scores.detach().to(x.dtype)[..., None], 0)
    loss = (target - x.sigmoid()).abs().pow(beta) * F.binary_cross_entropy_with_logits(x, target, reduction="none")
    return reduce_loss(loss.sum(-1), weight, reduction, avg_factor)


class QualityFocalLoss(nn.Module):
    """`quality_focal_loss` as a module, multiplied by `loss_weight`.

    Args:
        beta: Exponent that weighs down probabilities close to their target.
        reduction: "none", "mean" or "sum".
        loss_weight: Factor of the result.

    Raises:
        ValueError: `reduction` is unknown.
    """

    def __init__(self, beta: float = 2.0, reduction: Reduction = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        check_reduction(reduction, None)
        self.beta, self.loss_weight = beta, loss_weight
        self.reduction: Reduction = reduction

    def forward(
        self,
        pred: Tensor,
        labels: Tensor,
        scores: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """Compute the loss; see `quality_focal_loss` for shapes."""
        return self.loss_weight * quality_focal_loss(
            pred, labels, scores, self.beta, weight=weight, reduction=self.reduction, avg_factor=avg_factor
        )
