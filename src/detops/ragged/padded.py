"""The one form that the rest of the package computes with: a padded tensor and its sample sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detops.diagnostics.checked import is_checked

from .batch import RaggedBatch

Batch = RaggedBatch | Tensor | Sequence[Tensor]


def as_padded(name: str, value: object) -> tuple[Tensor, Tensor | None]:
    """Brings a batch of boxes, in whatever form a caller has it, to a padded tensor.

    Args:
        name: What the caller calls it, for messages.
        value: A `RaggedBatch` with one batch dimension, a list of tensors, one an image, or a tensor, which is
            a batch without padding.

    Returns:
        The tensor `(B, N, ...)`, boxes along dimension 1, and the sample sizes `(B,)`, `None` for all N.

    Raises:
        TypeError: It is none of these.
        ValueError: It has several batch dimensions, or is an empty list, which has no shape.
    """
    if isinstance(value, Tensor):
        return value, None
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"{name}: expected a tensor for each image, got an empty list; for no images, a tensor")
        value = RaggedBatch.from_list(value)
    if not isinstance(value, RaggedBatch):
        raise TypeError(f"{name}: expected a RaggedBatch, a tensor or a list of tensors, got {type(value).__name__}")
    if value.num_batch_dims != 1:
        raise ValueError(
            f"{name}: expected one batch dimension, got {value.num_batch_dims}; see RaggedBatch.flatten_batch_dims"
        )
    return value.get_non_uniform_dimension_transposed_to(1).tensor, value.sample_sizes


def boxes_with_labels(boxes: object, labels: object) -> tuple[Tensor, Tensor, Tensor | None]:
    """Brings boxes and their labels to padded tensors.

    Args:
        boxes: As `as_padded` takes it.
        labels: Likewise.

    Returns:
        (B, N, ...), (B, N, ...), and (B,) sample sizes or None.

    Raises:
        TypeError: One of them is no batch.
        ValueError: An image has more of one than of the other, so that padding would be read as data. Sizes that lie
            on a device are only compared in checked mode.
    """
    padded, sizes = as_padded("boxes", boxes)
    label, label_sizes = as_padded("labels", labels)
    if isinstance(boxes, list | tuple) and isinstance(labels, list | tuple):
        _compare([len(one) for one in boxes], [len(one) for one in labels])
    elif is_checked() and sizes is not None and label_sizes is not None:
        _compare(sizes.tolist(), label_sizes.tolist())
    return padded, label, sizes


def _compare(sizes: list[int], label_sizes: list[int]) -> None:
    for b, (size, label_size) in enumerate(zip(sizes, label_sizes, strict=False)):
        if size != label_size:
            raise ValueError(f"labels: sample {b} has {label_size}, expected {size}, as boxes has")
