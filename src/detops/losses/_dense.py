"""GFL's and LD's losses of matched anchors, level by level, by the ops that read each map once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.arguments import accumulate_dtype
from detops.losses._fused import first_order_only, split_scale

INSTEAD = "quality_focal_loss, distribution_focal_loss and box_iou_loss"  # have second derivatives


def gfl_level_losses(
    cls_scores: Sequence[Tensor],
    bbox_preds: Sequence[Tensor],
    soft_targets: Sequence[Tensor],
    cells: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    index: Tensor,
    region: Tensor | None,
    valid: Tensor | None,
    scale: Tensor,
    beta: float,
    temperature: float,
    most: int,
) -> Tensor:
    """Return (6, L): the class loss times `scale`, and the losses of the positives as `positive_losses_` has them.

    Args:
        cls_scores: Each level's (B, C, H, W) logits.
        bbox_preds: Each level's (B, 4 * bins, H, W) logits.
        soft_targets: Those of a teacher, or empty.
        cells: See `detops.reference.positive_losses`, and so for all but `valid`.
        gt_boxes: See there.
        gt_labels: See there.
        index: See there.
        region: See there.
        valid: (B, A) bool, anchors that are background where they have no box; None for all.
        scale: See there.
        beta: See there.
        temperature: See there.
        most: See there.
    """
    kept, rest = split_scale(cls_scores[0], scale)
    # Backward reads boxes and labels again, and by then a caller may have loaded the next batch into the same memory.
    matched = (cells, gt_boxes.clone(), gt_labels.clone(), index, region, valid, kept)
    maps = (*cls_scores, *bbox_preds, *(level.detach() for level in soft_targets))
    call = _Call(len(cls_scores), len(maps), beta, temperature, most)
    with_gradient = torch.is_grad_enabled() and any(level.requires_grad for level in cls_scores)
    losses: Tensor = _Losses.apply(call, with_gradient, *maps, *matched)[0]
    return losses if rest is None else torch.cat([losses[:1] * rest, losses[1:]])


class _Call(NamedTuple):
    """What the ops are called with but tensors, and how the tensors are told apart.

    Attributes:
        levels: How many levels there are: so many maps of scores, of boxes, and of a teacher's boxes if there is one.
        maps: How many maps there are.
        beta: As in `gfl_level_losses`, and so the rest.
        temperature: Of the distillation.
        most: How many anchors of an image have a box at most.
    """

    levels: int
    maps: int
    beta: float
    temperature: float
    most: int

    def class_part(self, tensors: Sequence[Tensor], with_gradient: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Losses, weights, and the gradients of the class logits, which are empty where none are wanted."""
        scores, preds, soft = self.split(tensors)
        cells, gt_boxes, gt_labels, index, region, valid, scale = tensors[self.maps : self.maps + 7]
        start, wide = 0, accumulate_dtype(scores[0])
        # As if there were no box, a level is CenterNet's focal loss of nothing.
        centers, radii = index.new_empty(len(index), 0, 2), index.new_empty(len(index), 0)
        background, gradients = [], []
        for level in scores:
            height, width = level.shape[2:]
            factor = None
            if valid is not None:
                factor = valid[:, start : start + height * width].unflatten(1, (height, width)).to(wide)
            start += height * width
            total, gradient = ops.gaussian_focal_loss_from_boxes(
                logits=level.contiguous(),
                centers=centers,
                radii=radii,
                labels=radii,
                sample_sizes=None,
                negative_weight=factor,
                scale=scale,
                diameter_to_sigma_factor=6.0,
                alpha=self.beta,
                gamma=4.0,
                pos_weight=1.0,
                neg_weight=1.0,
                with_gradient=with_gradient,
            )
            background.append(total)
            gradients.append(gradient)
        losses, weight = ops.positive_losses_(
            class_gradients=gradients if with_gradient else [],
            cls_scores=scores,
            bbox_preds=preds,
            soft_targets=soft,
            cells=cells,
            gt_boxes=gt_boxes,
            gt_labels=gt_labels,
            index=index,
            region=region,
            scale=scale,
            beta=self.beta,
            temperature=self.temperature,
            most=self.most,
        )
        losses[0] += torch.stack(background)
        return losses, weight, gradients

    def box_gradients(self, tensors: Sequence[Tensor], weight: Tensor, factors: Tensor) -> list[Tensor]:
        """The gradients of the box logits."""
        _, preds, soft = self.split(tensors)
        cells, gt_boxes, _, index, region, *_ = tensors[self.maps :]
        return ops.positive_losses_backward(
            bbox_preds=preds,
            soft_targets=soft,
            cells=cells,
            gt_boxes=gt_boxes,
            index=index,
            weight=weight,
            region=region,
            factors=factors,
            temperature=self.temperature,
            most=self.most,
        )

    def split(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Scores, boxes, and the teacher's boxes."""
        maps, levels = list(tensors[: self.maps]), self.levels
        return maps[:levels], maps[levels : 2 * levels], maps[2 * levels :]


class _Losses(torch.autograd.Function):
    """Forward makes the gradient of the class logits, backward that of the box logits."""

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
        call, levels = ctx.call, ctx.call.levels
        gradients: list[Tensor | None] = [None] * len(tensors)
        with torch.no_grad():
            if any(ctx.needs_input_grad[2 : 2 + levels]):
                # The gradients leave with the first pass; a second one over a retained graph makes them again.
                of_scores, ctx.gradients = ctx.gradients, None
                if of_scores is None:
                    of_scores = call.class_part(tensors, True)[2]
                for gradient, factor in zip(of_scores, upstream[0].unbind(), strict=True):
                    ops.scale_gradient_(gradient=gradient, factor=factor)
                gradients[:levels] = of_scores
            if any(ctx.needs_input_grad[2 + levels : 2 + 2 * levels]):
                gradients[levels : 2 * levels] = call.box_gradients(tensors, weight, upstream[2:])
        return (None, None, *first_order_only(gradients, (upstream, *tensors), INSTEAD))
