"""Masks at the size of their boxes, or of what they cover."""

from typing import NamedTuple

import torch
from torch import Tensor

from detops import ops
from detops.geometry.positions import position_dtype
from detops.masks.placement import reach
from detops.masks.resize import Size


class MaskCrop(NamedTuple):
    """A mask at the size of its box.

    Attributes:
        mask: (h, w) bool.
        x: Column of the image where the crop begins.
        y: Row of the image where the crop begins.
    """

    mask: Tensor
    x: int
    y: int


def crops_in_boxes(masks: Tensor, boxes: Tensor, image_size: Size, threshold: float) -> list[MaskCrop]:
    """Paste masks (N, h, w) into the pixels that their boxes (N, 4) reach."""
    windows = reach(boxes, masks.shape[-2:], image_size, threshold).to(torch.int64)
    shifted = boxes.to(position_dtype(windows.device)) - windows[:, :2].repeat(1, 2)
    result = []
    for n, (left, top, right, bottom) in enumerate(windows.tolist()):
        if left < right and top < bottom:
            size = {"height": bottom - top, "width": right - left}
            crop = ops.paste_masks(masks=masks[n : n + 1], boxes=shifted[n : n + 1], threshold=threshold, **size)[0]
        else:
            crop = torch.zeros(0, 0, dtype=torch.bool, device=windows.device)
        result.append(MaskCrop(crop, left, top))
    return result


def crops_of_runs(counts: Tensor, offsets: Tensor, image_size: Size) -> list[MaskCrop]:
    """Make the pixels of each mask's extents, from run lengths (T,) that begin at `offsets` (N + 1,)."""
    height, width = image_size
    extents = ops.rle_measures(counts, offsets, height=height, width=width)[1].tolist()
    ends, result = offsets.tolist(), []
    for n, (left, top, right, bottom) in enumerate(extents):
        own = counts[ends[n] : ends[n + 1]]
        crop = ops.rle_to_masks(
            own, offsets.new_tensor([0, len(own)]), height=height, width=width, x=left, y=top, rows=bottom - top,
            columns=right - left, packed=False,
        )  # fmt: skip
        result.append(MaskCrop(crop[0], left, top))
    return result
