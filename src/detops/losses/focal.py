"""CenterNet's focal loss over Gaussian heatmaps, as a function and as a module."""

from functools import partial

import torch
from torch import Tensor, nn

from detops import ops
from detops.arguments import FLOATS, INTEGERS, accumulate_dtype, require_device, require_shape, require_tensor
from detops.diagnostics.checked import is_checked
from detops.losses._fused import fused_loss, inverse
from detops.losses.reduction import Reduction, check_reduction, reduce_loss

EPS = 1e-12  # keeps log(probability) finite, as CornerNet's and MMDetection's losses do
PLAIN = 'gaussian_focal_loss(..., reduction="none")'  # has second derivatives


def gaussian_focal_loss(
    pred: Tensor,
    target: Tensor,
    alpha: float = 2.0,
    gamma: float = 4.0,
    pos_inds: Tensor | None = None,
    pos_labels: Tensor | None = None,
    *,
    pos_weight: float = 1.0,
    neg_weight: float = 1.0,
    weight: Tensor | None = None,
    negative_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Tensor | float | None = None,
    from_logits: bool = True,
) -> Tensor:
    """Compute the focal loss of heatmaps whose targets fall off from 1 around each centre.

    A cell whose target t is exactly 1 is a positive, all others are negatives. With the probability p:

        positive:  -pos_weight * (1 - p)^alpha * log(p)
        negative:  -neg_weight * (1 - t)^gamma * p^alpha * log(1 - p)

    From logits, with a sum or mean and without element weights, the loss and its gradient take one pass over
    memory (C++, Triton); it is exact where sigmoid-then-log overflows (float16 from logit 9) or is clamped.
    On probabilities both logarithms have 1e-12 added, as CornerNet and its descendants do.
    The one-pass form has no second derivative, and raises an error if one is needed; `reduction="none"` has it.

    With `pos_inds` and `pos_labels` the positives are the cells pred[pos_inds, pos_labels], whatever their target,
    and every cell is a negative too, if t < 1. The mean is then that of the positives plus that of all cells.

    Args:
        pred: Logits, or probabilities without `from_logits`; any shape, floating point; (N, C) with `pos_inds`.
        target: The same shape, 0 .. 1; not differentiated.
        alpha: Exponent that weighs down cells that are classified well already.
        gamma: Exponent that weighs down negatives near a centre.
        pos_inds: (M,) integers 0 .. N - 1, the rows of given positives.
        pos_labels: (M,) integers 0 .. C - 1, their columns.
        pos_weight: Factor of the positives.
        neg_weight: Factor of the negatives.
        weight: Factors of all cells, broadcast against them.
        negative_weight: Factors of the negatives, such as those of `CenterNetTargets` for ignored regions. Where it is
            0, the loss of a negative is 0, whatever is predicted there.
        reduction: "none", "mean" or "sum".
        avg_factor: Divisor of a mean in place of the number of cells (plus float32's epsilon): a number or
            a 0-d tensor, in CenterNet the number of objects. Not differentiated.
        from_logits: Whether `pred` holds logits; False for probabilities, as MMDetection's function takes them.

    Returns:
        0-d loss, or elements in the shape of `pred` with "none"; float32, or float64 for float64.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: Shapes or devices do not match, or `reduction` is unknown; in checked mode also a logit that
            is not finite.

    Example:
        >>> target = torch.tensor([[0.0, 0.5, 1.0]])
        >>> gaussian_focal_loss(torch.tensor([[-2.0, 0.0, 1.0]]), target, reduction="sum")
        tensor(0.0353)

    Reference:
        Law and Deng, "CornerNet", 2018, equation 1; arguments as in MMDetection's `gaussian_focal_loss`.
    """
    check_reduction(reduction, avg_factor)
    require_tensor("pred", pred, FLOATS, "a floating-point tensor")
    require_tensor("target", target, FLOATS, "a floating-point tensor")
    require_shape("target", target, tuple(pred.shape), "to match pred")
    require_device("target", target, pred, "pred")
    if is_checked():
        check_finite("pred", pred)
    target = target.detach()
    if pos_inds is not None or pos_labels is not None:
        positives = _given_positives(pred, pos_inds, pos_labels, alpha, pos_weight, from_logits)
        if weight is not None or reduction == "none":
            raise ValueError("pos_inds: expected no weight, and a sum or a mean")
        pos_weight = 0.0
    if from_logits and weight is None and negative_weight is None and reduction != "none":
        if (target.dtype != pred.dtype and target.dtype != torch.float32) or pred.dtype == torch.float64:
            target = target.to(accumulate_dtype(pred))
        op = partial(
            ops.gaussian_focal_loss,
            alpha=float(alpha),
            gamma=float(gamma),
            pos_weight=float(pos_weight),
            neg_weight=float(neg_weight),
        )
        loss = fused_loss(
            op,
            pred.contiguous(),
            target=target.contiguous(),
            scale=inverse(reduction, avg_factor, pred),
            steepest=max(pos_weight, neg_weight) * (1 + alpha),
            instead=PLAIN,
        )
    else:
        elements = _elements(pred, target, alpha, gamma, pos_weight, neg_weight, negative_weight, from_logits)
        loss = reduce_loss(elements, weight, reduction, avg_factor)
    if pos_inds is None:
        return loss
    return loss + reduce_loss(positives, None, reduction, avg_factor)


