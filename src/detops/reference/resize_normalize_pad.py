"""The definition of `resize_normalize_pad`: a product with a matrix of weights per axis, one image at a time."""

import torch
from torch import Tensor


def weights(size: int, resized: int, antialias: bool) -> Tensor:
    """Return the weight of each pixel of an axis in each resized pixel.

    Pixels are unit squares, so the centre of resized pixel i lies at c = (i + 1/2) size / resized. Pixel j has the
    weight max(0, 1 - |j + 1/2 - c| / r), and the weights of the pixels within the image are normalised to a sum of 1
    (for r = 1 this equals repeating the edge). r is 1 pixel, which is bilinear interpolation with half-pixel centres.
    With `antialias`, an axis that shrinks has r = size / resized.

    Args:
        size: Pixels of the axis.
        resized: Pixels of the resized axis.
        antialias: Widen the filter where the axis shrinks.

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
    """Return the images as one batch: resized, channels reordered, normalised, padded, and cast.

    Nothing is rounded before the cast.

    Args:
        images: B of (3, H, W), or (1, H, W) for grey, which is repeated in all three channels; uint8, any strides.
        sizes: Resized height and width of each image in turn, 2 B numbers.
        height: Height of the batch, at least that of every resized image.
        width: Width of the batch, at least that of every resized image.
        mean: Mean of each channel of the result, on the scale 0 .. 255.
        std: Standard deviation of each channel of the result; it becomes (value - mean) / std.
        reverse_channels: Swap the first channel with the last.
        antialias: Average over all pixels that a resized pixel covers, where an axis shrinks.
        dtype: Dtype of the result.

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
