"""`local_loss_backward_` in whole-batch PyTorch."""

from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.geometry.set_parts import parts_of
from detops.portable._local import fine_grained


def local_loss_backward_(
    gradient: Tensor,
    corners: Tensor,
    references: Tensor,
    pred_boxes: list[Tensor],
    parts: list[int],
    distils: list[int],
    gt_boxes: Tensor,
    index: Tensor,
    values: Tensor,
    scale: Tensor,
    reach: float,
    weights: list[float],
    upstream: Tensor,
) -> None:
    """Scale the gradient; arguments and meaning as in `detops.reference.local_loss_backward`."""
    wide, bins = accumulate_dtype(corners), len(values)
    boxes, values = gt_boxes.to(wide), values.to(wide)
    if gt_boxes.shape[1] == 0:
        boxes, index = boxes.new_zeros(len(boxes), 1, 4), index.clamp(max=-1)
    for part, pred, learns in zip(parts_of(parts, len(boxes)), pred_boxes, distils, strict=True):
        by_fgl, by_ddf = upstream[part.sets].to(wide).unbind(1)
        own = gradient[part.place]
        if not learns:
            own.copy_(own * by_fgl[:, None, None, None])
            continue
        logits = part.of([corners]).to(wide).unflatten(-1, (4, bins))
        near = index[part.rows].view(logits.shape[:3])
        fgl = fine_grained(logits, part.of([references]).to(wide), pred.to(wide), boxes, near, values, reach)
        factor = scale[part.sets].to(wide) * weights[0] * (by_fgl - by_ddf)
        more = (fgl.gradient * factor[:, None, None, None, None]).flatten(3)
        own.copy_(own * by_ddf[:, None, None, None] + more)
