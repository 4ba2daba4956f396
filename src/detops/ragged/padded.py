"""Conversion of batches to the form that the rest of the package uses: a padded tensor and its sample sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detops.diagnostics.checked import is_checked
from detops.ragged.batch import RaggedBatch

Batch = RaggedBatch | Tensor | Sequence[Any]  # a list has a tensor, an array or a list of numbers per image


def as_padded(
    name: str, value: object, rest: tuple[int, ...] | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor | None]:
    """Convert a batch in any of its forms to a padded tensor.

    Args:
        name: Name of the caller's argument, for messages.
        value: A `RaggedBatch` with one batch dimension; a list of tensors, arrays or lists, one per image; or a tensor,
            which is a batch without padding.
        rest: Shape of one entry, which lists without entries take; None where it is not known.
        dtype: Dtype of lists without entries; where it is float32, also that of arrays and of lists of Python numbers.

    Returns:
        (B, N, ...), entries along dimension 1; (B,) sample sizes, None where every image has N.

    Raises:
        TypeError: The value has none of these forms.
        ValueError: It has several batch dimensions, or is an empty list, which has no shape.
    """
    if isinstance(value, Tensor):
        return value, None
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"{name}: expected a tensor per image, got an empty list; for no images, pass a tensor")
        value = RaggedBatch._from_samples(name, [_sample(name, one, rest, dtype) for one in value])
    if not isinstance(value, RaggedBatch):
        raise TypeError(f"{name}: expected a RaggedBatch, a tensor or a list of tensors, got {type(value).__name__}")
    if value.num_batch_dims != 1:
        raise ValueError(
            f"{name}: expected one batch dimension, got {value.num_batch_dims}; see RaggedBatch.flatten_batch_dims"
        )
    return value.get_non_uniform_dimension_transposed_to(1).tensor, value.sample_sizes


def exists(sample_sizes: Tensor, count: int) -> Tensor:
    """Return (B, N) bool, which entries of a padded batch are real.

    Args:
        sample_sizes: (B,) integers.
        count: N.
    """
    return torch.arange(count, device=sample_sizes.device) < sample_sizes[:, None]


def compare_sizes(
    name: str, value: tuple[object, Tensor | None], like_name: str, like: tuple[object, Tensor | None]
) -> None:
    """Check that two batches have the same sizes, so that no padding of one is read as data of the other.

    Args:
        name: Name of the first.
        value: The first as it was given, and its sample sizes.
        like_name: Name of the second.
        like: The second as it was given, and its sample sizes.

    Raises:
        ValueError: An image has more of one than of the other. Sizes on a device are compared in checked mode only.
    """
    if isinstance(value[0], list | tuple) and isinstance(like[0], list | tuple):
        sizes, wanted = [len(one) for one in value[0]], [len(one) for one in like[0]]
    elif is_checked() and value[1] is not None and like[1] is not None:
        sizes, wanted = value[1].tolist(), like[1].tolist()
    else:
        return
    for b, (size, expected) in enumerate(zip(sizes, wanted, strict=False)):
        if size != expected:
            raise ValueError(f"{name}: sample {b} has {size}, expected {expected}, as {like_name} has")


def _sample(name: str, given: Any, rest: tuple[int, ...] | None, dtype: torch.dtype | None) -> Tensor:
    """Return one image's entries as a plain tensor."""
    if isinstance(given, Tensor):
        value = given
    else:
        try:
            value = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name}: expected a tensor per image, got {type(given).__name__}") from error
        if dtype == torch.float32:
            value = value.to(torch.float32)
    if type(value) not in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling():
        value = value.as_subclass(Tensor)  # such as torchvision's BoundingBoxes
    if value.numel() == 0 and rest is not None and value.shape[1:] != rest:
        value = value.new_zeros(0, *rest)
    return value.to(dtype) if value.numel() == 0 and dtype is not None and not _fits(value, dtype) else value


def _fits(value: Tensor, dtype: torch.dtype) -> bool:
    return value.is_floating_point() == dtype.is_floating_point and value.dtype != torch.bool
