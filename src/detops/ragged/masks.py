"""Selection by masks over whole batches, and conversion between masks and indices.

The place of a selected entry in the result is the number of selected entries before it, which a cumulative sum gives.
PyTorch's boolean indexing, which waits for the device, is not needed.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from detops.ragged.batch import RaggedBatch
from detops.ragged.core import RaggedError, shape_of
from detops.ragged.indexing import _indexed_dim, _resolve, check_same_entries, expand_like, take_rows, tensor_of
from detops.ragged.layouts import max_of


def select_rows(mask: Tensor, max_size: int | None) -> RaggedBatch:
    """Return the positions where a mask is True, in order.

    Args:
        mask: Bool (*batch, N).
        max_size: Padded size of the result; None means the largest number of True values in a row, which costs one
            synchronisation.

    Returns:
        int64 batch (*batch, max_size), with zeros in the padding.

    Raises:
        RaggedError: `max_size` is negative.
    """
    counts = mask.sum(-1)
    size = max_of(counts) if max_size is None else max_size
    if size < 0:
        raise RaggedError(f"max_size: expected a non-negative number, got {size}")
    places = mask.cumsum(-1) - 1
    # Entries that are not selected, or that exceed the size, go to an extra place, which is cut off.
    places = torch.where(mask & (places < size), places, size)
    positions = torch.arange(mask.shape[-1], device=mask.device).expand_as(mask)
    rows = positions.new_zeros((*mask.shape[:-1], size + 1)).scatter(-1, places, positions)
    return RaggedBatch(rows[..., :size], sample_sizes=counts.clamp(max=size))


def take_selected(data: Tensor, rows: RaggedBatch) -> Tensor:
    """Fetch the entries that `select_rows` found, with zeros in the padding."""
    taken = take_rows(data, rows.tensor)
    return taken.masked_fill(expand_like(~rows.mask, taken), 0)


def _match_mask(
    name: str, data: RaggedBatch | Tensor, mask_name: str, mask: RaggedBatch | Tensor
) -> tuple[Tensor, Tensor]:
    """Return data (*batch, N, *rest) and its mask (*batch, N), which is False in the padding of either argument."""
    flags = tensor_of(mask)
    if flags.dtype != torch.bool:
        raise RaggedError(f"{mask_name}: expected a bool mask, got {flags.dtype}")
    nb = flags.dim() - 1
    for part_name, part in ((name, data), (mask_name, mask)):
        if isinstance(part, RaggedBatch) and part.num_batch_dims != nb:
            raise RaggedError(
                f"{mask_name}: expected the mask to have the batch dimensions and one more, got shape "
                f"{shape_of(flags)} for {part.num_batch_dims} batch dimensions of {part_name}"
            )
    values = tensor_of(data)
    if isinstance(data, RaggedBatch):
        values = values.transpose(nb, data.non_uniform_dim)
    if nb < 1 or values.shape[: nb + 1] != flags.shape:
        raise RaggedError(
            f"{mask_name}: expected the batch shape and sample size of {name} {shape_of(tensor_of(data))}, "
            f"got {shape_of(flags)}"
        )
    for part in (data, mask):
        if isinstance(part, RaggedBatch):
            flags = flags & part.mask
    return values, flags


def batched_bool_indexing(
    input_data: RaggedBatch | Tensor, input_mask: RaggedBatch | Tensor, *, max_size: int | None = None
) -> RaggedBatch:
    """Select the entries of each sample where the mask is True, in order.

    Padding of the data or of the mask is never selected.

    Args:
        input_data: Data (*batch_shape, N, *rest); from a batch, entries are selected along its non-uniform dimension,
            wherever that is.
        input_mask: Bool (*batch_shape, N); a tensor, or a batch with the sample sizes of the data.
        max_size: Padded size of the result; entries beyond it are dropped. None means the largest number of selected
            entries in a sample, which costs one synchronisation.

    Returns:
        Batch of the selected entries, with zeros in the padding; the non-uniform dimension is that of the data.

    Raises:
        RaggedError: Shapes do not match, the mask is not bool, or `max_size` is negative.

    Example:
        >>> import torch
        >>> from detops.ragged import batched_bool_indexing
        >>> data = torch.tensor([[1, 2, 3], [4, 5, 6]])
        >>> batched_bool_indexing(data, data % 2 == 0).tensor
        tensor([[2, 0],
                [4, 6]])
    """
    values, flags = _match_mask("input_data", input_data, "input_mask", input_mask)
    rows = select_rows(flags, max_size)
    taken = take_selected(values, rows)
    if not isinstance(input_data, RaggedBatch):
        return rows._with_tensor(taken)
    dim = input_data.non_uniform_dim
    return rows._with_tensor(taken.transpose(rows.num_batch_dims, dim), dim)


@overload
def batched_bool_indexing_write(
    to_write: RaggedBatch, output_mask: RaggedBatch | Tensor, to_write_into: RaggedBatch
) -> RaggedBatch: ...
@overload
def batched_bool_indexing_write(
    to_write: RaggedBatch, output_mask: RaggedBatch | Tensor, to_write_into: Tensor
) -> Tensor: ...
def batched_bool_indexing_write(
    to_write: RaggedBatch, output_mask: RaggedBatch | Tensor, to_write_into: RaggedBatch | Tensor
) -> RaggedBatch | Tensor:
    """Write the entries of each sample where the mask is True, in order: the inverse of `batched_bool_indexing`.

    Each sample should have as many entries as its mask has True values. If it has fewer, the last places keep their
    values; if it has more, the surplus is ignored. Padding of the mask or of `to_write_into` is never written to.

    Args:
        to_write: Batch of entries (*batch_shape, M, *rest); its non-uniform dimension may be another one.
        output_mask: Bool (*batch_shape, N); a tensor, or a batch with the sample sizes of `to_write_into`.
        to_write_into: Values of the result (*batch_shape, N, *rest) where nothing is written; not changed. A batch is
            written to along its non-uniform dimension.

    Returns:
        Tensor or batch like `to_write_into`.

    Raises:
        RaggedError: Shapes or dtypes do not match, or `to_write` is not a batch.

    Example:
        >>> import torch
        >>> from detops.ragged import RaggedBatch, batched_bool_indexing_write
        >>> values = RaggedBatch(torch.tensor([[7, 8]]), sample_sizes=torch.tensor([2]))
        >>> mask = torch.tensor([[True, False, True]])
        >>> batched_bool_indexing_write(values, mask, torch.tensor([[1, 2, 3]]))
        tensor([[7, 2, 8]])
    """
    if not isinstance(to_write, RaggedBatch):
        raise RaggedError(f"to_write: expected a RaggedBatch, got {type(to_write).__name__}")
    target, flags = _match_mask("to_write_into", to_write_into, "output_mask", output_mask)
    nb = flags.dim() - 1
    if to_write.batch_shape != flags.shape[:nb]:
        raise RaggedError(
            f"to_write: expected batch shape {tuple(flags.shape[:nb])}, got {tuple(to_write.batch_shape)}"
        )
    data = to_write.tensor.transpose(nb, to_write.non_uniform_dim)
    check_same_entries("to_write", data, "to_write_into", target, nb)
    places = flags.cumsum(-1) - 1
    written = flags & (places < to_write.sample_sizes.unsqueeze(-1)) & (places < to_write.max_sample_size)
    taken = take_rows(data, places.masked_fill(~written, 0))
    result = torch.where(expand_like(written, taken), taken, target)
    if isinstance(to_write_into, RaggedBatch):
        return to_write_into._with_tensor(result.transpose(nb, to_write_into.non_uniform_dim))
    return result


def get_mask_from_indices(mask_num_targets: int, indices: RaggedBatch) -> Tensor:
    """Return a mask that is True at the indices of each sample.

    Args:
        mask_num_targets: Number of entries in each row of the mask.
        indices: Integers (*batch_shape, max_num_indices); negative ones count from the end, those out of range are
            ignored.

    Returns:
        Bool tensor (*batch_shape, mask_num_targets).

    Raises:
        RaggedError: The shape or dtype of the indices does not match, or the number is negative.

    Example:
        >>> import torch
        >>> from detops.ragged import RaggedBatch, get_mask_from_indices
        >>> indices = RaggedBatch(torch.tensor([[2, 99], [0, -2]]), sample_sizes=torch.tensor([1, 2]))
        >>> get_mask_from_indices(3, indices)
        tensor([[False, False,  True],
                [ True,  True, False]])
    """
    if mask_num_targets < 0:
        raise RaggedError(f"mask_num_targets: expected a non-negative number, got {mask_num_targets}")
    _indexed_dim("indices", indices, None)
    slots, valid = _resolve(indices, mask_num_targets)
    shape = (*indices.batch_shape, mask_num_targets + 1)
    mask = torch.zeros(shape, dtype=torch.bool, device=indices.device)
    return mask.scatter(-1, torch.where(valid, slots, mask_num_targets), True)[..., :mask_num_targets]


def get_indices_from_mask(mask: RaggedBatch | Tensor, *, max_size: int | None = None) -> RaggedBatch:
    """Return the indices where the mask of each sample is True, in ascending order.

    To select from several tensors by the same mask, this and `batched_indexing_access` are cheaper than repeated calls
    of `batched_bool_indexing`.

    Args:
        mask: Bool (batch_size, N); the padding of a batch counts as False.
        max_size: Padded size of the result; indices beyond it are dropped. None means the largest number of True values
            in a sample, which costs one synchronisation.

    Returns:
        int64 batch (batch_size, max_size), with zeros in the padding.

    Raises:
        RaggedError: The mask is not bool with two dimensions, or `max_size` is negative.

    Example:
        >>> import torch
        >>> from detops.ragged import get_indices_from_mask
        >>> get_indices_from_mask(torch.tensor([[False, True, True], [True, False, False]])).tensor
        tensor([[1, 2],
                [0, 0]])
    """
    flags = tensor_of(mask)
    if flags.dim() != 2 or flags.dtype != torch.bool:
        raise RaggedError(f"mask: expected a bool mask (batch_size, N), got {flags.dtype} of shape {shape_of(flags)}")
    if isinstance(mask, RaggedBatch):
        flags = flags & mask.mask
    return select_rows(flags, max_size)
