"""The definition of `positive_losses_backward`: the gradient of the box losses, by autograd, one point at a time."""

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
    slopes: Tensor,
    factors: Tensor,
    weights: list[float],
    box_kind: int,
    temperature: float,
    margin: float,
    most: int,
) -> list[Tensor]:
    """Return the gradient of the weighted sum of rows 2 to 5 of the losses of `positive_losses_`.

    Args:
        bbox_preds: Each level's (B, 4 * bins, H, W) logits.
        soft_targets: A teacher's logits in the shapes of `bbox_preds`; empty without a teacher.
        points: (A, 3): x, y and stride of each point, in pixels.
        boxes: (B, N, 4) xyxy in pixels.
        index: (B, A) int64, the box of each point; negative for none.
        weight: (B, A) float32, the weights w that `positive_losses_` returned, as constants. A point of weight 0 has
            no box losses.
        region: (B, A) float32, the weight of each point of the region, 0 for all others. None for no region.
        slopes: (R, K), the derivative of what is trained by each of these rows that exist, on each K-th of the levels;
            K divides their number. Row 3 needs more than one bin, row 4 a teacher, row 5 a region.
        factors: (4, G), the factors of these rows that `positive_losses_` returned, on each G-th of the levels.
        weights: Further factors of these rows, four.
        box_kind: Kind of the IoU loss, an index into `BOX_KINDS`.
        temperature: Softmax temperature of the distillation.
        margin: How far the targets of the distributions stay below the last bin, in bins.
        most: Upper bound of the points of an image that are positive or in the region; bounds the memory.

    Returns:
        The gradients, in the shapes and dtypes of `bbox_preds`.

    Reference:
        `positive_losses_` has the formulas and their sources.
    """
    gradients, start = [], 0
    for level, preds in enumerate(bbox_preds):
        size, width = preds.shape[2] * preds.shape[3], preds.shape[3]
        gradient = torch.zeros(preds.shape, dtype=torch.float64)
        factor = torch.zeros(4, dtype=torch.float64)
        factor[: len(slopes)] = slopes[:, level * slopes.shape[1] // len(bbox_preds)]
        factor *= factors[:, level * factors.shape[1] // len(bbox_preds)]
        factor *= torch.tensor(weights, dtype=torch.float64)
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
