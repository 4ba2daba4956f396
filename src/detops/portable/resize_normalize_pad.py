"""`resize_normalize_pad` in plain PyTorch, one image at a time: used on devices without a kernel."""

import torch
from torch import Tensor


def taps(size: int, resized: int, antialias: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which pixels of an axis make up each resized pixel, and their weights.

    Everything is an integer until the last division, so that indices are exact: in units of 1 / (2 resized) pixels,
    the distance of pixel j from the centre of resized pixel i is (2 j + 1) resized - (2 i + 1) size.

    Returns:
        Indices (resized, T) within the axis, and float32 weights that add up to 1.
    """
    reach = 2 * (max(size, resized) if antialias else resized)
    center = (2 * torch.arange(resized, device=device) + 1) * size
    first = torch.div(center - reach + resized, 2 * resized, rounding_mode="floor")
    pixel = first[:, None] + torch.arange(-(-reach // resized), device=device)  # (resized, T)
    weight = (reach - ((2 * pixel + 1) * resized - center[:, None]).abs()).clamp(min=0)
    weight = weight.where((pixel >= 0) & (pixel < size), 0)
    whole = weight.sum(1, keepdim=True).to(torch.float32)
    return pixel.clamp(0, size - 1), weight.to(torch.float32) / whole


def _resized(image: Tensor, dim: int, size: int, antialias: bool) -> Tensor:
    """Resize one axis of an image, in float32."""
    index, weight = taps(image.shape[dim], size, antialias, image.device)
    shape = [size if d == dim else 1 for d in range(3)]
    total = image.index_select(dim, index[:, 0]) * weight[:, 0].view(shape)
    for t in range(1, index.shape[1]):
        total = torch.addcmul(total, image.index_select(dim, index[:, t]), weight[:, t].view(shape))
    return total


def resize_normalize_pad(
    images: list[Tensor],
    sizes: list[int],
    height: int,
    width: int,
    mean: list[float],
    std: list[float],
    reverse_channels: bool,
    antialias: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Return the batch; arguments and meaning as in `detops.reference.resize_normalize_pad`."""
    batch = images[0].new_zeros((len(images), 3, height, width), dtype=dtype)
    for b, image in enumerate(images):
        h, w = sizes[2 * b : 2 * b + 2]
        resized = _resized(_resized(image, 1, h, antialias), 2, w, antialias)
        for c in range(3):
            channel = resized[(2 - c if reverse_channels else c) if len(resized) == 3 else 0]
            batch[b, c, :h, :w] = (channel - mean[c]) * (1 / std[c])
    return batch
