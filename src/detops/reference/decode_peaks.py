"""The definition of `decode_peaks`: the highest local maxima of a heatmap, and the box at each, cell by cell."""

import math

import torch
from torch import Tensor


def decode_peaks(
    logits: Tensor, wh: Tensor, offset: Tensor, kernel: int, scale_x: float, scale_y: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest peaks of each image in descending order, and their boxes.

    A cell is a peak if no logit of its class in the window around it is higher, or NaN, and its own is neither NaN nor
    minus infinity. Of equal peaks the lower class comes first, then the higher row on the map, then the left column. In
    cells, the centre of a box is the peak's column and row plus the offset there. All is computed in float32.

    Args:
        logits: (B, C, H, W).
        wh: (B, 2, H, W), width and height in cells.
        offset: (B, 2, H, W), x and y of a centre minus its cell.
        kernel: Side of the window in cells, odd.
        scale_x: Pixels per cell.
        scale_y: Pixels per cell.
        count: How many peaks; all, if there are fewer cells.

    Returns:
        (B, K, 4) float32 boxes, xyxy in pixels; (B, K) int64 labels; (B, K) float32 logits. K is the lower of `count`
        and the number of cells of all classes; a place that no peak is left for has box 0, label -1 and logit NaN.

    Reference:
        Zhou et al., "Objects as Points", 2019, section 4.
    """
    batch, classes, height, width = logits.shape
    logits, wh, offset = (t.to(torch.float32) for t in (logits, wh, offset))
    places = min(count, classes * height * width)
    boxes = torch.zeros(batch, places, 4)
    labels = torch.full((batch, places), -1)
    values = torch.full((batch, places), torch.nan)
    reach = kernel // 2
    for b in range(batch):
        peaks: list[tuple[float, int, int, int]] = []
        for c in range(classes):
            for y in range(height):
                for x in range(width):
                    window = logits[b, c, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
                    logit = logits[b, c, y, x]
                    if (logit >= window).all() and logit > -math.inf:
                        peaks.append((-logit.item(), c, y, x))
        for k, (negative, c, y, x) in enumerate(sorted(peaks)[:places]):
            center, half = torch.tensor([x, y]) + offset[b, :, y, x], wh[b, :, y, x] / 2
            scale = torch.tensor([scale_x, scale_y], dtype=torch.float32)
            boxes[b, k] = torch.cat([(center - half) * scale, (center + half) * scale])
            labels[b, k], values[b, k] = c, -negative
    return boxes, labels, values
