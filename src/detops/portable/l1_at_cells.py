"""`l1_at_cells` in PyTorch: one gather, and one scatter for the gradient."""

import torch
from torch import Tensor

from detops.arguments import accumulate_dtype


def l1_at_cells(
    preds: Tensor, target: Tensor, index: Tensor, used: Tensor, scale: Tensor | None, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Compute all cells at once; arguments and meaning as in `detops.reference.l1_at_cells`."""
    maps, compute = preds.flatten(2), accumulate_dtype(preds)
    batch, depth, size = maps.shape
    # One more cell takes what is not used, so that no cell is written twice.
    cell = index.to(torch.int64).where(used & (index >= 0) & (index < size), size)
    cells = cell[:, None].expand(-1, depth, -1)  # (B, D, N)
    padded = torch.cat([maps.to(compute), maps.new_zeros((batch, depth, 1), dtype=compute)], 2)
    difference = padded.gather(2, cells) - target.to(compute).transpose(1, 2)
    difference = difference.where(cells < size, 0)
    total = difference.abs().sum()
    loss = total if scale is None else total * scale.to(compute)
    if not with_gradient:
        return loss, preds.new_empty(0)
    slope = difference.sign() if scale is None else difference.sign() * scale.to(compute)
    gradient = torch.zeros((batch, depth, size + 1), dtype=preds.dtype, device=preds.device)
    gradient = gradient.scatter(2, cells, slope.to(preds.dtype))
    return loss, gradient[..., :size].reshape(preds.shape).contiguous()
