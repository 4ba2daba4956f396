"""What `local_loss_backward_` means: how the gradient that `local_loss` made depends on those of its results."""

import torch
from torch import Tensor

from detops.reference.local_loss import rows_of_losses


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
    """Make the gradient of the sum of the losses that of their sum weighted by `upstream`, in place.

    The gradient of the sum is multiplied by what comes by DDF; where FGL has another factor, its own gradient is made
    again and added times the difference. Where a part has no DDF, FGL's factor is that of both.

    Args:
        gradient: (L, B, Q, 4 * bins), what `local_loss` returned; written into.
        corners: This and all that follow as of `local_loss`.
        references: See above.
        pred_boxes: See above.
        parts: See above.
        distils: See above.
        gt_boxes: See above.
        index: See above.
        values: See above.
        scale: See above.
        reach: See above.
        weights: See above.
        upstream: (R, 2) gradients by both losses of the layers of all parts.
    """
    by_fgl, by_ddf = upstream.double().unbind(1)
    layers = torch.tensor(parts[2::5], dtype=torch.int64, device=upstream.device)
    learns = torch.tensor(distils, dtype=torch.bool).repeat_interleave(layers)
    by_ddf = by_ddf.where(learns, by_fgl)
    with torch.enable_grad():
        leaf = corners.detach().double().requires_grad_()
        fgl, _ = rows_of_losses(leaf, references, None, pred_boxes, parts, distils, gt_boxes, index, values, reach)
        more = (fgl * scale.double() * weights[0] * (by_fgl - by_ddf)).sum()
    added = torch.autograd.grad(more, leaf)[0] if more.requires_grad else torch.zeros_like(leaf)
    row = 0
    for _, first_layer, count, first, queries in zip(*[iter(parts)] * 5, strict=True):
        for layer in range(first_layer, first_layer + count):
            place = layer, slice(None), slice(first, first + queries)
            gradient[place] = (gradient[place].double() * by_ddf[row] + added[place]).to(gradient.dtype)
            row += 1
