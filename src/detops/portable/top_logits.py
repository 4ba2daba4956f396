"""`top_logits` in whole-batch PyTorch: used on devices without a kernel."""

import torch
from torch import Tensor

from detops.geometry.ordering import ordered_keys


def top_logits(logits: list[Tensor], least: float, count: int) -> tuple[Tensor, Tensor]:
    """Return logits and indices; arguments and meaning as in `detops.reference.top_logits`."""
    flat = torch.cat([level.flatten(2).transpose(1, 2).flatten(1).to(torch.float32) for level in logits], 1)
    known = flat >= least
    sizes = [level.shape[1] * level.shape[2] * level.shape[3] for level in logits]
    keys = torch.where(known, ordered_keys(flat), torch.iinfo(torch.int64).min)
    tops = [part.topk(min(count, part.shape[1]), 1).values for part in keys.split(sizes, 1)]
    best = torch.cat(tops, 1).sort(1, True).values
    exists = best > torch.iinfo(torch.int64).min
    index = (-best & (2**32 - 1)).where(exists, 0)
    if flat.shape[1] == 0:
        return flat.new_empty(best.shape), index
    return flat.gather(1, index).where(exists, torch.nan), index
