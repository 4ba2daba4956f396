"""Losses of a dense head whose points are matched with boxes, level by level, by ops that read each map once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.geometry.levels import dense_map
from detops.losses._class_loss import CLASS_KINDS, ClassLoss
from detops.losses._fused import HALF_RANGE, first_order_only
from detops.losses.iou import Kind as BoxKind
from detops.losses.reduction import average_over_ranks, is_averaged

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
        weights: Factors of the five losses of `dense_losses`.
    """

    class_loss: ClassLoss
    box_kind: BoxKind = "giou"
    margin: float = 0.1
    temperature: float = 1.0
    weights: tuple[float, ...] = (1.0,) * 5


class ClassDivisor(NamedTuple):
    """What the class loss of each of G heads is divided by: the sum of its counts, each at least `least`, plus `eps`.

    Attributes:
        counts: (G, M) numbers.
        least: Lowest value of a count.
        eps: Added to the sum.
    """

    counts: Tensor
    least: float = 1.0
    eps: float = 0.0


class WeightDivisor(NamedTuple):
    """What the box losses are divided by: the sum of the positives' weights, at least `least`, plus `eps`.

    Under `torch.distributed` it is averaged over the ranks.

    Attributes:
        least: Lowest sum.
        eps: Added to it.
        distillation: Whether the distillation losses are divided, too.
    """

    least: float = 1.0
    eps: float = 0.0
    distillation: bool = True


def dense_losses(
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    match: Match,
    losses: DenseLosses,
    divisor: ClassDivisor,
    box_divisor: WeightDivisor | None = None,
    soft_targets: Sequence[Tensor] = (),
    *,
    by_level: bool = False,
) -> list[tuple[Tensor, ...]]:
    """Return the losses of a dense head, or of G heads whose levels follow one another; once differentiable.

        class loss over all valid points and classes
        w * IoU loss of the positives' boxes, in strides, with each positive's weight w
        w * distribution focal loss, summed over sides; not for maps of one bin
        w * distillation loss, summed over sides; only with a teacher
        the same over the points of the region, with the region's factor in place of w; only with a region

    Forward computes the gradient of the class logits in the pass that reads them, backward that of the box logits,
    which are read only at positives.

    Args:
        cls_scores: Each level's (B, C, H, W) logits.
        bbox_preds: Each level's (B, 4 * bins, H, W) logits: left, top, right, bottom.
        match: Targets of each point, as constants.
        losses: Kinds and parameters of the losses.
        divisor: Divisor of the class loss.
        box_divisor: Divisor of the other losses, for a single head; None for that of the class loss.
        soft_targets: A teacher's `bbox_preds`; empty without a teacher.
        by_level: Return each level's part rather than each head's.

    Returns:
        For each loss one 0-d tensor per head, or per level.
    """
    # Backward reads boxes and labels again, and by then a caller may have loaded the next batch into the same memory.
    points, boxes, labels, index, most, valid, quality, weight, region = match
    if weight is not None and weight is quality:
        weight = weight.view_as(weight)  # torch.compile takes no tensor twice
    tensors = (points, boxes.clone(), labels.clone(), index, valid, quality, weight, region, divisor.counts)
    maps = (*cls_scores, *bbox_preds, *(level.detach() for level in soft_targets))
    with_gradient = torch.is_grad_enabled() and any(level.requires_grad for level in cls_scores)
    levels = len(cls_scores)
    columns = levels if by_level else len(divisor.counts)
    rows = 2 + (bbox_preds[0].shape[1] > 4) + bool(soft_targets) + (region is not None)
    averaged = box_divisor is not None and is_averaged()
    call = _Call(levels, len(maps), losses, most, divisor[1:], box_divisor, averaged, rows, columns)
    found = _Losses.apply(call, with_gradient, *maps, *tensors)
    return [tuple(found[i : i + columns]) for i in range(0, rows * columns, columns)]


