"""The losses of the DETR family at given pairs of queries and boxes, with gradients made in the same pass."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.arguments import of_one_dtype
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
        index: int64, of the parts (sets, B, queries) one after the other; -1 for none, lower for a query that takes no
            part.
        box_index: The same for the box losses; None for `index`.
        quality: The same, in place of the IoU of the pairs; None for that.
    """

    boxes: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]
    box_index: Tensor | None = None
    quality: Tensor | None = None


class Outputs(NamedTuple):
    """Sets of outputs in tensors, and which of them are wanted.

    Attributes:
        class_logits: Tensors (S, B, Q, C).
        pred_boxes: As many tensors (S, B, Q, 4), cxcywh.
        parts: Five numbers of each part: its tensor, first set, number of sets, first query, number of queries.
    """

    class_logits: Sequence[Tensor]
    pred_boxes: Sequence[Tensor]
    parts: list[int]

    @classmethod
    def whole(cls, pairs: Sequence[tuple[Tensor, Tensor]]) -> "Outputs":
        """Every tensor as one part."""
        parts = [n for i, (x, _) in enumerate(pairs) for n in (i, 0, x.shape[0], 0, x.shape[2])]
        return cls([x for x, _ in pairs], [boxes for _, boxes in pairs], parts)


def set_losses(
    outputs: Outputs,
    pairs: Pairs,
    loss: SetClassLoss,
    scale: Tensor,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    *,
    clamp: bool = False,
) -> Tensor:
    """Return (R, 3) class, L1 and GIoU losses of the sets of all parts, once differentiable.

    Args:
        outputs: What is compared with the boxes.
        pairs: What each query is trained on; constants.
        loss: The class loss.
        scale: (R, 2) factors of the class loss and of both box losses.
        weights: Further factors of the three.
        clamp: Whether predicted numbers are limited to 0 .. 1, beyond which they have no gradient.
    """
    logits = [
        one.contiguous() if one.stride(3) != 1 and one.shape[3] > 1 else one
        for one in of_one_dtype(outputs.class_logits)
    ]
    boxes = of_one_dtype(outputs.pred_boxes)
    kept, rest = split_scale(logits[0], scale[:, 0])
    if rest is not None and kept is not None:
        scale = torch.cat([kept[:, None], scale[:, 1:]], 1)
    with_gradient = torch.is_grad_enabled() and any(one.requires_grad for one in (*logits, *boxes))
    call = _Call(loss, list(map(float, weights)), outputs.parts, len(logits), clamp)
    losses: Tensor = _Losses.apply(call, with_gradient, *logits, *boxes, *pairs, scale)[0]
    return losses if rest is None else torch.cat([losses[:, :1] * rest, losses[:, 1:]], 1)


class _Call(NamedTuple):
    """What the op is called with but tensors, and how many tensors of outputs there are."""

    loss: SetClassLoss
    weights: list[float]
    parts: list[int]
    tensors: int
    clamp: bool

    def run(self, tensors: Sequence[Any], with_gradient: bool) -> tuple[Tensor, list[Tensor], Tensor]:
        """Call the op."""
        boxes, labels, index, box_index, quality, scale = tensors[2 * self.tensors :]
        return ops.set_loss(
            class_logits=list(tensors[: self.tensors]),
            pred_boxes=list(tensors[self.tensors : 2 * self.tensors]),
            parts=self.parts,
            gt_boxes=boxes,
            gt_labels=labels,
            index=index,
            box_index=box_index,
            quality=quality,
            scale=scale,
            weights=self.weights,
            kind=SET_KINDS.index(self.loss.kind),
            alpha=float(self.loss.alpha),
            gamma=float(self.loss.gamma),
            factor=float(self.loss.no_object),
            clamp=self.clamp,
            with_gradient=with_gradient,
        )


class _Losses(torch.autograd.Function):
    """Forward makes the gradients; backward scales and hands them on."""

    @staticmethod
    def forward(call: _Call, with_gradient: bool, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        losses, of_logits, of_boxes = call.run(tensors, with_gradient)
        return losses, *of_logits, of_boxes

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
        call, tensors = ctx.call, ctx.saved_tensors
        # The gradients leave with the first pass; a second one over a retained graph makes them again.
        gradients, ctx.gradients = ctx.gradients, None
        with torch.no_grad():
            if gradients is None:
                _, made, of_boxes = call.run(tensors, True)
                gradients = *made, of_boxes
            *of_logits, of_boxes = gradients
            boxes = list(tensors[call.tensors : 2 * call.tensors])
            flat = ops.set_loss_backward_(
                gradients=of_logits, box_gradients=of_boxes, pred_boxes=boxes, parts=call.parts, upstream=upstream
            )
            rows = flat.split([one.shape[:3].numel() for one in boxes])
            found = [row.view(one.shape) for row, one in zip(rows, boxes, strict=True)]
        made = first_order_only((*of_logits, *found), (upstream, *tensors), INSTEAD)
        return (None, None, *made, *[None] * 6)
