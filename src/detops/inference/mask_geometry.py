"""Which pixels of an image a mask in a box can reach, and the boxes in which other libraries' pasting is detops'."""

import torch
from torch import Tensor


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype of positions: MPS has no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def as_torchvision(boxes: Tensor, mask_size: tuple[int, ...]) -> Tensor:
    """The boxes (N, 4) in which sampling at pixel centres is what torchvision does.

    It pads a mask by a cell on either side, grows the box as much, truncates it to whole pixels, and resizes the mask
    to them, the last one included. Without the padding that is a box again, a cell smaller on either side. Rounded as
    there, in float32: truncation would tell.

    Reference:
        torchvision's `paste_masks_in_image`, `padding=1`.
    """
    box = boxes if boxes.dtype == torch.float64 else boxes.to(torch.float32)
    cells = torch.tensor(mask_size[::-1], device=box.device, dtype=wide(box))
    half = (box[:, 2:] - box[:, :2]) * 0.5
    center = (box[:, 2:] + box[:, :2]) * 0.5
    grown = half * ((mask_size[-1] + 2) / mask_size[-1])
    low, high = ((center + side).trunc().to(cells.dtype) for side in (-grown, grown))
    pixels = high - low + 1
    low = low + pixels / (cells + 2)
    usable = (half > 0).all(1, keepdim=True)
    return torch.cat([low, low + pixels * cells / (cells + 2)], 1).where(usable, torch.nan)


def reach(boxes: Tensor, mask_size: tuple[int, ...], image_size: tuple[int, int], threshold: float) -> Tensor:
    """The whole pixels in which masks can be at least a threshold.

    These are the pixels that the box touches. Beyond its last cell's centre, a probability of at most 1 falls to the
    threshold within 1 - threshold cells, of which half a cell is within the box.

    Args:
        boxes: (N, 4) xyxy.
        mask_size: Height and width of the masks.
        image_size: Height and width of the image.
        threshold: Least value of a pixel.

    Returns:
        (N, 4) xyxy, whole numbers as floats; 0 where nothing is reached.
    """
    box = boxes.to(wide(boxes))
    low, high = box[:, :2], box[:, 2:]
    cells = torch.tensor(mask_size[::-1], device=box.device)
    limit = torch.tensor(image_size[::-1], device=box.device, dtype=box.dtype)
    beyond = max(0.0, 0.5 - threshold) * (high - low) / cells
    first, last = (low - beyond).floor().clamp(min=0), torch.minimum((high + beyond).ceil(), limit)
    usable = (box.isfinite().all(1) & (low < high).all(1) & (first < last).all(1))[:, None]
    return torch.cat([first, last], 1).where(usable, 0)
