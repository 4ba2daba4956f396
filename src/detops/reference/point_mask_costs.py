"""What `point_mask_costs` means: every query is compared with every mask of its image, one pair at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.reference.maps_at_points import maps_at_points


def point_mask_costs(logits: Tensor, points: Tensor | None, labels: Tensor, border: bool) -> tuple[Tensor, Tensor]:
    """Return the cross entropy and the dice cost of each pair.

    With x the logit of a query at a point, p its sigmoid and y the label of a mask there:

        cross entropy  mean of softplus(x) - x y
        dice           1 - (2 sum(p y) + 1) / (sum p + sum y + 1)

    Args:
        logits: (B, Q, h, w) maps; or (B, Q, P), the logits at the points.
        points: (B, 1, P, 2) x and y, 0 .. 1 within the image, at which `maps_at_points` reads all maps; None where
            logits are given.
        labels: (B, N, P) labels of the masks at the points.
        border: Whether borders go on.

    Returns:
        (B, Q, N) each, float32; float64 for logits of that. NaN where a logit is not finite.

    Reference:
        Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", 2022.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shape = (*logits.shape[:2], labels.shape[1])
    bce, dice = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    if points is not None:
        logits = maps_at_points(logits, None, points.expand(-1, logits.shape[1], -1, -1), False, border)
    for b in range(shape[0]):
        for q in range(shape[1]):
            x = logits[b, q].to(dtype)
            p = x.sigmoid() + x * 0
            for n in range(shape[2]):
                y = labels[b, n].to(dtype)
                bce[b, q, n] = (F.softplus(x) + x * 0 - x * y).sum() / max(len(x), 1)
                dice[b, q, n] = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
    return bce, dice
