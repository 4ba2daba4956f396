"""The losses of the DETR family at given pairs of queries and boxes, with gradients made in the same pass."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.losses._fused import first_order_only, split_scale

SetKind = Literal["softmax", "focal", "varifocal", "mal", "ia_bce", "varifocal_live", "position"]
SET_KINDS: tuple[SetKind, ...] = ("softmax", "focal", "varifocal", "mal", "ia_bce", "varifocal_live", "position")
INSTEAD = "the same of torch.nn.functional's operations"


class SetClassLoss(NamedTuple):
    """A class loss of the family, and its parameters; `detops.reference.set_loss` has the formulas.

    Attributes:
        kind: Its name; the places in `SET_KINDS` are the op's numbers.
        alpha: Factor of background (varifocal, mal), share of the positives (focal), or exponent (ia_bce).
        gamma: Exponent.
        no_object: Weight of "no object" (softmax).
    """

    kind: SetKind
    alpha: float = 0.25
    gamma: float = 2.0
    no_object: float = 0.1


class Pairs(NamedTuple):
    """Which box each query is trained on.

    Attributes:
        boxes: (B, N, 4) cxcywh in shares of the image.
        labels: (B, N) integers.
        index: (S, B, Q) int64; -1 for none, lower for a query that takes no part.
        box_index: The same for the box losses; None for `index`.
        quality: (S, B, Q), in place of the IoU of the pairs; None for that.
    """

    boxes: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]
    box_index: Tensor | None = None
    quality: Tensor | None = None


def set_losses(
    class_logits: Tensor,
    pred_boxes: Tensor,
    pairs: Pairs,
    loss: SetClassLoss,
    scale: Tensor,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Return (S, 3) class, L1 and GIoU losses of each set of outputs, once differentiable.

    Args:
        class_logits: (S, B, Q, C).
        pred_boxes: (S, B, Q, 4) cxcywh.
        pairs: What each query is trained on; constants.
        loss: The class loss.
        scale: (S, 2) factors of the class loss and of both box losses.
        weights: Further factors of the three.
    """
    if class_logits.stride(3) != 1 and class_logits.shape[3] > 1:
        class_logits = class_logits.contiguous()
    kept, rest = split_scale(class_logits, scale[:, 0])
    if rest is not None and kept is not None:
        scale = torch.cat([kept[:, None], scale[:, 1:]], 1)
    with_gradient = torch.is_grad_enabled() and (class_logits.requires_grad or pred_boxes.requires_grad)
    call = _Call(loss, list(map(float, weights)))
    losses: Tensor = _Losses.apply(call, with_gradient, class_logits, pred_boxes, *pairs, scale)[0]
    return losses if rest is None else torch.cat([losses[:, :1] * rest, losses[:, 1:]], 1)


class _Call(NamedTuple):
    """What the op is called with but tensors."""

    loss: SetClassLoss
    weights: list[float]


def _run(call: _Call, tensors: Sequence[Any], with_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    class_logits, pred_boxes, boxes, labels, index, box_index, quality, scale = tensors
    loss = call.loss
    return ops.set_loss(
        class_logits=class_logits,
        pred_boxes=pred_boxes,
        gt_boxes=boxes,
        gt_labels=labels,
        index=index,
        box_index=box_index,
        quality=quality,
        scale=scale,
        weights=call.weights,
        kind=SET_KINDS.index(loss.kind),
        alpha=float(loss.alpha),
        gamma=float(loss.gamma),
        factor=float(loss.no_object),
        with_gradient=with_gradient,
    )


class _Losses(torch.autograd.Function):
    """Forward makes the gradients; backward scales and hands them on."""

    @staticmethod
    def forward(call: _Call, with_gradient: bool, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return _run(call, tensors, with_gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, _, *tensors = inputs
        ctx.gradients = output[1:]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * len(ctx.needs_input_grad)
        tensors = ctx.saved_tensors
        # The gradients leave with the first pass; a second one over a retained graph makes them again.
        gradients, ctx.gradients = ctx.gradients, None
        with torch.no_grad():
            of_logits, of_boxes = _run(ctx.call, tensors, True)[1:] if gradients is None else gradients
            if of_logits.is_contiguous():
                ops.scale_gradient_(gradients=[of_logits], factor=upstream[:, 0].contiguous())
            else:
                of_logits.mul_(upstream[:, 0, None, None, None])
            by_l1, by_giou = upstream[:, 1:, None, None, None].to(of_boxes.dtype).unbind(1)
            of_boxes = (of_boxes[0] * by_l1).addcmul_(of_boxes[1], by_giou)
        made = first_order_only((of_logits, of_boxes), (upstream, *tensors), INSTEAD)
        return (None, None, *made, *[None] * 6)
