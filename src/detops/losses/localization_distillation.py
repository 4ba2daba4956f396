"""The distillation of a teacher's box distributions, as in LD."""

import torch.nn.functional as F
from torch import Tensor, nn

from detops.arguments import FLOATS, accumulate_dtype, require_device, require_shape, require_tensor
from detops.losses.reduction import Reduction, check_reduction, reduce_loss


def localization_distillation_loss(
    pred: Tensor,
    soft_target: Tensor,
    temperature: float = 10.0,
    *,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Compute the KL divergence of a student's distributions from a teacher's, both softened by a temperature.

        temperature^2 * mean over bins of p_t * (log p_t - log p_s),  p = softmax(logits / temperature)

    It is the mean over the bins, not their sum, as in the authors' code, for which the published weights were chosen.

    Args:
        pred: (..., reg_max + 1) logits of the student, floating point.
        soft_target: Logits of the teacher, in the same shape; not differentiated.
        temperature: Softmax temperature, at least 1.
        weight: (...) factors.
        reduction: "none", "mean" or "sum".
        avg_factor: Divisor of a mean in place of the number of distributions (plus float32's epsilon): a number
            or a 0-d tensor.

    Returns:
        0-d loss, or (...) elements with "none"; float32, or float64 for float64.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: Shapes or devices do not match, or a number is out of range.

    Example:
        >>> import torch
        >>> logits = torch.arange(17.0) / 4
        >>> localization_distillation_loss(logits, logits.flip(0))
        tensor(0.1759)

    Reference:
        Zheng et al., "Localization Distillation for Dense Object Detection", 2022.
    """
    check_reduction(reduction, avg_factor)
    require_tensor("pred", pred, FLOATS, "a floating-point tensor")
    require_tensor("soft_target", soft_target, FLOATS, "a floating-point tensor")
    if pred.dim() < 1 or pred.shape[-1] < 1:
        raise ValueError(f"pred: expected shape (..., reg_max + 1), got {tuple(pred.shape)}")
    require_shape("soft_target", soft_target, tuple(pred.shape), "to match pred")
    require_device("soft_target", soft_target, pred, "pred")
    if not temperature >= 1:
        raise ValueError(f"temperature: expected at least 1, got {temperature!r}")
    wide = accumulate_dtype(pred)
    log_s = (pred.to(wide) / temperature).log_softmax(-1)
    log_t = (soft_target.detach().to(wide) / temperature).log_softmax(-1)
    divergence = F.kl_div(log_s, log_t, reduction="none", log_target=True).mean(-1)
    return reduce_loss(temperature**2 * divergence, weight, reduction, avg_factor)


class LocalizationDistillationLoss(nn.Module):
    """`localization_distillation_loss` as a module, multiplied by `loss_weight`.

    Args:
        reduction: "none", "mean" or "sum".
        loss_weight: Factor of the result.
        temperature: Softmax temperature, at least 1.

    Raises:
        ValueError: The temperature is below 1, or `reduction` is unknown.
    """

    def __init__(self, reduction: Reduction = "mean", loss_weight: float = 0.25, temperature: float = 10.0) -> None:
        super().__init__()
        check_reduction(reduction, None)
        if not temperature >= 1:
            raise ValueError(f"temperature: expected at least 1, got {temperature!r}")
        self.reduction: Reduction = reduction
        self.loss_weight, self.temperature = loss_weight, temperature

    def forward(
        self, pred: Tensor, soft_target: Tensor, weight: Tensor | None = None, avg_factor: Tensor | float | None = None
    ) -> Tensor:
        """Compute the loss; see `localization_distillation_loss` for shapes."""
        return self.loss_weight * localization_distillation_loss(
            pred, soft_target, self.temperature, weight=weight, reduction=self.reduction, avg_factor=avg_factor
        )
