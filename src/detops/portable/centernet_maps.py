"""`centernet_maps` in PyTorch: one scatter for all maps."""

import torch
from torch import Tensor


def centernet_maps(
    wh: Tensor, offset: Tensor, index: Tensor, used: Tensor, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    """Write all boxes at once; arguments and meaning as in `detops.reference.centernet_maps`."""
    size = height * width
    # One more cell takes the boxes that are not used, so that no cell is written twice.
    cell = index.to(torch.int64).where(used & (index >= 0) & (index < size), size)
    values = torch.cat([wh, offset, torch.ones_like(wh[..., :1])], -1).to(dtype)  # (B, N, 5)
    maps = torch.zeros(len(index), 5, size + 1, dtype=dtype, device=index.device)
    maps = maps.scatter(2, cell[:, None].expand(-1, 5, -1), values.transpose(1, 2))
    return maps[..., :size].reshape(-1, 5, height, width).contiguous()
