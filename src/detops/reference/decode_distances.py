"""What `decode_distances` means: the box that each point predicts, one point at a time."""

import torch
from torch import Tensor


def decode_distances(bbox_preds: list[Tensor], points: Tensor) -> Tensor:
    """Return the boxes whose sides have the predicted distances from their points.

    Args:
        bbox_preds: Each level's (B, 4 * bins, H, W): the logits of a distribution over 0 .. bins - 1 strides for the
            left, top, right and bottom side, whose mean is the distance; with one bin the distance itself, in strides.
        points: (A, 3): x, y and stride of each point, in pixels; level after level, row by row.

    Returns:
        (B, A, 4) xyxy in pixels.

    Reference:
        Li et al., "Generalized Focal Loss", 2020, equation 4.
    """
    batch, bins = bbox_preds[0].shape[0], bbox_preds[0].shape[1] // 4
    boxes = torch.zeros(batch, len(points), 4, dtype=torch.float64)
    start = 0
    for level in bbox_preds:
        rows = level.double().flatten(2)  # (B, 4 * bins, R)
        for b in range(batch):
            for r in range(rows.shape[2]):
                raw = rows[b, :, r].view(4, bins)
                distance = raw[:, 0] if bins == 1 else (raw.softmax(1) * torch.arange(bins)).sum(1)
                x, y, stride = points[start + r].double()
                left, top, right, bottom = distance * stride
                boxes[b, start + r] = torch.stack([x - left, y - top, x + right, y + bottom])
        start += rows.shape[2]
    return boxes
