"""IoU losses of pairs of boxes, as a function and as a module."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from detops.arguments import FLOATS, INTEGERS, accumulate_dtype, require_device, require_shape, require_tensor
from detops.losses.reduction import Reduction, check_reduction, reduce_loss

Kind = Literal["iou", "giou", "diou", "ciou", "iou_squared"]
BoxFormat = Literal["xyxy", "cxcywh"]
KINDS = ("iou", "giou", "diou", "ciou", "iou_squared")


def box_iou_loss(
    pred: Tensor,
    target: Tensor,
    kind: Kind = "iou",
    *,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Tensor | float | None = None,
    box_format: BoxFormat = "xyxy",
    eps: float = 1e-7,
) -> Tensor:
    """Compute the IoU loss of predicted boxes and their targets, pair by pair.

        iou          1 - IoU
        iou_squared  1 - IoU^2 (YOLOX)
        giou         1 - IoU + (enclosing box - union) / enclosing box
        diou         1 - IoU + (distance of the centres / diagonal of the enclosing box)^2
        ciou         diou + alpha * v, v = 4 / pi^2 (atan(w*/h*) - atan(w/h))^2, alpha = v / (1 - IoU + v)

    alpha is a constant to the gradient, as in its authors' code and torchvision; MMDetection sets it to 0 where the IoU
    is at most 0.5. A box with a negative side counts as an empty one at its centre. Value and gradient are finite for
    empty, equal and distant boxes too, as long as the squares of their lengths are finite.

    Args:
        pred: (..., 4) boxes, floating point, in any unit.
        target: Boxes in the same shape and unit; not differentiated.
        kind: Name of the loss, one of those above.
        weight: (...) factors of the pairs.
        reduction: "none", "mean" or "sum".
        avg_factor: Divisor of a mean in place of the number of pairs (plus float32's epsilon): a number or a
            0-d tensor.
        box_format: "xyxy", or "cxcywh": centre, width and height.
        eps: A quotient is 0 if its divisor, an area or the square of a length, is at most this.

    Returns:
        0-d loss, or (...) elements with "none"; float32, or float64 for float64.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or a name is unknown.

    Example:
        >>> pred, target = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 0, 6, 4]])
        >>> box_iou_loss(pred, target), box_iou_loss(pred, target, "giou")
        (tensor(0.6667), tensor(0.6667))

    Reference:
        Rezatofighi et al., "Generalized Intersection over Union", 2019; Zheng et al., "Distance-IoU Loss", 2020.
    """
    check_reduction(reduction, avg_factor)
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if box_format not in ("xyxy", "cxcywh"):
        raise ValueError(f"box_format: expected 'xyxy' or 'cxcywh', got {box_format!r}")
    require_tensor("pred", pred, FLOATS, "a floating-point tensor")
    require_tensor("target", target, FLOATS + INTEGERS, "a tensor of numbers")
    if pred.dim() < 1 or pred.shape[-1] != 4:
        raise ValueError(f"pred: expected shape (..., 4), got {tuple(pred.shape)}")
    require_shape("target", target, tuple(pred.shape), "to match pred")
    require_device("target", target, pred, "pred")
    wide = accumulate_dtype(pred)
    pred, target = pred.to(wide), target.detach().to(wide)
    moved = pred - target
    if box_format == "xyxy":
        size, other_size = pred[..., 2:] - pred[..., :2], target[..., 2:] - target[..., :2]
        apart = (moved[..., :2] + moved[..., 2:]) / 2
    else:
        size, other_size, apart = pred[..., 2:], target[..., 2:], moved[..., :2]
    return reduce_loss(_elements(size, other_size, apart, kind, eps), weight, reduction, avg_factor)


def _elements(size: Tensor, other_size: Tensor, apart: Tensor, kind: str, eps: float) -> Tensor:
    """Return the losses (...) of boxes from their sizes (..., 2) and the distance of their centres (..., 2).

    No corner or centre is formed: rounded far from the origin, it would change the IoU of small boxes by a thousandth.
    """
    size, other_size = size.clamp(min=0), other_size.clamp(min=0)
    reach, distance = (size + other_size) / 2, apart.abs()
    sides = torch.minimum(reach - distance, torch.minimum(size, other_size)).clamp(min=0)
    inter = _area(sides)
    union = _area(size) + _area(other_size) - inter
    iou = _ratio(inter, union, eps)
    if kind == "iou_squared":
        return 1 - iou * iou
    if kind == "iou":
        return 1 - iou
    around = torch.maximum(reach + distance, torch.maximum(size, other_size))
    if kind == "giou":
        area = _area(around)
        return 1 - iou + _ratio(area - union, area, eps)
    loss = 1 - iou + _ratio(apart.square().sum(-1), around.square().sum(-1), eps)
    if kind == "diou":
        return loss
    aspect = 4 / math.pi**2 * (_angle(other_size, eps) - _angle(size, eps)).square()
    alpha = _ratio(aspect, 1 - iou + aspect, eps).detach()
    return loss + alpha * aspect


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]


def _ratio(part: Tensor, whole: Tensor, eps: float) -> Tensor:
    """Divide part by whole; where that is at most eps, 0 with a gradient of 0."""
    divides = whole > eps
    return (part / whole.where(divides, 1)).where(divides, 0)


def _angle(size: Tensor, eps: float) -> Tensor:
    """Return the angle of a box's diagonal; for an empty box, that of a square."""
    exists = size.square().sum(-1, keepdim=True) > eps
    size = size.where(exists, 1)
    return torch.atan2(size[..., 0], size[..., 1])


class BoxIoULoss(nn.Module):
    """`box_iou_loss` as a module, multiplied by `loss_weight`.

    Args:
        kind: "iou", "giou", "diou", "ciou" or "iou_squared".
        reduction: "none", "mean" or "sum".
        loss_weight: Factor of the result.
        box_format: "xyxy" or "cxcywh".
        eps: A quotient is 0 if its divisor, an area or the square of a length, is at most this.

    Raises:
        ValueError: A name is unknown.
    """

    def __init__(
        self,
        kind: Kind = "iou",
        reduction: Reduction = "mean",
        loss_weight: float = 1.0,
        box_format: BoxFormat = "xyxy",
        eps: float = 1e-7,
    ) -> None:
        super().__init__()
        check_reduction(reduction, None)
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        self.kind: Kind = kind
        self.reduction: Reduction = reduction
        self.loss_weight, self.eps = loss_weight, eps
        self.box_format: BoxFormat = box_format

    def forward(
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: Tensor | float | None = None
    ) -> Tensor:
        """Compute the loss; see `box_iou_loss` for shapes."""
        return self.loss_weight * box_iou_loss(
            pred,
            target,
            self.kind,
            weight=weight,
            reduction=self.reduction,
            avg_factor=avg_factor,
            box_format=self.box_format,
            eps=self.eps,
        )
