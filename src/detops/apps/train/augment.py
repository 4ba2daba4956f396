"""Augmentation of a whole batch at once, on its device: bytes in, normalised images and their boxes out."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from detops.apps.data.dataset import MEAN, MULTIPLE, STD, Batch

VISIBLE = 0.3  # objects with a smaller visible fraction after cropping get label -1, which means ignored


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied at random.

    Attributes:
        flip: Mirror half of the images left to right.
        flip_vertical: Mirror half of the images top to bottom.
        multi_scale: Multiply or divide the height and width of a batch by up to 1 + this.
        zoom: Likewise scale each image within the batch, about a random point.
        color: Vary brightness, contrast and saturation by up to this fraction.
    """

    flip: bool = True
    flip_vertical: bool = False
    multi_scale: float = 0.2
    zoom: float = 0.25
    color: float = 0.2


def centered(images: Tensor) -> Tensor:
    """Normalise images (B, 3, H, W) to float32 with mean 0 and standard deviation 1 (of ImageNet)."""
    mean, std = (images.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (MEAN, STD))
    return (images - mean) / std


def augment(batch: Batch, how: Augmentation) -> Batch:
    """Flip, resize, zoom, shift and recolour a batch: one sampling and one matrix product for all images.

    Random numbers come from torch's default CPU generator, whatever the device of the batch.

    Args:
        batch: Batch of `CocoImages`.
        how: What to vary.

    Returns:
        The batch, normalised. Boxes are cropped to the image; those with little left (`VISIBLE`) get label -1.
    """
    count, (height, width) = len(batch.images), batch.images.shape[2:]
    device = batch.images.device
    factor = _between(1 + how.multi_scale, 1)
    out_height, out_width = (max(1, round(side * float(factor) / MULTIPLE)) * MULTIPLE for side in (height, width))
    # Per axis (x, y), in units of half the image: out = zoom * in + shift, in and out from -1 to 1.
    zoom = _between(1 + how.zoom, count)[:, None].repeat(1, 2)
    reach = (zoom - 1).abs().clamp(min=0.1 if how.zoom else 0.0)
    shift = (2 * torch.rand(count, 2) - 1) * reach
    mirrored = torch.rand(count, 2) < 0.5
    zoom = torch.where(mirrored & torch.tensor([how.flip, how.flip_vertical]), -zoom, zoom)
    light = how.color * (2 * torch.rand(count, 1, 1) - 1)
    color, light, zoom, shift = (v.to(device) for v in (_recoloring(count, how.color), light, zoom, shift))

    theta = torch.diag_embed(1 / zoom)  # (B, 2, 2), from out to in
    theta = torch.cat([theta, (-shift / zoom)[..., None]], -1)
    grid = F.affine_grid(theta, [count, 3, out_height, out_width], align_corners=False)
    images = F.grid_sample(centered(batch.images), grid, "bilinear", "zeros", align_corners=False)
    images = torch.baddbmm(light, color, images.flatten(2)).view_as(images)

    sides = torch.tensor([width, height], device=device)
    out_sides = torch.tensor([out_width, out_height], device=device)
    targets = batch.targets
    whole, boxes = _moved(targets.boxes, zoom, shift, sides, out_sides)
    remains = _area(boxes) > VISIBLE * _area(whole)
    labels = targets.labels.where(remains, -1)
    ignored = targets.ignored
    if ignored is not None:
        ignored = _moved(ignored, zoom, shift, sides, out_sides)[1]
    return Batch(images, replace(targets, boxes=boxes, labels=labels, ignored=ignored), batch.rows)


def _between(factor: float, count: int) -> Tensor:
    """Draw factors from 1 / factor to factor, as often below 1 as above."""
    return ((2 * torch.rand(count) - 1) * math.log(factor)).exp()


def _recoloring(count: int, share: float) -> Tensor:
    """Draw colour matrices (B, 3, 3) that vary contrast and saturation."""
    contrast, saturation = (1 + share * (2 * torch.rand(count, 1, 1) - 1) for _ in range(2))
    gray = torch.full((3, 3), 1 / 3)
    return contrast * (gray + saturation * (torch.eye(3) - gray))


def _moved(boxes: Tensor, zoom: Tensor, shift: Tensor, sides: Tensor, out_sides: Tensor) -> tuple[Tensor, Tensor]:
    """Move boxes (B, N, 4) with their images: the whole boxes, and the same cropped to the image."""
    corners = boxes.unflatten(-1, (2, 2)) * 2 / sides - 1  # (B, N, 2 corners, 2 axes)
    corners = corners * zoom[:, None, None] + shift[:, None, None]
    corners = (corners + 1) / 2 * out_sides
    whole = torch.cat([corners.amin(2), corners.amax(2)], -1)
    return whole, torch.minimum(whole.clamp(min=0), out_sides.repeat(2))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
