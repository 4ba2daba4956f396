"""Bringing what takes part to the front."""

import torch
from torch import Tensor


def true_first(mask: Tensor) -> Tensor:
    """Return (B, M) int64: the indices of the true entries of each row, then those of the others, each in their order.

    By counting. A stable sort gives the same, but a GPU needs several kernels for it, and ONNX has none.
    """
    ahead = mask.cumsum(1)
    index = torch.arange(mask.shape[1], device=mask.device).expand_as(ahead)
    place = torch.where(mask, ahead - 1, ahead[:, -1:] + index - ahead)
    return torch.zeros_like(place).scatter(1, place, index)
