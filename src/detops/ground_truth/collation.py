"""`collate`: samples of a data set to a batch of images and their `GroundTruth`, in a `DataLoader`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from detops.ground_truth.ground_truth import GroundTruth


def collate(
    samples: Sequence[Any], *, pad_to: int | None = None, first_label: int = 0, size_divisor: int = 1
) -> tuple[Tensor, GroundTruth]:
    """Make a batch of images and ground truth: `DataLoader(..., collate_fn=detops.collate)`.

    Options go in by `functools.partial(detops.collate, pad_to=100)`.

    Args:
        samples: (image, target) each; images (C, H, W) tensors of one C and dtype. A target is a dict of torchvision's
            ("boxes", "labels", see `GroundTruth.from_dicts`) or of Transformers' ("boxes" normalised, "class_labels").
            Or (image, boxes, labels).
        pad_to: Boxes per image, so that all batches have one shape; None for as many as the largest sample has.
        first_label: Label of the first class, as in `GroundTruth.from_dicts`.
        size_divisor: Sides of the batch are rounded up to multiples of this.

    Returns:
        (B, C, H, W) images, zeros at the right and below where sizes differ; their ground truth, with `image_sizes`
        where there is such padding.

    Raises:
        TypeError: A sample has another form.
        ValueError: A sample has more boxes than `pad_to`, or shapes do not fit.

    Example:
        >>> sample = (torch.zeros(3, 8, 6), {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([2])})
        >>> images, targets = collate([sample, sample], pad_to=5)
        >>> images.shape, targets
        (torch.Size([2, 3, 8, 6]), GroundTruth(2 images, padded to 5 boxes, on cpu))
    """
    if not samples or not all(isinstance(sample, list | tuple) and len(sample) in (2, 3) for sample in samples):
        raise TypeError("samples: expected (image, target) or (image, boxes, labels) each")
    images, sizes = _stacked([sample[0] for sample in samples], size_divisor)
    padded = any(size != tuple(images.shape[2:]) for size in sizes)
    if len(samples[0]) == 3:
        dicts = [{"boxes": boxes, "labels": labels} for _, boxes, labels in samples]
    else:
        dicts = [target for _, target in samples]
    if all("class_labels" in target for target in dicts):
        targets = GroundTruth.from_transformers(dicts, image_sizes=sizes, pad_to=pad_to)
    else:
        targets = GroundTruth.from_dicts(dicts, first_label=first_label, image_sizes=sizes, pad_to=pad_to)
    return images, targets if padded else replace(targets, image_sizes=None)


def _stacked(images: Sequence[Any], size_divisor: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Images in one batch, and the height and width of each."""
    for image in images:
        if not isinstance(image, Tensor) or image.dim() != 3:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"samples: expected images as tensors (C, H, W), got {got}")
    sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
    height, width = (-(-max(side) // size_divisor) * size_divisor for side in zip(*sizes, strict=True))
    batch = images[0].new_zeros(len(images), len(images[0]), height, width)
    for row, image, (h, w) in zip(batch, images, sizes, strict=True):
        row[:, :h, :w] = image
    return batch, sizes
