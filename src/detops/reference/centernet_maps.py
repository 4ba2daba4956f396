"""The definition of `centernet_maps`: sizes and offsets of boxes, each written to its cell."""

import torch
from torch import Tensor


def centernet_maps(
    wh: Tensor, offset: Tensor, index: Tensor, used: Tensor, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    """Return maps of the sizes and offsets of boxes, and of which cells have one.

    Args:
        wh: (B, N, 2), width and height.
        offset: (B, N, 2), along x and y.
        index: (B, N) integers, cells as y * W + x.
        used: (B, N) bool, which boxes are written; each image uses a cell at most once. A cell beyond the map is none.
        height: H.
        width: W.
        dtype: Dtype of the maps.

    Returns:
        (B, 5, H, W): width, height, both offsets, and 1; all are 0 at cells that no box uses.
    """
    maps = torch.zeros(len(index), 5, height * width, dtype=dtype)
    for b in range(len(index)):
        for n, cell in enumerate(index[b].tolist()):
            if used[b, n] and 0 <= cell < height * width:
                maps[b, :2, cell], maps[b, 2:4, cell], maps[b, 4, cell] = wh[b, n].to(dtype), offset[b, n].to(dtype), 1
    return maps.view(-1, 5, height, width)
