"""What `positive_losses_backward` means: the gradient of the box losses, by autograd, one point at a time."""

import torch
from torch import Tensor

from detops.reference.positive_losses import box_losses, distillation, places


def positive_losses_backward(
    bbox_preds: list[Tensor],
    soft_targets: list[Tensor],
    points: Tensor,
    boxes: Tensor,
    index: Tensor,
    weight: Tensor,
    region: Tensor | None,
    factors: Tensor,
    box_kind: int,
    temperature: float,
    margin: float,
    most: int,
) -> list[Tensor]:
    """Return the gradient of the weighted sum of rows 2 to 5 of the losses; arguments as in `positive_losses_`.

    Args:
        bbox_preds: Each level's (B, 4 * bins, H, W) logits.
        soft_targets: Those of a teacher, or empty.
        points: (A, 3): x, y and stride of each point, in pixels.
        boxes: (B, N, 4) xyxy in pixels.
        index: (B, A) int64, the box of each point, or -1.
        weight: (B, A) float32, as `positive_losses_` returned it; a constant. A point of weight 0 counts as one
            without a box.
        region: (B, A) float32, 0 where there is none; None for no region.
        factors: (4, L), of each loss of each level.
        box_kind: Of the IoU loss, an index into `BOX_KINDS`.
        temperature: Of the distillation.
        margin: By which the targets of the distributions stay below the last bin.
        most: No image has more positives than this, nor a larger region.

    Returns:
        The gradients, in the shapes and dtypes of `bbox_preds`.
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
                    box = box_losses(raw, soft, points[a].double(), boxes[b, n].double(), box_kind, temperature, margin)
                    total = weight[b, a] * (factor[:3] * torch.stack([box.iou_loss, box.dfl, box.ld])).sum()
                if region is not None and soft is not None:
                    total = total + factor[3] * region[b, a] * distillation(raw, soft, temperature)
            gradient[b, :, y, x] = torch.autograd.grad(total, raw)[0].flatten()
        gradients.append(gradient.to(preds.dtype))
        start += size
    return gradients
