"""Indexing over whole batches: sample `i` of the data with row `i` of the indices, all samples at once.

Reading fetches rows, and so does writing: `_writer_of_each_slot` finds the entry that writes to each slot of the
target, and the slot fetches its value from there. Thus results do not depend on the order in which threads run, even
with duplicates, and autograd needs no code of its own. The host never waits for the device.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from detops.ragged.batch import RaggedBatch
from detops.ragged.core import RaggedError, as_fill_value, shape_of, zero_entry


def tensor_of(data: RaggedBatch | Tensor) -> Tensor:
    """Return the padded data of a batch, or the tensor itself."""
    return data.tensor if isinstance(data, RaggedBatch) else data


def expand_like(flags: Tensor, data: Tensor) -> Tensor:
    """Append dimensions of size 1, so that (*batch, N) flags broadcast against (*batch, N, *rest) data."""
    return flags.reshape(flags.shape + (1,) * (data.dim() - flags.dim()))


def take_rows(data: Tensor, rows: Tensor) -> Tensor:
    """Fetch `out[b, j] = data[b, rows[b, j]]`.

    Args:
        data: (*batch, N, *rest).
        rows: int64 (*batch, M), all in range unless N is 0.

    Returns:
        (*batch, M, *rest); zeros if N is 0.
    """
    nb = rows.dim() - 1
    if data.shape[nb] == 0:
        return zero_entry(data, nb).expand(rows.shape + data.shape[nb + 1 :])
    # Advanced indexing, not gather: on a GPU too, its backward adds up in a fixed order.
    samples = [
        torch.arange(size, device=rows.device).reshape(-1, *[1] * (nb - d)) for d, size in enumerate(rows.shape[:nb])
    ]
    return data[(*samples, rows)]


def check_fits(name: str, data: Tensor, batch: RaggedBatch, batch_name: str) -> None:
    """Raise unless `data` has the batch dimensions of `batch`, at least one more, and its device."""
    nb = batch.num_batch_dims
    if data.dim() <= nb or data.shape[:nb] != batch.batch_shape:
        raise RaggedError(
            f"{name}: expected batch shape {tuple(batch.batch_shape)} as in {batch_name} and one dimension "
            f"more, got shape {shape_of(data)}"
        )
    if data.device != batch.device:
        raise RaggedError(f"{name}: expected device {batch.device} of {batch_name}, got {data.device}")


def check_same_entries(name: str, data: Tensor, other_name: str, other: Tensor, dim: int) -> None:
    """Raise unless the two have the same dtype and, except in dimension `dim`, the same shape."""
    if data.dtype != other.dtype:
        raise RaggedError(f"{name}: expected {other.dtype} as in {other_name}, got {data.dtype}")
    if data.dim() != other.dim():
        raise RaggedError(
            f"{name}: must have the same number of dimensions as {other_name} {shape_of(other)}, got {shape_of(data)}"
        )
    shapes = [(*tensor.shape[:dim], *tensor.shape[dim + 1 :]) for tensor in (data, other)]
    if shapes[0] != shapes[1]:
        raise RaggedError(
            f"{name}: expected the shape of {other_name} {shape_of(other)} except in dimension {dim}, "
            f"got {shape_of(data)}"
        )


def _indexed_dim(name: str, indices: RaggedBatch, dim_to_index_in: int | None, *data: Tensor) -> int:
    if indices.dim() != indices.num_batch_dims + 1:
        raise RaggedError(
            f"{name}: expected one dimension after {indices.num_batch_dims} batch dimensions, "
            f"got shape {shape_of(indices.tensor)}"
        )
    if indices.dtype.is_floating_point or indices.dtype.is_complex or indices.dtype == torch.bool:
        raise RaggedError(f"{name}: expected an integer tensor, got {indices.dtype}")
    dim = indices.non_uniform_dim if dim_to_index_in is None else dim_to_index_in
    if any(not indices.num_batch_dims <= dim < tensor.dim() for tensor in data):
        raise RaggedError(
            f"dim_to_index_in: expected a dimension of the data after {indices.num_batch_dims} batch "
            f"dimensions, got {dim}"
        )
    return dim


def _resolve(indices: RaggedBatch, size: int) -> tuple[Tensor, Tensor]:
    """Return the indices as int64, counted from the start, and which are valid; invalid ones become 0."""
    wrapped = indices.tensor.long()
    wrapped = torch.where(wrapped < 0, wrapped + size, wrapped)
    valid = indices.mask & (wrapped >= 0) & (wrapped < size)
    return wrapped.masked_fill(~valid, 0), valid


def _writer_of_each_slot(slots: Tensor, valid: Tensor, size: int) -> Tensor:
    """Invert an index: return the last position that points to each of `size` slots, -1 for none."""
    positions = torch.arange(slots.shape[-1], device=slots.device).expand_as(slots)
    # Invalid entries go to an extra slot, which is cut off.
    targets = torch.where(valid, slots, size)
    writer = slots.new_full((*slots.shape[:-1], size + 1), -1)
    return writer.scatter_reduce(-1, targets, positions, "amax")[..., :size]


def _fetch_for_slots(data: Tensor, indices: RaggedBatch, size: int) -> tuple[Tensor, Tensor]:
    """Return the value that is written to each slot, and a mask that broadcasts against it: whether there is one."""
    slots, valid = _resolve(indices, size)
    here = torch.arange(slots.shape[-1], device=slots.device) < data.shape[indices.num_batch_dims]
    writer = _writer_of_each_slot(slots, valid & here, size)
    taken = take_rows(data, writer.clamp(min=0))
    return taken, expand_like(writer >= 0, taken)


def batched_indexing_access(
    input_data: RaggedBatch | Tensor,
    input_indices: RaggedBatch,
    filler_value: float = 0.0,
    dim_to_index_in: int | None = None,
) -> RaggedBatch:
    """Read `output[i, j] = input_data[i, input_indices[i, j]]` for every index.

    Negative indices count from the end. An index out of range gives the filler. Gradients of entries that are read more
    than once add up.

    Args:
        input_data: Data (*batch_shape, ...); the padding of a batch is read like any entry.
        input_indices: Integers (*batch_shape, max_num_indices); the padding is not used.
        filler_value: Value of the padding of the result; truncated for integer data.
        dim_to_index_in: Dimension of the data to index; by default the first after the batch dimensions.

    Returns:
        Batch with the sample sizes of `input_indices` and the shape of the data, except that `dim_to_index_in`, its
        non-uniform dimension, has size `max_num_indices`.

    Raises:
        RaggedError: Shapes, dimensions, dtypes or devices do not match.

    Example:
        >>> import torch
        >>> from detops.ragged import RaggedBatch, batched_indexing_access
        >>> data = torch.tensor([[10, 11, 12], [20, 21, 22]])
        >>> indices = RaggedBatch(torch.tensor([[2, 99], [0, -1]]), sample_sizes=torch.tensor([1, 2]))
        >>> batched_indexing_access(data, indices, filler_value=-5).tensor
        tensor([[12, -5],
                [20, 22]])
    """
    data = tensor_of(input_data)
    check_fits("input_data", data, input_indices, "input_indices")
    nb = input_indices.num_batch_dims
    dim = _indexed_dim("input_indices", input_indices, dim_to_index_in, data)
    data = data.transpose(nb, dim)
    rows, valid = _resolve(input_indices, data.shape[nb])
    taken = take_rows(data, rows)
    filled = taken.masked_fill(expand_like(~valid, taken), as_fill_value(filler_value, taken.dtype))
    return input_indices.create_with_sample_sizes_like_self(filled.transpose(nb, dim), dim)


def batched_inverse_indexing_access(
    input_data: RaggedBatch | Tensor,
    output_indices: RaggedBatch,
    output_num_targets: int,
    filler_value: float = 0.0,
    dim_to_index_in: int | None = None,
) -> Tensor:
    """Write `output[i, output_indices[i, j]] = input_data[i, j]` for every index, into a new tensor.

    Negative indices count from the end. An index out of range is ignored. If several entries have the same index, the
    last one is written and alone gets the gradient.

    Args:
        input_data: Data (*batch_shape, ...).
        output_indices: Integers (*batch_shape, max_num_indices); the padding is not used.
        output_num_targets: Size of the result in `dim_to_index_in`.
        filler_value: Value of the entries that are not written to; truncated for integer data.
        dim_to_index_in: Dimension to index; by default the first after the batch dimensions.

    Returns:
        Tensor with the shape of the data, except that `dim_to_index_in` has size `output_num_targets`.

    Raises:
        RaggedError: Shapes, dimensions, dtypes or devices do not match, or the size is negative.

    Example:
        >>> import torch
        >>> from detops.ragged import RaggedBatch, batched_inverse_indexing_access
        >>> data = torch.tensor([[10, 11], [20, 21]])
        >>> indices = RaggedBatch(torch.tensor([[2, 99], [0, -1]]), sample_sizes=torch.tensor([1, 2]))
        >>> batched_inverse_indexing_access(data, indices, 3)
        tensor([[ 0,  0, 10],
                [20,  0, 21]])
    """
    data = tensor_of(input_data)
    check_fits("input_data", data, output_indices, "output_indices")
    nb = output_indices.num_batch_dims
    dim = _indexed_dim("output_indices", output_indices, dim_to_index_in, data)
    if output_num_targets < 0:
        raise RaggedError(f"output_num_targets: expected a non-negative number, got {output_num_targets}")
    taken, written = _fetch_for_slots(data.transpose(nb, dim), output_indices, output_num_targets)
    return taken.masked_fill(~written, as_fill_value(filler_value, taken.dtype)).transpose(nb, dim)


@overload
def batched_indexing_write(
    to_write: RaggedBatch | Tensor,
    output_indices: RaggedBatch,
    to_write_into: RaggedBatch,
    dim_to_index_in: int | None = None,
) -> RaggedBatch: ...
@overload
def batched_indexing_write(
    to_write: RaggedBatch | Tensor,
    output_indices: RaggedBatch,
    to_write_into: Tensor,
    dim_to_index_in: int | None = None,
) -> Tensor: ...
def batched_indexing_write(
    to_write: RaggedBatch | Tensor,
    output_indices: RaggedBatch,
    to_write_into: RaggedBatch | Tensor,
    dim_to_index_in: int | None = None,
) -> RaggedBatch | Tensor:
    """Write `output[i, output_indices[i, j]] = to_write[i, j]` for every index, into a copy of `to_write_into`.

    Negative indices count from the end. An index out of range is ignored. If several entries have the same index, the
    last one is written and alone gets the gradient.

    Args:
        to_write: Data (*batch_shape, ...).
        output_indices: Integers (*batch_shape, max_num_indices); the padding is not used.
        to_write_into: Values of the result where nothing is written; not changed. Dtype and shape are those of
            `to_write`, except for the size of the indexed dimension.
        dim_to_index_in: Dimension to index; by default the first after the batch dimensions.

    Returns:
        Tensor or batch like `to_write_into`.

    Raises:
        RaggedError: Shapes, dimensions, dtypes or devices do not match.

    Example:
        >>> import torch
        >>> from detops.ragged import RaggedBatch, batched_indexing_write
        >>> indices = RaggedBatch(torch.tensor([[2, 99]]), sample_sizes=torch.tensor([1]))
        >>> batched_indexing_write(torch.tensor([[10, 11]]), indices, torch.tensor([[1, 2, 3]]))
        tensor([[ 1,  2, 10]])
    """
    data, target = tensor_of(to_write), tensor_of(to_write_into)
    check_fits("to_write", data, output_indices, "output_indices")
    check_fits("to_write_into", target, output_indices, "output_indices")
    nb = output_indices.num_batch_dims
    dim = _indexed_dim("output_indices", output_indices, dim_to_index_in, data, target)
    check_same_entries("to_write", data, "to_write_into", target, dim)
    data, target = data.transpose(nb, dim), target.transpose(nb, dim)
    taken, written = _fetch_for_slots(data, output_indices, target.shape[nb])
    result = torch.where(written, taken, target).transpose(nb, dim)
    if isinstance(to_write_into, RaggedBatch):
        return to_write_into.create_with_sample_sizes_like_self(result)
    return result


@overload
def batched_index_mapping(
    source_data: RaggedBatch | Tensor,
    source_indices: RaggedBatch,
    target_indices: RaggedBatch,
    target_data: RaggedBatch,
) -> RaggedBatch: ...
@overload
def batched_index_mapping(
    source_data: RaggedBatch | Tensor,
    source_indices: RaggedBatch,
    target_indices: RaggedBatch,
    target_data: Tensor,
) -> Tensor: ...
def batched_index_mapping(
    source_data: RaggedBatch | Tensor,
    source_indices: RaggedBatch,
    target_indices: RaggedBatch,
    target_data: RaggedBatch | Tensor,
) -> RaggedBatch | Tensor:
    """Copy `output[i, target_indices[i, j]] = source_data[i, source_indices[i, j]]` for every pair of indices.

    Negative indices count from the end. A pair is ignored if either index is padding or out of range. If several pairs
    have the same target, the last one is copied. Gradients of source entries that are used more than once add up.

    Args:
        source_data: Values to copy (*batch_shape, N, *rest); a batch is indexed along its non-uniform dimension,
            wherever that is.
        source_indices: Integers (*batch_shape, max_num_matches).
        target_indices: Integers with the same shape and sample sizes.
        target_data: Values of the result where nothing is copied; not changed. Dtype and shape are those of
            `source_data`, except for the size of the indexed dimension.

    Returns:
        Tensor or batch like `target_data`.

    Raises:
        RaggedError: Shapes, dimensions, dtypes or devices do not match.

    Example:
        >>> import torch
        >>> from detops.ragged import RaggedBatch, batched_index_mapping
        >>> one = torch.tensor([1])
        >>> source = RaggedBatch(torch.tensor([[2, 99]]), sample_sizes=one)
        >>> target = RaggedBatch(torch.tensor([[0, 99]]), sample_sizes=one)
        >>> batched_index_mapping(torch.tensor([[10, 11, 12]]), source, target, torch.tensor([[1, 2]]))
        tensor([[12,  2]])
    """
    if source_indices.shape != target_indices.shape:
        raise RaggedError(
            f"source_indices: expected the shape of target_indices {shape_of(target_indices.tensor)}, "
            f"got {shape_of(source_indices.tensor)}"
        )
    nb = target_indices.num_batch_dims
    source, target = _front("source_data", source_data, nb), _front("target_data", target_data, nb)
    check_fits("source_data", source, source_indices, "source_indices")
    check_fits("target_data", target, target_indices, "target_indices")
    _indexed_dim("source_indices", source_indices, None, source)
    _indexed_dim("target_indices", target_indices, None, target)
    check_same_entries("source_data", source, "target_data", target, nb)
    source_rows, source_valid = _resolve(source_indices, source.shape[nb])
    slots, valid = _resolve(target_indices, target.shape[nb])
    writer = _writer_of_each_slot(slots, valid & source_valid, target.shape[nb])
    taken = take_rows(source, take_rows(source_rows, writer.clamp(min=0)))
    result = torch.where(expand_like(writer >= 0, taken), taken, target)
    if isinstance(target_data, RaggedBatch):
        dim = target_data.non_uniform_dim
        return target_data.create_with_sample_sizes_like_self(result.transpose(nb, dim))
    return result


def _front(name: str, data: RaggedBatch | Tensor, num_batch_dims: int) -> Tensor:
    """Return the data with the non-uniform dimension first after the batch dimensions."""
    if not isinstance(data, RaggedBatch):
        return data
    if data.num_batch_dims != num_batch_dims:
        raise RaggedError(f"{name}: expected {num_batch_dims} batch dimensions, got {data.num_batch_dims}")
    return data.tensor.transpose(num_batch_dims, data.non_uniform_dim)