def _given_positives(
    pred: Tensor,
    pos_inds: Tensor | None,
    pos_labels: Tensor | None,
    alpha: float,
    pos_weight: float,
    from_logits: bool,
) -> Tensor:
    """Return the positive terms (M,) of the cells pred[pos_inds, pos_labels]."""
    if pos_inds is None or pos_labels is None:
        raise ValueError("pos_inds, pos_labels: expected both or neither")
    if pred.dim() != 2:
        raise ValueError(f"pred: expected shape (N, C) with pos_inds, got {tuple(pred.shape)}")
    for name, value in (("pos_inds", pos_inds), ("pos_labels", pos_labels)):
        require_tensor(name, value, INTEGERS, "integers")
        require_shape(name, value, (pos_inds.numel(),))
        require_device(name, value, pred, "pred")
    cells = pred[pos_inds.to(torch.int64), pos_labels.to(torch.int64)]
    return _elements(cells, torch.ones_like(cells), alpha, 0.0, pos_weight, 0.0, None, from_logits)


def _elements(
    pred: Tensor,
    target: Tensor,
    alpha: float,
    gamma: float,
    pos_weight: float,
    neg_weight: float,
    negative_weight: Tensor | None,
    from_logits: bool,
) -> Tensor:
    """Return the loss of each cell, as PyTorch expressions under autograd."""
    pred = pred.to(accumulate_dtype(pred))
    target = target.to(pred.dtype)
    positive = target == 1
    fall = neg_weight * (1 - target).pow(gamma)
    if negative_weight is not None:
        fall = fall * negative_weight
        pred = pred.where(positive | (negative_weight != 0), 0)  # not read where its loss is 0: it may be NaN
    scale = torch.where(positive, pos_weight, fall)
    if from_logits:
        # One term for both kinds of cells: a positive's is that of a negative with the opposite logit.
        y = torch.where(positive, -pred, pred)
        return -scale * y.sigmoid().pow(alpha) * nn.functional.logsigmoid(-y) + 0 * pred
    wrong = torch.where(positive, 1 - pred, pred)
    return -scale * wrong.pow(alpha) * torch.log(1 - wrong + EPS)


def check_finite(name: str, value: Tensor) -> None:
    """Raise for the first number that is not finite; reads values, so only in checked mode."""
    bad = (~value.isfinite()).nonzero()
    if len(bad):
        where = tuple(bad[0].tolist())
        raise ValueError(f"{name}: {where} has {value[where].item()}, expected finite numbers")


class GaussianFocalLoss(nn.Module):
    """`gaussian_focal_loss` as a module, multiplied by `loss_weight`; by default from logits.

    Args:
        alpha: Exponent that weighs down cells that are classified well already.
        gamma: Exponent that weighs down negatives near a centre.
        reduction: "none", "mean" or "sum".
        loss_weight: Factor of the result.
        pos_weight: Factor of the positives.
        neg_weight: Factor of the negatives.
        from_logits: Whether the predictions are logits; MMDetection's loss takes probabilities.

    Raises:
        ValueError: `reduction` is unknown.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        gamma: float = 4.0,
        reduction: Reduction = "mean",
        loss_weight: float = 1.0,
        pos_weight: float = 1.0,
        neg_weight: float = 1.0,
        from_logits: bool = True,
    ) -> None:
        super().__init__()
        check_reduction(reduction, None)
        self.alpha, self.gamma = alpha, gamma
        self.reduction: Reduction = reduction
        self.loss_weight = loss_weight
        self.pos_weight, self.neg_weight = pos_weight, neg_weight
        self.from_logits = from_logits

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
        negative_weight: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see `gaussian_focal_loss` for shapes."""
        loss = gaussian_focal_loss(
            pred,
            target,
            self.alpha,
            self.gamma,
            pos_weight=self.pos_weight,
            neg_weight=self.neg_weight,
            weight=weight,
            negative_weight=negative_weight,
            reduction=self.reduction,
            avg_factor=avg_factor,
            from_logits=self.from_logits,
        )
        return loss * self.loss_weight
