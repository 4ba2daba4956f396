"""The definition of `top_logits`: each level's highest class logits."""

import torch
from torch import Tensor


def top_logits(logits: list[Tensor], least: float, count: int) -> tuple[Tensor, Tensor]:
    """Return the highest logits of each image and level, those of all levels together in descending order.

    A logit that is NaN or below `least` is none. Of equal ones the lower index comes first.

    Args:
        logits: Each level's (B, C, H, W), of one dtype.
        least: Lowest logit to return; minus infinity for all.
        count: How many of each level; all, if a level has fewer.

    Returns:
        (B, K) float32 logits, NaN in the places at the end that none is left for; and (B, K) int64 indices, of a point
        times C plus the class, where points are counted level after level, row by row; 0 for none. K is the sum over
        levels of the lower of `count` and the number of logits.
    """
    batch, classes = logits[0].shape[:2]
    sizes = [level.shape[1] * level.shape[2] * level.shape[3] for level in logits]
    width = sum(min(count, size) for size in sizes)
    values = torch.full((batch, width), torch.nan)
    index = torch.zeros(batch, width, dtype=torch.int64)
    for b in range(batch):
        found: list[tuple[float, int]] = []
        start = 0
        for level, size in zip(logits, sizes, strict=True):
            flat = level[b].permute(1, 2, 0).reshape(-1).float().tolist()
            known = [(-x, start + i) for i, x in enumerate(flat) if x >= least]
            found += sorted(known)[:count]
            start += size
        assert start % max(classes, 1) == 0
        for k, (x, i) in enumerate(sorted(found)):
            values[b, k], index[b, k] = -x, i
    return values, index
