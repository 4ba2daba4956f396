"""`collate`: samples of a data set to a batch of images and their `GroundTruth`, in a `DataLoader`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from detops.ground_truth.ground_truth import GroundTruth


def collate(
    samples: Sequence[Any],
    *,
    pad_to: int | None = None,
    pad_ignored_to: int | None = None,
    first_label: int = 0,
    size_divisor: int = 1,
) -> tuple[Tensor, GroundTruth]:
    """Make a batch of images and ground truth: `DataLoader(..., collate_fn=detops.collate)`.

    Options go in by `functools.partial(detops.collate, pad_to=100)`.

    Args:
        samples: Pairs (image, target), or triples (image, boxes, labels). Images are (C, H, W) tensors of one C and
            dtype. A target is a dict of torchvision's ("boxes", "labels", as in `GroundTruth.from_dicts`) or of
            Transformers' ("boxes" normalised, "class_labels").
        pad_to: Boxes per image, so that all batches have one shape; None for as many as the largest sample has.
        pad_ignored_to: Ignored regions (crowds) per image, for the same reason, if the data set has any.
        first_label: Label of the first class, as in `GroundTruth.from_dicts`.
        size_divisor: Sides of the batch are rounded up to multiples of this.

    Returns:
        (B, C, H, W) images, padded with zeros at the right and below if sizes differ; and their ground truth, with
        `image_sizes` if there is padding.

    Raises:
        TypeError: A sample has another form.
        ValueError: A sample has more boxes than `pad_to`, or shapes, dtypes or devices do not match.

    Example:
        >>> import torch
        >>> sample = (torch.zeros(3, 8, 6), {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([2])})
        >>> images, targets = collate([sample, sample], pad_to=5)
        >>> images.shape, targets
        (torch.Size([2, 3, 8, 6]), GroundTruth(2 images, padded to 5 boxes, on cpu))
    """
    if size_divisor < 1:
        raise ValueError(f"size_divisor: expected at least 1, got {size_divisor!r}")
    if not samples:
        raise ValueError("samples: expected at least one, got none")
    for b, sample in enumerate(samples):
        if not isinstance(sample, list | tuple) or len(sample) not in (2, 3):
            got = f"{len(sample)} items" if isinstance(sample, list | tuple) else type(sample).__name__
            raise TypeError(f"samples: sample {b}: expected (image, target) or (image, boxes, labels), got {got}")
    images, sizes = _stacked([sample[0] for sample in samples], size_divisor)
    padded = any(size != tuple(images.shape[2:]) for size in sizes)
    dicts = [sample[1] if len(sample) == 2 else {"boxes": sample[1], "labels": sample[2]} for sample in samples]
    if all(isinstance(target, Mapping) and "class_labels" in target for target in dicts):
        targets = GroundTruth.from_transformers(dicts, image_sizes=sizes, pad_to=pad_to, pad_ignored_to=pad_ignored_to)
    else:
        targets = GroundTruth.from_dicts(
            dicts, first_label=first_label, image_sizes=sizes, pad_to=pad_to, pad_ignored_to=pad_ignored_to
        )
    return images, targets if padded else replace(targets, image_sizes=None)


def _stacked(images: Sequence[Any], size_divisor: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return the images in one batch, and the height and width of each."""
    for b, image in enumerate(images):
        where = f"samples: sample {b}: expected"
        if not isinstance(image, Tensor) or image.dim() != 3:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"{where} an image as a tensor (C, H, W), got {got}")
        if len(image) != len(images[0]):
            raise ValueError(f"{where} {len(images[0])} channels, as the first image has, got {len(image)}")
        if (image.dtype, image.device) != (images[0].dtype, images[0].device):
            first = f"{images[0].dtype} on {images[0].device}"
            raise ValueError(f"{where} {first}, as the first image, got {image.dtype} on {image.device}")
    sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
    height, width = (-(-max(side) // size_divisor) * size_divisor for side in zip(*sizes, strict=True))
    batch = images[0].new_zeros(len(images), len(images[0]), height, width)
    for row, image, (h, w) in zip(batch, images, sizes, strict=True):
        row[:, :h, :w] = image
    return batch, sizes
