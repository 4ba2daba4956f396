"""What `positive_losses_backward` means: the gradient of the box losses, by autograd, one anchor at a time."""

import torch
from torch import Tensor

from detops.reference.positive_losses import box_losses, distillation, places


def positive_losses_backward(
    bbox_preds: list[Tensor],
    soft_targets: list[Tensor],
    cells: Tensor,
    gt_boxes: Tensor,
    index: Tensor,
    weight: Tensor,
    region: Tensor | None,
    factors: Tensor,
    temperature: float,
    most: int,
) -> list[Tensor]:
    """Return the gradient of the weighted sum of rows 2 to 5 of the losses.

    Args:
        bbox_preds: See `positive_losses_`, and so for all but these.
        soft_targets: See there.
        cells: See there.
        gt_boxes: See there.
        index: See there.
        weight: (B, A), as `positive_losses_` returned it; a constant. An anchor of weight 0 counts as
            one without a box.
        region: See there.
        factors: (4, L), of each loss of each level.
        temperature: See there.
        most: See there.

    Returns:
        Of the shapes and dtypes of `bbox_preds`.
    """
    gradients, start = [], 0
    for level, preds in enumerate(bbox_preds):
        size, width = preds.shape[2] * preds.shape[3], preds.shape[3]
        gradient = torch.zeros(preds.shape, dtype=torch.float64)
        factor = factors[:, level].double()
        for b, r in places(index, region, start, size):
            y, x, a, n = r // width, r % width, start + r, int(index[b, start + r])
            raw = preds[b, :, y, x].double().view(4, -1).requires_grad_()
            soft = soft_targets[level][b, :, y, x].double().view(4, -1) if soft_targets else None
            with torch.enable_grad():
                total = 0 * raw.sum()
                if n >= 0 and weight[b, a] != 0:
                    box = box_losses(raw, soft, cells[a].double(), gt_boxes[b, n].double(), temperature)
                    total = weight[b, a] * (factor[:3] * torch.stack([box.giou, box.dfl, box.ld])).sum()
                if region is not None and soft is not None:
                    total = total + factor[3] * region[b, a] * distillation(raw, soft, temperature)
            gradient[b, :, y, x] = torch.autograd.grad(total, raw)[0].flatten()
        gradients.append(gradient.to(preds.dtype))
        start += size
    return gradients
