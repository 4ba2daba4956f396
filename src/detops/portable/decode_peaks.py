"""`decode_peaks` in whole-batch PyTorch: used on devices without a kernel, and in exported programs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.geometry.ordering import top


def decode_peaks(
    logits: Tensor, wh: Tensor, offset: Tensor, kernel: int, scale_x: float, scale_y: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes, labels and logits; arguments and meaning as in `detops.reference.decode_peaks`."""
    height, width = logits.shape[2:]
    logits = logits.to(torch.float32)
    highest = F.max_pool2d(logits, kernel, stride=1, padding=kernel // 2)
    peaks = logits.where(logits == highest, -torch.inf).flatten(1)
    found, index = top(peaks, min(count, peaks.shape[1]))
    cell = index % (height * width)
    column, row = cell % width, torch.div(cell, width, rounding_mode="floor")
    size, shift = (
        t.to(torch.float32).flatten(2).gather(2, cell[:, None].expand(-1, 2, -1)) for t in (wh, offset)
    )  # (B, 2, K)
    x, y = column + shift[:, 0], row + shift[:, 1]
    half_w, half_h = size[:, 0] / 2, size[:, 1] / 2
    corners = [(x - half_w) * scale_x, (y - half_h) * scale_y, (x + half_w) * scale_x, (y + half_h) * scale_y]
    labels = torch.div(index, height * width, rounding_mode="floor")
    exists = found > -torch.inf
    boxes = torch.stack(corners, -1).where(exists[..., None], 0)
    return boxes, labels.where(exists, -1), found.where(exists, torch.nan)
