"""The fine-grained localization of one part of D-FINE's distributions, for `local_loss` and its backward pass."""

from typing import NamedTuple

import torch
from torch import Tensor

from detops.portable._boxes import from_cxcywh, overlap


class FineGrained(NamedTuple):
    """FGL of one part.

    Attributes:
        quality: (S, B, Q) IoU of the pairs, 0 without a box.
        loss: (S,) sums, without factors.
        gradient: (S, B, Q, 4, bins).
    """

    quality: Tensor
    loss: Tensor
    gradient: Tensor


def fine_grained(
    logits: Tensor, references: Tensor, pred: Tensor, boxes: Tensor, index: Tensor, values: Tensor, reach: float
) -> FineGrained:
    """Compute FGL.

    Args:
        logits: (S, B, Q, 4, bins).
        references: (S, B, Q, 4) cxcywh.
        pred: (S, B, Q, 4) cxcywh.
        boxes: (B, N, 4) cxcywh, N at least 1.
        index: (S, B, Q) box of each query, or below 0.
        values: (bins,).
        reach: By which distances are divided.
    """
    has_box = index >= 0
    each = index.clamp(min=0)[..., None].expand(-1, -1, -1, 4)
    target = boxes.expand(len(index), -1, -1, -1).gather(2, each)
    inter, union = overlap(from_cxcywh(pred), from_cxcywh(target))
    quality = (inter / union).nan_to_num(0.0, 0.0, 0.0).where(has_box, 0)
    center, size = references[..., :2], references[..., 2:] / abs(reach) + 1e-16
    low, high = target[..., :2] - target[..., 2:] / 2, target[..., :2] + target[..., 2:] / 2
    distance = torch.cat([(center - low) / size, (high - center) / size], -1) - abs(reach) / 2
    distance = distance.clamp(values[0], values[-1]).contiguous()
    left = (torch.searchsorted(values, distance, right=True) - 1).clamp(0, len(values) - 2)
    share = (distance - values[left]) / (values[left + 1] - values[left])
    log_p = logits.log_softmax(-1)
    near, shares = torch.stack([left, left + 1], -1), torch.stack([1 - share, share], -1)
    counts = (quality > 0)[..., None]
    loss = -(log_p.gather(-1, near) * shares).sum(-1) * quality[..., None]
    gradient = log_p.exp().scatter_add(-1, near, -shares) * quality[..., None, None]
    return FineGrained(quality, loss.where(counts, 0).sum((1, 2, 3)), gradient.where(counts[..., None], 0))
