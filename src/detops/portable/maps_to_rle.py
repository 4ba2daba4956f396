"""`maps_to_rle` in whole-batch PyTorch: what runs where there is no kernel.

Only those columns of the image are sampled that a cell above the threshold reaches, a bounded number at once. The host
learns how many, as it must learn the result's size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.geometry.resizing import enlarge, reached_columns, weights
from detops.geometry.run_lengths import encode
from detops.portable._runs import CHUNK_VALUES, find_runs, runs_per_mask


def maps_to_rle(
    maps: Tensor,
    y: Tensor,
    x: Tensor,
    via_y: Tensor | None,
    via_x: Tensor | None,
    windows: Tensor | None,
    threshold: float,
    compress: bool,
) -> tuple[Tensor, Tensor]:
    """Run lengths of all maps; arguments and meaning as in `detops.reference.maps_to_rle`."""
    number, height, width = len(maps), len(y), len(x)
    if windows is None:
        windows = torch.tensor([[0, 0, width, height]], device=maps.device).expand(number, 4)
    cells = max(maps.shape[1:].numel(), 1 if via_y is None or via_x is None else len(via_y) * len(via_x))
    step = max(1, CHUNK_VALUES // cells)
    empty = windows.new_zeros(0, dtype=torch.int64)
    parts = [(empty, empty, empty)]
    for begin in range(0, number, step):
        grid = maps[begin : begin + step].to(torch.float32)
        if via_y is not None and via_x is not None:
            grid = enlarge(grid, via_y, via_x)
        owner, starts, ends = _runs(grid, y, x, windows[begin : begin + step], threshold)
        parts.append((owner + begin, starts, ends))
    owner, starts, ends = (torch.cat(t) for t in zip(*parts, strict=True))
    return encode(starts, ends, runs_per_mask(owner, number), height * width, compress)


def _runs(grid: Tensor, y: Tensor, x: Tensor, windows: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the runs of ones of some masks: the mask of each, its first position and the one after its last."""
    height, width, rows = len(y), len(x), grid.shape[1]
    before, near, far = weights(x, grid.shape[2])
    row, weight, next_weight = weights(y, rows)
    after = (row + 1).clamp(max=rows - 1)
    column = F.pad(grid, (0, 1), mode="replicate").mT  # (n, w + 1, h)
    x1, y1, x2, y2 = windows.T[:, :, None]
    pixels, lines = torch.arange(width, device=x.device), torch.arange(height, device=x.device)

    def sample(n: Tensor, place: Tensor) -> Tensor:
        i = place.clamp(max=width - 1)
        wide = column[n, before[i]] * near[i, None] + column[n, before[i] + 1] * far[i, None]  # (k, h)
        inside = wide[:, row] * weight + wide[:, after] * next_weight > threshold  # (k, H)
        windowed: Tensor = inside & (lines >= y1[n]) & (lines < y2[n])
        return windowed

    reached = reached_columns(grid, before, threshold) & (pixels >= x1) & (pixels < x2)
    return find_runs(reached, height, max(1, CHUNK_VALUES // max(height, rows)), sample)