class _Call(NamedTuple):
    """The arguments of the ops that are not tensors, and the order of those that are: maps, match, factors.

    Attributes:
        num_levels: Number of levels, and so of maps of class logits, of box logits, and of a teacher's.
        num_maps: Number of maps.
        losses: Kinds and parameters of the losses.
        most: As in `Match`.
        divisor: `least` and `eps` of the class loss's divisor.
        box_divisor: Divisor of the box losses; None for that of the class loss.
        averaged: Whether the sum of the weights is added up over ranks.
        rows: How many of the losses there are.
        columns: How many parts of each.
    """

    num_levels: int
    num_maps: int
    losses: DenseLosses
    most: int
    divisor: tuple[float, ...]
    box_divisor: WeightDivisor | None
    averaged: bool
    rows: int
    columns: int

    def losses_of(self, tensors: Sequence[Tensor], with_gradient: bool) -> tuple[Tensor, ...]:
        """Return losses (6, columns), factors (4, G), weights (B, A), and the rest (G,) of the class losses' scale.

        The class logits' gradients follow; none without `with_gradient`.
        """
        scores, preds, soft = self.split(tensors)
        match, counts = self.match(tensors), tensors[-1]
        class_loss, box_kind, margin, temperature, weights = self.losses
        factor, exponent = class_loss.background
        background, scales, gradients = ops.background_losses(
            logits=[dense_map(level) for level in scores],
            valid=match.valid,
            counts=counts,
            least=self.divisor[0],
            eps=self.divisor[1],
            kept=HALF_RANGE if scores[0].dtype == torch.float16 else 0.0,
            factor=factor * weights[0],
            gamma=exponent,
            with_gradient=with_gradient,
        )
        box_divisor, box_scale = self.box_divisor or WeightDivisor(), None
        if self.box_divisor is None:
            box_scale = scales[0]
        elif self.averaged:
            box_scale = torch.ones_like(scales[0])  # until the ranks' sum is known
        losses, factors, weight = ops.positive_losses_(
            class_gradients=gradients,
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
            background=background,
            scales=scales,
            box_scale=box_scale,
            least=box_divisor.least,
            eps=box_divisor.eps,
            divide_distillation=box_divisor.distillation,
            weights=list(weights),
            class_kind=CLASS_KINDS.index(class_loss.kind),
            box_kind=BOX_KINDS.index(box_kind),
            alpha=class_loss.alpha,
            gamma=class_loss.gamma,
            temperature=temperature,
            margin=margin,
            most=self.most,
            heads=0 if self.columns == self.num_levels else self.columns,
        )
        return losses, factors, weight, scales[2], *gradients

    def over_ranks(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Divide box losses by the sum of the weights, averaged over ranks; return losses and factors (4, 1)."""
        assert self.box_divisor is not None
        least, eps, distillation = self.box_divisor
        inverse = (average_over_ranks(losses[1].sum(), least, training=True) + eps).reciprocal()
        of_distillation = inverse if distillation else torch.ones_like(inverse)
        factors = torch.stack([inverse, inverse, of_distillation, of_distillation])[:, None]
        return torch.cat([losses[:2], losses[2:] * factors]), factors

    def box_gradients(self, tensors: Sequence[Tensor], weight: Tensor, slopes: Tensor, factors: Tensor) -> list[Tensor]:
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
            slopes=slopes,
            factors=factors,
            weights=list(self.losses.weights[1:]),
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
        points, boxes, labels, index, *others = tensors[self.num_maps : -1]
        return Match(points, boxes, labels, index, self.most, *others)


def _in_memory_order(maps: Tensor) -> Tensor:
    return maps if maps.is_contiguous() else maps.permute(0, 2, 3, 1)


class _Losses(torch.autograd.Function):
    """Forward computes the gradient of the class logits, backward that of the box logits."""

    @staticmethod
    def forward(call: _Call, with_gradient: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        losses, factors, weight, rest, *gradients = call.losses_of(tensors, with_gradient)
        if call.averaged:
            losses, factors = call.over_ranks(losses)
        boxes = losses[2 : call.rows + 1]
        return *losses[0].unbind(), *boxes.flatten().unbind(), weight, factors, rest, *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, _, *tensors = inputs
        parts = ctx.call.rows * ctx.call.columns
        weight, factors, rest, *ctx.gradients = output[parts:]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[parts:])
        ctx.save_for_backward(*tensors, weight, factors, rest)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        call, levels = ctx.call, ctx.call.num_levels
        *tensors, weight, factors, rest = ctx.saved_tensors
        given = upstream[: call.rows * call.columns]
        present = [slope for slope in given if slope is not None]
        if not present:
            return (None,) * len(ctx.needs_input_grad)
        gradients: list[Tensor | None] = [None] * len(tensors)
        with torch.no_grad():
            zero = present[0] if len(present) == len(given) else torch.zeros_like(present[0])
            slopes = torch.stack([zero if slope is None else slope for slope in given]).view(call.rows, call.columns)
            if any(ctx.needs_input_grad[2 : 2 + levels]):
                # The first pass hands out the gradients; a second one over a retained graph computes them again.
                of_scores, ctx.gradients = ctx.gradients, None
                if of_scores is None:
                    of_scores = call.losses_of(tensors, True)[4:]
                ops.scale_gradient_(
                    gradients=[_in_memory_order(gradient) for gradient in of_scores],
                    factor=slopes[0] * rest[:1] if tensors[0].dtype == torch.float16 else slopes[0],
                )
                gradients[:levels] = of_scores
            if any(ctx.needs_input_grad[2 + levels : 2 + 2 * levels]):
                gradients[levels : 2 * levels] = call.box_gradients(tensors, weight, slopes[1:], factors)
        return (None, None, *first_order_only(gradients, (*present, *tensors), INSTEAD))
