"""`top_logits` in whole-batch PyTorch: used on devices without a kernel."""

import torch
from torch import Tensor


def top_logits(logits: list[Tensor], least: float, count: int) -> tuple[Tensor, Tensor]:
    """Return logits and indices; arguments and meaning as in `detops.reference.top_logits`."""
    flat = torch.cat([level.flatten(2).transpose(1, 2).flatten(1).to(torch.float32) for level in logits], 1)
    known = flat >= least
    sizes = [level.shape[1] * level.shape[2] * level.shape[3] for level in logits]
    keys = torch.where(known, _keys(flat), torch.iinfo(torch.int64).min)
    tops = [part.topk(min(count, part.shape[1]), 1).values for part in keys.split(sizes, 1)]
    best = torch.cat(tops, 1).sort(1, True).values
    exists = best > torch.iinfo(torch.int64).min
    index = (-best & (2**32 - 1)).where(exists, 0)
    if flat.shape[1] == 0:
        return flat.new_empty(best.shape), index
    return flat.gather(1, index).where(exists, torch.nan), index


def _keys(values: Tensor) -> Tensor:
    """Return int64 (B, M) that sort as float32 values do, and equal ones by their index, the lowest last.

    `torch.topk` does not define which of equal values it takes; these are all different: the bits of the value, changed
    so that they sort as integers, less the index.
    """
    bits = (values + 0.0).view(torch.int32)  # + 0.0 turns -0 into 0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    index = torch.arange(0, -values.shape[1], -1, device=values.device)
    return torch.add(index, bits, alpha=2**32)
