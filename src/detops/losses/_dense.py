"""Losses of a dense head whose points are matched with boxes, level by level, by ops that read each map once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.losses._class_loss import CLASS_KINDS, ClassLoss, background_loss, in_memory_order
from detops.losses._fused import first_order_only, split_scale
from detops.losses.iou import Kind as BoxKind

BOX_KINDS: tuple[BoxKind, ...] = ("iou_squared", "iou", "giou", "diou", "ciou")  # their places are the ops' numbers
INSTEAD = "quality_focal_loss, distribution_focal_loss and box_iou_loss"  # have second derivatives


class Match(NamedTuple):
    """The training targets of each point of a batch. A positive is a point with a box.

    Attributes:
        points: (A, 3): x, y and stride of each point in pixels, level after level, row by row.
        boxes: (B, N, 4) xyxy in pixels.
        labels: (B, N) integers, 0 .. C - 1.
        index: (B, A) int64, the box of each point; negative for none.
        most: Upper bound of the points of an image that are positive or in the region.
        valid: (B, A) bool, the points that are background if they have no box; None for all.
        quality: (B, A), class target of a positive; None for the IoU of the predicted box.
        weight: (B, A), factor of a positive's box losses; None for its highest class probability.
        region: (B, A) float32, factor of the distillation loss at points that learn from a teacher whether they have a
            box or not, 0 at all others; None for no such points.
    """

    points: Tensor
    boxes: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]
    most: int
    valid: Tensor | None = None
    quality: Tensor | None = None
    weight: Tensor | None = None
    region: Tensor | None = None


class DenseLosses(NamedTuple):
    """The kinds of the losses, and their parameters.

    Attributes:
        class_loss: The class loss.
        box_kind: The IoU loss, by its name in `box_iou_loss`.
        margin: How far the targets of the distribution focal loss stay below the last bin, 0 .. 1.
        temperature: Softmax temperature of the distillation.
    """

    class_loss: ClassLoss
    box_kind: BoxKind = "giou"
    margin: float = 0.1
    temperature: float = 1.0


def level_losses(
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    match: Match,
    losses: DenseLosses,
    scale: Tensor,
    soft_targets: Sequence[Tensor] = (),
) -> Tensor:
    """Return the losses of each level as rows of (6, L), once differentiable.

        0  scale * class loss over all valid points and classes
        1  sum of the positives' weights w; not differentiable
        2  w * IoU loss of the positives' boxes, in strides
        3  w * distribution focal loss, summed over sides
        4  w * distillation loss, summed over sides; 0 without a teacher
        5  row 4 over the points of the region, with the region's factor in place of w

    Forward computes the gradient of the class logits in the pass that reads them, backward that of the box logits,
    which are read only at positives.

    Args:
        cls_scores: Each level's (B, C, H, W) logits.
        bbox_preds: Each level's (B, 4 * bins, H, W) logits: left, top, right, bottom.
        match: Targets of each point, as constants.
        losses: Kinds and parameters of the losses.
        scale: One number, the factor of the class loss.
        soft_targets: A teacher's `bbox_preds`; empty without a teacher.
    """
    kept, rest = split_scale(cls_scores[0], scale)
    # Backward reads boxes and labels again, and by then a caller may have loaded the next batch into the same memory.
    points, boxes, labels, index, most, valid, quality, weight, region = match
    if weight is not None and weight is quality:
        weight = weight.view_as(weight)  # torch.compile takes no tensor twice
    tensors = (points, boxes.clone(), labels.clone(), index, valid, quality, weight, region, kept)
    maps = (*cls_scores, *bbox_preds, *(level.detach() for level in soft_targets))
    with_gradient = torch.is_grad_enabled() and any(level.requires_grad for level in cls_scores)
    call = _Call(len(cls_scores), len(maps), losses, most)
    rows: Tensor = _Losses.apply(call, with_gradient, *maps, *tensors)[0]
    return rows if rest is None else torch.cat([rows[:1] * rest, rows[1:]])


class _Call(NamedTuple):
    """The arguments of the ops that are not tensors, and the order of those that are: maps, match, scale.

    Attributes:
        num_levels: Number of levels, and so of maps of class logits, of box logits, and of a teacher's.
        num_maps: Number of maps.
        losses: Kinds and parameters of the losses.
        most: As in `Match`.
    """

    num_levels: int
    num_maps: int
    losses: DenseLosses
    most: int

    def class_part(self, tensors: Sequence[Tensor], with_gradient: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return losses (6, L), weights (B, A), and the gradients of the class logits; none without `with_gradient`."""
        scores, preds, soft = self.split(tensors)
        match, scale = self.match(tensors), tensors[-1]
        class_loss, box_kind, margin, temperature = self.losses
        background, gradients, start = [], [], 0
        for level in scores:
            height, width = level.shape[2:]
            valid = match.valid
            if valid is not None:
                valid = valid[:, start : start + height * width].unflatten(1, (height, width))
            start += height * width
            total, gradient = background_loss(level, class_loss, valid=valid, scale=scale, with_gradient=with_gradient)
            background.append(total)
            gradients.append(gradient)
        losses, weight = ops.positive_losses_(
            class_gradients=gradients if with_gradient else [],
            cls_scores=scores,
            bbox_preds=preds,
            soft_targets=soft,
            points=match.points,
            boxes=match.boxes,
            labels=match.labels,
            index=match.index,
            quality=match.quality,
            weight=match.weight,
            region=match.region,
            scale=scale,
            class_kind=CLASS_KINDS.index(class_loss.kind),
            box_kind=BOX_KINDS.index(box_kind),
            alpha=class_loss.alpha,
            gamma=class_loss.gamma,
            temperature=temperature,
            margin=margin,
            most=self.most,
        )
        losses[0] += torch.stack(background)
        return losses, weight, gradients

    def box_gradients(self, tensors: Sequence[Tensor], weight: Tensor, factors: Tensor) -> list[Tensor]:
        """Return the gradients of the box logits."""
        _, preds, soft = self.split(tensors)
        match = self.match(tensors)
        return ops.positive_losses_backward(
            bbox_preds=preds,
            soft_targets=soft,
            points=match.points,
            boxes=match.boxes,
            index=match.index,
            weight=weight,
            region=match.region,
            factors=factors,
            box_kind=BOX_KINDS.index(self.losses.box_kind),
            temperature=self.losses.temperature,
            margin=self.losses.margin,
            most=self.most,
        )

    def split(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the maps of class logits, of box logits, and of a teacher's."""
        maps, levels = list(tensors[: self.num_maps]), self.num_levels
        return maps[:levels], maps[levels : 2 * levels], maps[2 * levels :]

    def match(self, tensors: Sequence[Tensor]) -> Match:
        """Return the targets of each point."""
        points, boxes, labels, index, *others, _ = tensors[self.num_maps :]
        return Match(points, boxes, labels, index, self.most, *others)


class _Losses(torch.autograd.Function):
    """Forward computes the gradient of the class logits, backward that of the box logits."""

    @staticmethod
    def forward(call: _Call, with_gradient: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        losses, weight, gradients = call.class_part(tensors, with_gradient)
        return losses, weight, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, _, *tensors = inputs
        _, weight, *ctx.gradients = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, weight)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * len(ctx.needs_input_grad)
        *tensors, weight = ctx.saved_tensors
        call, levels = ctx.call, ctx.call.num_levels
        gradients: list[Tensor | None] = [None] * len(tensors)
        with torch.no_grad():
            if any(ctx.needs_input_grad[2 : 2 + levels]):
                # The first pass hands out the gradients; a second one over a retained graph computes them again.
                of_scores, ctx.gradients = ctx.gradients, None
                if of_scores is None:
                    of_scores = call.class_part(tensors, True)[2]
                for gradient, factor in zip(of_scores, upstream[0].unbind(), strict=True):
                    ops.scale_gradient_(gradient=in_memory_order(gradient), factor=factor)
                gradients[:levels] = of_scores
            if any(ctx.needs_input_grad[2 + levels : 2 + 2 * levels]):
                gradients[levels : 2 * levels] = call.box_gradients(tensors, weight, upstream[2:])
        return (None, None, *first_order_only(gradients, (upstream, *tensors), INSTEAD))
