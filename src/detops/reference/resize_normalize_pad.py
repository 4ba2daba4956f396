"""What `resize_normalize_pad` means: two products with a matrix of weights, an image at a time."""

import torch
from torch import Tensor


def weights(size: int, resized: int, antialias: bool) -> Tensor:
    """How much each pixel of an axis counts for each resized one.

    Pixels are unit squares, so the centre of resized pixel i lies at c = (i + 1/2) size / resized. Pixel j counts
    with a tent around it, max(0, 1 - |j + 1/2 - c| / r), and the pixels within the image are brought to a sum of 1
    (which is what repeating the edge gives). r is 1 pixel: bilinear interpolation with half-pixel centres. With
    `antialias`, an axis that shrinks has r = size / resized.

    Returns:
        (resized, size), float64.
    """
    center = (torch.arange(resized, dtype=torch.float64) + 0.5) * size / resized
    pixel = torch.arange(size, dtype=torch.float64) + 0.5
    r = max(1.0, size / resized) if antialias else 1.0
    tent = (1 - (pixel - center[:, None]).abs() / r).clamp(min=0)  # (resized, size)
    return tent / tent.sum(1, keepdim=True)


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
    """Return the images as one batch: resized, in another order of channels, normalised, padded, and cast.

    Nothing is rounded before the cast.

    Args:
        images: B of (3, H, W), or (1, H, W) for grey, which counts for all three channels; uint8, any strides.
        sizes: Resized height and width of each image in turn, 2 B numbers.
        height: Of the batch, at least that of every resized image.
        width: Likewise.
        mean: Of each channel of the result, on the scale 0 .. 255.
        std: Likewise; the result is (value - mean) / std.
        reverse_channels: Swap the first channel with the last.
        antialias: Average over all that a resized pixel covers, where an axis shrinks.
        dtype: Of the result.

    Returns:
        (B, 3, height, width), 0 to the right of each image and below it.

    Reference:
        The weights of OpenCV's INTER_LINEAR, and with `antialias` of Pillow's BILINEAR.
    """
    batch = torch.zeros(len(images), 3, height, width, dtype=torch.float64)
    for b, image in enumerate(images):
        h, w = sizes[2 * b : 2 * b + 2]
        rows, columns = (weights(*pair, antialias) for pair in ((image.shape[1], h), (image.shape[2], w)))
        resized = rows @ image.cpu().double() @ columns.T  # (h, H) (C, H, W) (W, w) -> (C, h, w)
        resized = resized.expand(3, h, w)
        if reverse_channels:
            resized = resized.flip(0)
        offset, divisor = (torch.tensor(t, dtype=torch.float64)[:, None, None] for t in (mean, std))
        batch[b, :, :h, :w] = (resized - offset) / divisor
    return batch.to(dtype)
