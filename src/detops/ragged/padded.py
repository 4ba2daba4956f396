"""The one form that the rest of the package computes with: a padded tensor and its sample sizes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

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
        ValueError: It has several batch dimensions.
    """
    if isinstance(value, Tensor):
        return value, None
    if isinstance(value, list | tuple):
        value = RaggedBatch.from_list(value)
    if not isinstance(value, RaggedBatch):
        raise TypeError(f"{name}: expected a RaggedBatch, a tensor or a list of tensors, got {type(value).__name__}")
    if value.num_batch_dims != 1:
        raise ValueError(
            f"{name}: expected one batch dimension, got {value.num_batch_dims}; see RaggedBatch.flatten_batch_dims"
        )
    return value.get_non_uniform_dimension_transposed_to(1).tensor, value.sample_sizes


def require_same_sizes(name: str, value: object, like_name: str, like: object) -> None:
    """Check that two lists have as many entries for each image: else the padding of one would be read as data.

    Raises:
        ValueError: They have not; nothing is said of batches that are no lists, whose sizes lie on the device.
    """
    if not isinstance(value, list | tuple) or not isinstance(like, list | tuple):
        return
    for i, (mine, other) in enumerate(zip(value, like, strict=False)):
        if len(mine) != len(other):
            raise ValueError(f"{name}: sample {i} has {len(mine)}, expected {len(other)}, as {like_name} has")
