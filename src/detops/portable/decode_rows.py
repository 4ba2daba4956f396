"""`decode_rows` in whole-batch PyTorch: used on devices without a kernel, and in exported programs."""

import torch
from torch import Tensor

from detops.geometry.boxes import corners_at_points


def decode_rows(outputs: list[Tensor], points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return boxes, classes and logits; arguments and meaning as in `detops.reference.decode_rows`."""
    rows = torch.cat([output.to(torch.float32) for output in outputs], 1)  # (B, A, 5 + C)
    boxes = corners_at_points(rows, points.to(torch.float32))
    best = rows[..., 5:].max(2)
    # NaN where a coordinate is not finite.
    logits = best.values + (boxes - boxes).sum(2)
    return boxes, best.indices.where(logits == logits, 0), logits, rows[..., 4].contiguous()
