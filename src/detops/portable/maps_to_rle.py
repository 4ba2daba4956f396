"""`maps_to_rle` in whole-batch PyTorch: what runs where there is no kernel.

Only those columns of the image are sampled that a cell above the threshold reaches, a bounded number at once. The host
learns how many, as it must learn the result's size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detops.geometry.resizing import enlarge, weights
from detops.geometry.run_lengths import encode

CHUNK_VALUES = 1 << 20  # pixels at once
ULPS = 2.0**-20  # 16 ulps of float32: more than rounding adds to a value


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
    runs = torch.zeros(number, dtype=torch.int64, device=maps.device).scatter_add_(0, owner, torch.ones_like(owner))
    return encode(starts, ends, runs, height * width, compress)


def _runs(grid: Tensor, y: Tensor, x: Tensor, windows: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the runs of ones of some masks: the mask of each, its first position and the one after its last."""
    height, width, rows = len(y), len(x), grid.shape[1]
    before, near, far = weights(x, grid.shape[2])
    column = F.pad(grid, (0, 1), mode="replicate").mT  # (n, w + 1, h)
    above = (column > threshold - abs(threshold) * ULPS).any(2)
    x1, y1, x2, y2 = windows.T[:, :, None]
    pixels = torch.arange(width, device=x.device)
    reached = (above[:, before] | above[:, before + 1]) & (pixels >= x1) & (pixels < x2)
    # One more column, of zeros: there every last run ends, and from there the next mask goes on.
    reached = F.pad(reached, (0, 1))
    which, place = (reached | reached.roll(1, 1)).nonzero(as_tuple=True)  # (K,)
    row, weight, next_weight = weights(y, rows)
    after = (row + 1).clamp(max=rows - 1)
    lines = torch.arange(height, device=x.device)
    last = torch.zeros(1, dtype=torch.bool, device=x.device)  # pixel of the column before
    parts = []
    step = max(1, CHUNK_VALUES // max(height, rows))
    for begin in range(0, len(which), step):
        n, i = which[begin : begin + step], place[begin : begin + step]
        j = i.clamp(max=width - 1)
        wide = column[n, before[j]] * near[j, None] + column[n, before[j] + 1] * far[j, None]  # (k, h)
        inside = wide[:, row] * weight + wide[:, after] * next_weight > threshold  # (k, H)
        inside &= reached[n, i][:, None] & (lines >= y1[n]) & (lines < y2[n])
        former = torch.cat([last, inside.flatten()[:-1]]).view_as(inside)
        k, line = (inside ^ former).nonzero(as_tuple=True)
        parts.append((n[k], i[k] * height + line, inside[k, line]))
        last = inside[-1, -1:]
    none = which.new_zeros(0)
    owner, at, begins = (torch.cat(t) for t in zip((none, none, none.to(torch.bool)), *parts, strict=True))
    return owner[begins], at[begins], at[~begins]
