"""`local_loss` in whole-batch PyTorch, with its gradient written out, as ops run below autograd."""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype
from detops.geometry.set_parts import parts_of
from detops.portable._local import fine_grained

TEMPERATURE = 5.0


def local_loss(
    corners: Tensor,
    references: Tensor,
    teacher_logits: Tensor,
    pred_boxes: list[Tensor],
    parts: list[int],
    distils: list[int],
    gt_boxes: Tensor,
    index: Tensor,
    values: Tensor,
    scale: Tensor,
    reach: float,
    weights: list[float],
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return losses and gradient; arguments and meaning as in `detops.reference.local_loss`."""
    wide, bins = accumulate_dtype(corners), len(values)
    boxes = gt_boxes.to(wide)
    if gt_boxes.shape[1] == 0:
        boxes, index = boxes.new_zeros(len(boxes), 1, 4), index.clamp(max=-1)
    scale, values = scale.to(wide), values.to(wide)
    gradient = torch.zeros_like(corners) if with_gradient else corners.new_empty(0)
    rows = [scale.new_zeros(0, 2)]
    for part, pred, learns in zip(parts_of(parts, len(boxes)), pred_boxes, distils, strict=True):
        logits = part.of([corners]).to(wide).unflatten(-1, (4, bins))
        near = index[part.rows].view(logits.shape[:3])
        by_fgl = scale[part.sets] * weights[0]
        fgl = fine_grained(logits, part.of([references]).to(wide), pred.to(wide), boxes, near, values, reach)
        slope = fgl.gradient * by_fgl[:, None, None, None, None]
        losses = [fgl.loss * by_fgl, torch.zeros_like(fgl.loss)]
        if learns:
            queries = part.place[2]
            confidence = teacher_logits[:, queries].to(wide).amax(-1).sigmoid()
            teacher = (corners[-1:, :, queries].to(wide).unflatten(-1, (4, bins)) / TEMPERATURE).log_softmax(-1)
            student = (logits / TEMPERATURE).log_softmax(-1)
            factor = (
                fgl.quality.where(near >= 0, confidence) * _shares(near >= 0, wide) * (weights[1] * TEMPERATURE**2 / 4)
            )
            # Term by term, so that it is exactly 0 for the teacher itself.
            divergence = (teacher.exp() * (teacher - student)).sum((3, 4))
            losses[1] = (factor * divergence).sum((1, 2))
            slope = slope + (student.exp() - teacher.exp()) * (factor / TEMPERATURE)[..., None, None]
        rows.append(torch.stack(losses, 1))
        if with_gradient:
            gradient[part.place].copy_(slope.flatten(3))
    return torch.cat(rows), gradient


def _shares(matched: Tensor, dtype: torch.dtype) -> Tensor:
    """What each query (S, B, Q) counts in its layer's loss: with M matched, 1 / (sqrt(M) (sqrt(M) + sqrt(U)))."""
    roots = [part.sum((1, 2), keepdim=True).to(dtype).sqrt() for part in (matched, ~matched)]
    total = roots[0] + roots[1]
    shares = [(1 / (root * total)).where(root > 0, 0) for root in roots]
    return torch.where(matched, shares[0], shares[1])
