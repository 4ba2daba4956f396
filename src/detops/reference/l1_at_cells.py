"""The definition of `l1_at_cells`: the absolute differences of a map and its targets at cells, one by one."""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype


def l1_at_cells(
    preds: Tensor, target: Tensor, index: Tensor, used: Tensor, scale: Tensor | None, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return the sum of absolute differences at the cells that are used, and its gradient.

    Args:
        preds: (B, D, H, W).
        target: (B, N, D).
        index: (B, N) integers, cells as y * W + x.
        used: (B, N) bool, which of them count; each image uses a cell at most once.
        scale: 0-d factor of the loss; None for 1.
        with_gradient: Whether the gradient is wanted.

    Returns:
        0-d loss in the dtype that the map is computed in; the gradient (B, D, H, W) in the dtype of the map, which is
        empty if it is not wanted. A cell beyond the map is not used. Where both are equal, or one is NaN, the gradient
        is 0.
    """
    factor = 1.0 if scale is None else float(scale)
    maps = preds.flatten(2)
    loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros(maps.shape, dtype=torch.float64)
    for b in range(len(index)):
        for n, cell in enumerate(index[b].tolist()):
            if used[b, n] and 0 <= cell < maps.shape[2]:
                difference = maps[b, :, cell].double() - target[b, n].double()
                loss += factor * difference.abs().sum()
                gradient[b, :, cell] = factor * difference.sign()
    gradient = gradient.view(preds.shape).to(preds.dtype) if with_gradient else preds.new_empty(0)
    return loss.to(accumulate_dtype(preds)), gradient
