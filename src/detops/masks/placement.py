"""The pixels of an image that a mask can reach, and converting boxes so that detops pastes as torchvision does.

Sizes stay plain numbers, because tensors would have to be copied to the device, and the host would wait.
"""

from typing import Literal

import torch
from torch import Tensor

from detops.geometry.positions import position_dtype

Mode = Literal["detectron2", "torchvision"]  # the rule by which a mask is placed in its box

ROUNDING = 2.0**-23  # float32 moves the edge of a mask by less than this, in cells; a pixel in a box of 1e9 pixels


def reach(boxes: Tensor, mask_size: tuple[int, ...], image_size: tuple[int, int], threshold: float) -> Tensor:
    """Find the whole pixels in which masks can be at least a threshold.

    These are the pixels that the box touches, and those whose centre the mask reaches: beyond the centre of its last
    cell, a probability of at most 1 falls to the threshold within 1 - threshold cells, half a cell of which lies in
    the box.

    Args:
        boxes: (N, 4) xyxy.
        mask_size: Height and width of the masks.
        image_size: Height and width of the image.
        threshold: Least value of a pixel; with 0, all pixels that are sampled are reached, whatever the masks' values.

    Returns:
        (N, 4) xyxy, whole numbers as floats; 0 where nothing is reached.
    """
    box = boxes.to(position_dtype(boxes.device))
    usable, ends = torch.ones_like(box[:, 0], dtype=torch.bool), []
    for axis in (0, 1):
        low, high = box[:, axis], box[:, axis + 2]
        side = high - low
        beyond = max(0.0, 0.5 - threshold + ROUNDING) * side / mask_size[1 - axis]
        first = torch.minimum(low.floor(), (low - beyond - 0.5).ceil()).clamp(min=0)
        last = torch.maximum(high.ceil(), (high + beyond + 0.5).floor()).clamp(max=image_size[1 - axis])
        usable = usable & side.isfinite() & (side > 0) & (first < last)
        ends.append((first, last))
    (x1, x2), (y1, y2) = ends
    return torch.stack([x1, y1, x2, y2], 1).where(usable[:, None], 0)


def as_torchvision(boxes: Tensor, mask_size: tuple[int, ...]) -> Tensor:
    """Convert boxes (N, 4) so that sampling masks at pixel centres in them places the masks as torchvision does.

    torchvision pads a mask by one cell on each side, grows the box by as much, truncates it to whole pixels, and
    resizes the mask to these, the last one included. Without the padding the result is a box, one cell smaller on each
    side. Computed in float32 as in torchvision, because truncation can turn a rounding error into a whole pixel.

    Reference:
        torchvision's `paste_masks_in_image`, `padding=1`.
    """
    box = boxes if boxes.dtype == torch.float64 else boxes.to(torch.float32)
    positions = position_dtype(boxes.device)
    scale = (mask_size[-1] + 2) / mask_size[-1]  # torchvision uses that of the width for both axes
    usable, ends = torch.ones_like(box[:, 0], dtype=torch.bool), []
    for axis in (0, 1):
        cells = mask_size[1 - axis]
        half = (box[:, axis + 2] - box[:, axis]) * 0.5
        center = (box[:, axis + 2] + box[:, axis]) * 0.5
        grown = half * scale
        first, last = (center - grown).trunc().to(positions), (center + grown).trunc().to(positions)
        pixels = last - first + 1
        low = first + pixels / (cells + 2)
        usable = usable & (half > 0)
        ends.append((low, low + pixels * cells / (cells + 2)))
    (x1, x2), (y1, y2) = ends
    return torch.stack([x1, y1, x2, y2], 1).where(usable[:, None], torch.nan)
