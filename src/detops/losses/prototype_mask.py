"""The mask loss of YOLO-seg and YOLACT: products of coefficients and prototypes, within boxes."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from detops import ops
from detops.arguments import FLOATS, INTEGERS, require_device, require_shape, require_tensor
from detops.losses._fused import first_order_only
from detops.losses._mask_points import Masks, labels_at
from detops.losses.reduction import average_over_ranks

Kind = Literal["yolo", "yolact"]
KINDS = get_args(Kind)  # the op's numbers are their places
INSTEAD = "the same of torch.nn.functional's operations"


def prototype_mask_loss(
    coefficients: Tensor,
    prototypes: Tensor,
    masks: Masks,
    box_index: Tensor,
    boxes: Tensor,
    *,
    image_size: tuple[int, int],
    kind: Kind = "yolo",
    max_positives: int | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Compare masks of coefficients over prototypes with true masks, in boxes.

    With z the product of a positive's coefficients and the prototypes, y the label of a cell, and the box in cells:

        yolo    sum over the box's cells, x1 <= c < x2, of BCE(z, y), over the box's area in cells
        yolact  the same with one more cell on each side, and 100 for each true cell beyond

    summed over positives and divided by their number, at least 1 and averaged over ranks under `torch.distributed`.
    A cell's label is whether the mask, interpolated at its centre, is above 1/2. Masks are computed within boxes alone
    and never stored, and gradients in the same pass. Computed in float32.

    Args:
        coefficients: (B, A, K) floating point, of all points, or of those that may be positive.
        prototypes: (B, K, h, w) floating point.
        masks: True masks of the whole input, as `point_mask_loss` takes them.
        box_index: (B, A) integers, the box of each point; negative for none, as `Assignment` has it.
        boxes: (B, N, 4) xyxy in pixels of the input.
        image_size: Height and width of the network's input in pixels.
        kind: "yolo" or "yolact".
        max_positives: How many positives of an image count, the first ones; None for all.
        avg_factor: Divisor of the sum; None for the number of positives.

    Returns:
        0-d float32, once differentiable by coefficients and prototypes; 0 without a positive.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: Shapes or devices do not match, or the kind is unknown.

    Example:
        >>> coefficients, prototypes = torch.zeros(1, 3, 4), torch.randn(1, 4, 8, 8)
        >>> masks, boxes = torch.ones(1, 1, 64, 64, dtype=torch.bool), torch.tensor([[[8.0, 8, 40, 40]]])
        >>> index = torch.tensor([[-1, 0, -1]])
        >>> prototype_mask_loss(coefficients, prototypes, masks, index, boxes, image_size=(64, 64))
        tensor(0.6931)

    Reference:
        Bolya et al., "YOLACT: Real-time Instance Segmentation", 2019.
    """
    _check(coefficients, prototypes, box_index, boxes, kind)
    height, width = prototypes.shape[2:]
    scale = torch.tensor([width / image_size[1], height / image_size[0]] * 2, device=boxes.device)
    cells = boxes.detach().to(torch.float32) * scale
    y, x = (torch.arange(count, device=boxes.device) + 0.5 for count in (height, width))
    centers = torch.stack([(x / width).expand(height, -1), (y / height)[:, None].expand(-1, width)], -1).flatten(0, 1)
    points = centers.expand(*boxes.shape[:2], -1, -1)
    label = labels_at(masks, points, nearest=False, border=True) > 0.5  # (B, N, h w)
    positive = (box_index >= 0) & (box_index < boxes.shape[1])
    if avg_factor is None:
        avg_factor = average_over_ranks(positive.sum())
    if max_positives is not None:
        if max_positives < 0:
            raise ValueError(f"max_positives: expected at least 0, got {max_positives}")
        box_index = box_index.where(positive & (positive.cumsum(1) <= max_positives), -1)
    with_gradient = torch.is_grad_enabled() and (coefficients.requires_grad or prototypes.requires_grad)
    labels = label.unflatten(2, (height, width))
    total: Tensor = _Loss.apply(KINDS.index(kind), with_gradient, coefficients, prototypes, labels, box_index, cells)[0]
    return total / avg_factor


def _check(coefficients: Tensor, prototypes: Tensor, box_index: Tensor, boxes: Tensor, kind: str) -> None:
    if kind not in ("yolo", "yolact"):
        raise ValueError(f'kind: expected "yolo" or "yolact", got {kind!r}')
    require_tensor("coefficients", coefficients, FLOATS, "a floating-point tensor")
    require_tensor("prototypes", prototypes, FLOATS, "a floating-point tensor")
    require_tensor("box_index", box_index, INTEGERS, "integers")
    require_tensor("boxes", boxes, FLOATS, "a floating-point tensor")
    if coefficients.dim() != 3:
        raise ValueError(f"coefficients: expected shape (B, A, K), got {tuple(coefficients.shape)}")
    batch, count, depth = coefficients.shape
    if prototypes.dim() != 4 or prototypes.shape[:2] != (batch, depth):
        raise ValueError(f"prototypes: expected shape ({batch}, {depth}, h, w), got {tuple(prototypes.shape)}")
    require_shape("box_index", box_index, (batch, count), "to match coefficients")
    if boxes.dim() != 3 or boxes.shape[0] != batch or boxes.shape[2] != 4:
        raise ValueError(f"boxes: expected shape ({batch}, N, 4), got {tuple(boxes.shape)}")
    for name, value in (("prototypes", prototypes), ("box_index", box_index), ("boxes", boxes)):
        require_device(name, value, coefficients, "coefficients")


def _run(kind: int, tensors: Sequence[Tensor], with_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    coefficients, prototypes, labels, index, cells = tensors
    return ops.prototype_losses(
        coefficients=coefficients,
        prototypes=prototypes,
        labels=labels,
        index=index,
        cells=cells,
        scale=None,
        kind=kind,
        with_gradient=with_gradient,
    )


class _Loss(torch.autograd.Function):
    """Forward computes the gradients; backward scales them in place and hands them on."""

    @staticmethod
    def forward(kind: int, with_gradient: bool, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _run(kind, tensors, with_gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kind, _, *tensors = inputs
        ctx.gradients = output[1:]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 7
        # The gradients leave with the first pass; a second one over a retained graph makes them again.
        gradients, ctx.gradients = ctx.gradients, None
        tensors = ctx.saved_tensors
        with torch.no_grad():
            if gradients is None:
                gradients = _run(ctx.kind, tensors, True)[1:]
            ops.scale_gradient_(gradients=[*gradients], factor=upstream)
            made = [one.to(source.dtype) for one, source in zip(gradients, tensors[:2], strict=True)]
        return (None, None, *first_order_only(made, (upstream, *tensors[:2]), INSTEAD), None, None, None)
