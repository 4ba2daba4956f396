"""What `maps_to_rle` means: enlarge each map to the image, cut it at a threshold, count its runs down the columns."""

import torch
from torch import Tensor

from detops.reference.masks_to_rle import run_lengths


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
    """Run lengths of low-resolution maps of an image, in COCO's form.

    A position s lies between cell c = floor(s) and the next, with the weights 1 - (s - c) and s - c; beyond the last
    cell, that is repeated. A pixel has the value of two nested interpolations, along x, then along y, in float32, every
    operation rounded on its own:

        along_x(row) = m[row, c] * (1 - f) + m[row, c + 1] * f
        value        = along_x(r) * (1 - g) + along_x(r + 1) * g

    and it belongs to the mask if that is above the threshold.

    Args:
        maps: (N, h, w) numbers; computed in float32.
        y: (H,) position of each row of the image among the maps' rows, in cells from the centre of the first;
            ascending, from 0 on.
        x: (W,) position of each column, likewise; H times W is less than 2^31.
        via_y: (H1,) rows of a first resize, whose result takes the place of the maps; None for none.
        via_x: (W1,) its columns.
        windows: (N, 4) xyxy in whole pixels of the image: all others are false; None for the whole image.
        threshold: In float32, of any sign.
        compress: Return the characters instead of the counts.

    Returns:
        As `detops.reference.masks_to_rle`: counts (T,) int32 or characters (T,) uint8, and (N + 1,) int64 offsets.

    Reference:
        `F.interpolate(mode="bilinear", align_corners=False)`, followed by `> threshold`, and `rleEncode` of
        pycocotools' maskApi.c.
    """
    return run_lengths(list(enlarged_and_cut(maps, y, x, via_y, via_x, windows, threshold)), compress)


def enlarged_and_cut(
    maps: Tensor,
    y: Tensor,
    x: Tensor,
    via_y: Tensor | None,
    via_x: Tensor | None,
    windows: Tensor | None,
    threshold: float,
) -> Tensor:
    """Make the pixels of all maps, (N, H, W) bool."""
    masks = torch.zeros(len(maps), len(y), len(x), dtype=torch.bool)
    for n, grid in enumerate(maps.float()):
        value = grid if via_y is None or via_x is None else _enlarged(grid, via_y, via_x)
        inside = _enlarged(value, y, x) > torch.tensor(threshold, dtype=torch.float32)
        x1, y1, x2, y2 = (0, 0, len(x), len(y)) if windows is None else map(int, windows[n].clamp(min=0).tolist())
        masks[n, y1:y2, x1:x2] = inside[y1:y2, x1:x2]
    return masks


def _enlarged(grid: Tensor, y: Tensor, x: Tensor) -> Tensor:
    column, after, f = _cells(x, grid.shape[1])
    wide = grid[:, column] * (1 - f) + grid[:, after] * f  # (h, W)
    row, below, g = _cells(y, grid.shape[0])
    return wide[row] * (1 - g)[:, None] + wide[below] * g[:, None]  # (H, W)


def _cells(positions: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cell before each position, the one after, and the weight of the latter."""
    before = positions.float().floor().clamp(max=cells - 1)
    return before.long(), (before + 1).clamp(max=cells - 1).long(), (positions.float() - before).clamp(max=1)
