"""GFL's and LD's losses of matched anchors, level by level, by the ops that read each map once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from detops import ops
from detops.arguments import accumulate_dtype
from detops.losses._fused import kept_scale


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
    count = len(cls_scores)
    # Backward reads them again, and by then a caller may have loaded the next batch into the same memory.
    gt_boxes, gt_labels = gt_boxes.clone(), gt_labels.clone()
    kept, rest = kept_scale(cls_scores[0], scale)
    options = (cells, gt_boxes, gt_labels, index, region, valid, kept, beta, temperature, most)
    soft = [level.detach() for level in soft_targets]
    losses: Tensor = _Losses.apply(count, options, *cls_scores, *bbox_preds, *soft)
    return losses if rest is None else torch.cat([losses[:1] * rest, losses[1:]])


class _Losses(torch.autograd.Function):
    """Forward makes the gradient of the class logits, backward that of the box logits."""

    @staticmethod
    def forward(ctx: Any, count: int, options: tuple[Any, ...], *maps: Tensor) -> Tensor:
        scores, preds, soft = list(maps[:count]), list(maps[count : 2 * count]), list(maps[2 * count :])
        wanted = any(ctx.needs_input_grad[2 : 2 + count])
        losses, weight, ctx.gradients = _class_part(scores, preds, soft, options, wanted)
        ctx.count, ctx.options = count, options
        ctx.save_for_backward(*maps, weight)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        *maps, weight = ctx.saved_tensors
        count, options = ctx.count, ctx.options
        scores, preds, soft = maps[:count], maps[count : 2 * count], maps[2 * count :]
        of_scores: list[Tensor | None] = [None] * count
        if any(ctx.needs_input_grad[2 : 2 + count]):
            # The gradients leave with the first pass; a second one over a retained graph makes them again.
            gradients, ctx.gradients = ctx.gradients, None
            if gradients is None:
                gradients = _class_part(scores, preds, soft, options, True)[2]
            for gradient, factor in zip(gradients, upstream[0].unbind(), strict=True):
                ops.scale_gradient_(gradient=gradient, factor=factor)
            of_scores = gradients
        of_preds: Sequence[Tensor | None] = [None] * count
        if any(ctx.needs_input_grad[2 + count : 2 + 2 * count]):
            cells, gt_boxes, _, index, region, _, _, _, temperature, most = options
            of_preds = ops.positive_losses_backward(
                bbox_preds=preds,
                soft_targets=soft,
                cells=cells,
                gt_boxes=gt_boxes,
                index=index,
                weight=weight,
                region=region,
                factors=upstream[2:],
                temperature=temperature,
                most=most,
            )
        return (None, None, *of_scores, *of_preds, *[None] * len(soft))


def _class_part(
    scores: list[Tensor], preds: list[Tensor], soft: list[Tensor], options: tuple[Any, ...], with_gradient: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses, weights, and the gradients of the class logits, which are empty where none are wanted."""
    cells, gt_boxes, gt_labels, index, region, valid, scale, beta, temperature, most = options
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
            alpha=beta,
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
        beta=beta,
        temperature=temperature,
        most=most,
    )
    losses[0] += torch.stack(background)
    return losses, weight, gradients
