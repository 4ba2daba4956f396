"""D-FINE's losses of box distributions: fine-grained localization (FGL) and decoupled distillation (DDF)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.losses._fused import HALF_RANGE, first_order_only

INSTEAD = "the same of torch.nn.functional's operations"


def bin_values(bins: int, up: float, scale: float, device: torch.device) -> Tensor:
    """Return (bins + 1,) what each bin stands for: dense around 0, up to 2 * up * scale at both ends."""
    most = abs(up) * abs(scale)
    step = (most + 1) ** (2 / (bins - 2))
    half = [step**i - 1 for i in range(1, bins // 2)]
    values = [-2 * most, *[-value for value in reversed(half)], 0.0, *half, 2 * most]
    return torch.tensor(values, dtype=torch.float32, device=device)


class Distributions(NamedTuple):
    """D-FINE's distributions of all layers.

    Attributes:
        corners: (L, B, Q, 4 * bins) logits: left, top, right, bottom.
        references: (L, B, Q, 4) cxcywh, boxes that distances are measured from; constants.
        teacher_logits: (B, Q, C) class logits of the last layer; constants.
        values: (bins,) what each bin stands for, from `bin_values`.
        reach: By which distances are divided.
    """

    corners: Tensor
    references: Tensor
    teacher_logits: Tensor
    values: Tensor
    reach: float


class LocalParts(NamedTuple):
    """Which layers and queries are wanted, and what they are trained on.

    Attributes:
        parts: Five numbers of each part: 0, its first layer, number of layers, first query, number of queries.
        distils: Of each part, whether its layers learn from the last one.
        pred_boxes: (S, B, Q, 4) cxcywh of each part; constants.
        boxes: (B, N, 4) cxcywh.
        index: int64 box of each query, of the parts (layers, B, queries) one after the other; -1 for none.
    """

    parts: list[int]
    distils: list[int]
    pred_boxes: Sequence[Tensor]
    boxes: Tensor
    index: Tensor  # type: ignore[assignment]


def local_losses(local: Distributions, parts: LocalParts, scale: Tensor, weights: Sequence[float]) -> Tensor:
    """Return (R, 2) FGL and DDF of the layers of all parts, once differentiable.

    Args:
        local: The distributions.
        parts: Which of them.
        scale: (R,) factors of FGL.
        weights: Further factors of both.
    """
    corners = local.corners if local.corners.stride(3) == 1 else local.corners.contiguous()
    # As in `split_scale`: the gradient is written in float16, in whose range it would be too small.
    lift = HALF_RANGE if corners.dtype == torch.float16 else 1.0
    call = _Call(parts.parts, parts.distils, local.reach, [weight * lift for weight in weights])
    constants = (
        local.references, local.teacher_logits.detach(), parts.boxes, parts.index, local.values, scale,
        *(one.detach() for one in parts.pred_boxes),
    )  # fmt: skip
    with_gradient = torch.is_grad_enabled() and corners.requires_grad
    losses: Tensor = _Losses.apply(call, with_gradient, corners, *constants)[0]
    return losses if lift == 1 else losses / lift


class _Call(NamedTuple):
    """What the ops are called with but tensors."""

    parts: list[int]
    distils: list[int]
    reach: float
    weights: list[float]

    def arguments(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        """The arguments of both ops."""
        corners, references, _, boxes, index, values, scale, *pred_boxes = tensors
        return {
            "corners": corners, "references": references, "pred_boxes": pred_boxes, "parts": self.parts,
            "distils": self.distils, "gt_boxes": boxes, "index": index, "values": values, "scale": scale,
            "reach": self.reach, "weights": self.weights,
        }  # fmt: skip

    def run(self, tensors: Sequence[Tensor], with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Call the op."""
        return ops.local_loss(teacher_logits=tensors[2], with_gradient=with_gradient, **self.arguments(tensors))


class _Losses(torch.autograd.Function):
    """Forward makes the gradient of the losses' sum; backward makes it that of their weighted sum."""

    @staticmethod
    def forward(call: _Call, with_gradient: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        return call.run(tensors, with_gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, _, *tensors = inputs
        ctx.gradient = output[1]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * len(ctx.needs_input_grad)
        tensors = ctx.saved_tensors
        # The gradient leaves with the first pass; a second one over a retained graph makes it again.
        gradient, ctx.gradient = ctx.gradient, None
        with torch.no_grad():
            if gradient is None:
                gradient = ctx.call.run(tensors, True)[1]
            ops.local_loss_backward_(gradient=gradient, upstream=upstream, **ctx.call.arguments(tensors))
        (made,) = first_order_only((gradient,), (upstream, *tensors), INSTEAD)
        return (None, None, made, *[None] * (len(tensors) - 1))
