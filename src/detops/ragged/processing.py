"""Reductions over the valid entries, masking, squeezing, and packing many tensors into ragged batches.

Padding is replaced, never multiplied by zero, so not even a NaN in it reaches a result or a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from detops.arguments import sent
from detops.ragged.batch import RaggedBatch
from detops.ragged.core import RaggedError, as_fill_value, shape_of
from detops.ragged.indexing import expand_like
from detops.ragged.layouts import pad_samples
from detops.ragged.masks import select_rows, take_selected

NamedTupleT = TypeVar("NamedTupleT", bound=tuple[Any, ...])


def average_over_targets(data: RaggedBatch, nans_to_zero: bool = True) -> Tensor:
    """Average the valid entries of each sample.

    float16 and bfloat16 are accumulated in float32; integers give float32.

    Args:
        data: Batch with any non-uniform dimension.
        nans_to_zero: Whether to replace NaN and infinities in the result by zero, as those of empty samples.

    Returns:
        Tensor with the shape of `data` without the non-uniform dimension.

    Example:
        >>> import torch
        >>> from detops.ragged import RaggedBatch, average_over_targets
        >>> data = RaggedBatch(torch.tensor([[1.0, 3.0], [5.0, 0.0]]), sample_sizes=torch.tensor([2, 0]))
        >>> average_over_targets(data)
        tensor([2., 0.])
    """
    half = data.dtype in (torch.float16, torch.bfloat16)
    total = _sum(data, torch.float32 if half else data.dtype)
    sizes = data.sample_sizes.reshape(data.batch_shape + (1,) * (total.dim() - data.num_batch_dims))
    average = total / sizes
    if half:
        average = average.to(data.dtype)
    return torch.nan_to_num(average, nan=0.0, posinf=0.0, neginf=0.0) if nans_to_zero else average


def sum_over_targets(data: RaggedBatch) -> Tensor:
    """Sum the valid entries of each sample.

    Args:
        data: Batch with any non-uniform dimension.

    Returns:
        Tensor with the dtype of `data` and its shape without the non-uniform dimension.

    Example:
        >>> import torch
        >>> from detops.ragged import RaggedBatch, sum_over_targets
        >>> sum_over_targets(RaggedBatch(torch.tensor([[1, 3], [5, 7]]), sample_sizes=torch.tensor([2, 1])))
        tensor([4, 5])
    """
    return _sum(data, data.dtype)


def _sum(data: RaggedBatch, dtype: torch.dtype) -> Tensor:
    return data.with_padded_set_to(0).tensor.sum(data.non_uniform_dim, dtype=dtype)


def apply_mask_to_tensor(data: Tensor, mask: Tensor, value_to_set: float = 0.0) -> Tensor:
    """Return a copy of a tensor with the entries replaced where a mask is False.

    Args:
        data: Any tensor.
        mask: Bool; its dimensions are the first ones of `data`, each of the same size or of size 1.
        value_to_set: The new value; truncated for integer data.

    Returns:
        Tensor like `data`.

    Raises:
        RaggedError: The shape of the mask does not match, or the dtype cannot hold the value.

    Example:
        >>> import torch
        >>> from detops.ragged import apply_mask_to_tensor
        >>> apply_mask_to_tensor(torch.ones(2, 2), torch.tensor([True, False]))
        tensor([[1., 1.],
                [0., 0.]])
    """
    first = data.shape[: mask.dim()]
    if mask.dim() > data.dim() or any(m not in (1, d) for m, d in zip(mask.shape, first, strict=True)):
        raise RaggedError(
            f"mask: expected the first dimensions of data {shape_of(data)}, or size 1, got {shape_of(mask)}"
        )
    return data.masked_fill(expand_like(~mask.bool(), data), as_fill_value(value_to_set, data.dtype))


@overload
def squeeze_except_batch_and_sample(data: RaggedBatch) -> RaggedBatch: ...
@overload
def squeeze_except_batch_and_sample(data: Tensor) -> Tensor: ...
def squeeze_except_batch_and_sample(data: RaggedBatch | Tensor) -> RaggedBatch | Tensor:
    """Remove dimensions of size 1, except batch dimensions and the non-uniform dimension.

    Args:
        data: A batch; or a tensor, whose first two dimensions are kept.

    Returns:
        Batch or tensor, as `data`; `non_uniform_dim` is smaller by the number of dimensions removed before it.

    Example:
        >>> import torch
        >>> from detops.ragged import RaggedBatch, squeeze_except_batch_and_sample
        >>> batch = RaggedBatch(torch.zeros(1, 1, 3, 1), sample_sizes=torch.tensor([3]), non_uniform_dim=2)
        >>> squeeze_except_batch_and_sample(batch).shape
        torch.Size([1, 3])
    """
    if not isinstance(data, RaggedBatch):
        return data.squeeze(tuple(range(2, data.dim())))
    place = data.non_uniform_dim
    dims = [dim for dim in range(data.num_batch_dims, data.dim()) if dim != place and data.shape[dim] == 1]
    moved = place - sum(dim < place for dim in dims)
    return data._with_tensor(data.tensor.squeeze(tuple(dims)), moved)


def get_compact_lists(
    mask: Tensor, data: Sequence[Tensor | Any], *, max_size: int | None = None
) -> list[RaggedBatch | Any]:
    """Select the entries of several tensors where a mask is True.

    Args:
        mask: Bool (B, N).
        data: Tensors (B, N, ...); elements that are not tensors are returned unchanged.
        max_size: Padded size of the results; entries beyond it are dropped. None means the largest number of True
            values in a sample, which costs one synchronisation in all.

    Returns:
        List with one batch (B, max_size, ...) per tensor, with zeros in the padding.

    Raises:
        RaggedError: A shape does not match the mask, or `max_size` is negative.

    Example:
        >>> import torch
        >>> from detops.ragged import get_compact_lists
        >>> kept, name = get_compact_lists(torch.tensor([[False, True]]), [torch.tensor([[1, 2]]), "name"])
        >>> kept.tensor
        tensor([[2]])
    """
    if mask.dim() != 2:
        raise RaggedError(f"mask: expected two dimensions (B, N), got shape {shape_of(mask)}")
    for i, element in enumerate(data):
        if isinstance(element, Tensor) and element.shape[:2] != mask.shape:
            raise RaggedError(
                f"data[{i}]: expected shape {shape_of(mask)} of mask in the first two dimensions, "
                f"got {shape_of(element)}"
            )
    rows = select_rows(mask.bool(), max_size)
    return [
        rows._with_tensor(take_selected(element, rows)) if isinstance(element, Tensor) else element for element in data
    ]


def get_compact_from_named_tuple(mask: Tensor, data: NamedTupleT, *, max_size: int | None = None) -> NamedTupleT:
    """Apply `get_compact_lists` to the fields of a named tuple.

    Args:
        mask: Bool (B, N).
        data: Named tuple; fields that are tensors have shape (B, N, ...).
        max_size: Padded size of the results; None means the largest number of True values in a sample, which costs one
            synchronisation in all.

    Returns:
        Tuple of the same type, with batches in place of tensors.

    Raises:
        RaggedError: A shape does not match the mask, or `max_size` is negative.

    Example:
        >>> import torch
        >>> from collections import namedtuple
        >>> from detops.ragged import get_compact_from_named_tuple
        >>> Boxes = namedtuple("Boxes", ["label", "source"])
        >>> mask = torch.tensor([[False, True]])
        >>> get_compact_from_named_tuple(mask, Boxes(torch.tensor([[1, 2]]), "camera")).label.tensor
        tensor([[2]])
    """
    make: Callable[..., NamedTupleT] = type(data)
    return make(*get_compact_lists(mask, data, max_size=max_size))


def combine_data(
    data_list: Sequence[Any],
    other_with_same_sample_sizes: RaggedBatch | None = None,
    device: torch.device | str | None = None,
    flatten_batch_dims: bool = True,
) -> RaggedBatch:
    """Pack a list of samples, or nested lists of them, into one batch.

    Args:
        data_list: Tensors (n_i, *rest), in lists nested to any depth. An empty sample may have any shape without
            elements.
        other_with_same_sample_sizes: Batch with the same batch shape and sample sizes, whose mask and sizes are shared;
            only shapes are checked.
        device: Device of the result; None means that of the first sample with elements.
        flatten_batch_dims: Whether all samples form one batch dimension, in the order of the lists. Otherwise each
            level of nesting becomes a batch dimension, and the lists of a level must have the same length.

    Returns:
        Batch (*batch_shape, max(n_i), *rest), padded with zeros, with the dtype of the first sample with elements.

    Raises:
        RaggedError: The list is empty or holds something other than tensors and lists, or shapes do not match.

    Example:
        >>> import torch
        >>> from detops.ragged import combine_data
        >>> combine_data([[torch.ones(2)], [torch.ones(1)]], flatten_batch_dims=False).shape
        torch.Size([2, 1, 2])
    """
    if not _is_list(data_list) or len(data_list) == 0:
        raise RaggedError(
            f"data_list: expected a list of tensors, or of lists of them, with at least one element, got "
            f"{'an empty list' if _is_list(data_list) else type(data_list).__name__}"
        )
    samples: list[Tensor] = []
    batch_shape = _collect("data_list", data_list, samples, uniform=not flatten_batch_dims)
    if flatten_batch_dims:
        batch_shape = (len(samples),)
    if not samples:
        nb = len(batch_shape)
        place = torch.device("cpu") if device is None else device
        return RaggedBatch.Empty(nb + 1, nb, place, batch_shape=batch_shape)
    other = other_with_same_sample_sizes
    if other is not None and tuple(other.batch_shape) != batch_shape:
        raise RaggedError(
            f"other_with_same_sample_sizes: expected batch shape {batch_shape} of data_list, "
            f"got {tuple(other.batch_shape)}"
        )
    size = None if other is None else other.max_sample_size
    padded, counts = pad_samples("data_list", samples, size, cast=True)
    if device is not None:
        padded = sent("data_list", padded, device)
    padded = padded.unflatten(0, batch_shape)
    if other is not None:
        return other.create_with_sample_sizes_like_self(padded, len(batch_shape))
    sizes = sent("data_list", torch.tensor(counts, dtype=torch.int64), padded.device)
    return RaggedBatch(padded, sample_sizes=sizes.unflatten(0, batch_shape))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _collect(name: str, data: Any, samples: list[Tensor], uniform: bool) -> tuple[int, ...]:
    """Append all tensors in `data` to `samples`; return the length of each level of lists, if these are `uniform`."""
    if isinstance(data, Tensor):
        samples.append(data)
        return ()
    if not _is_list(data):
        raise RaggedError(f"{name}: expected a tensor or a list of tensors, got {type(data).__name__}")
    shapes = [_collect(f"{name}[{i}]", part, samples, uniform) for i, part in enumerate(data)]
    for i, shape in enumerate(shapes):
        if uniform and shape != shapes[0]:
            raise RaggedError(f"{name}[{i}]: expected lists of lengths {shapes[0]} as in {name}[0], got {shape}")
    return (len(data), *shapes[0]) if shapes else (0,)
