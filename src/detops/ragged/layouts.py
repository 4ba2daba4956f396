"""Conversions between ragged batches and other formats: lists of tensors, concatenated rows, nested tensors.

Where a shape depends on the data (`split`, `to_concatenated`, `to_nested`, and a padded size that the caller does not
give), the device is synchronised once; nothing else synchronises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from detops.arguments import sent
from detops.ragged.batch_dims import RaggedBatchDims
from detops.ragged.core import RaggedError, shape_of, zero_entry


class RaggedLayouts(RaggedBatchDims):
    """Methods that convert from another format or to one."""

    @classmethod
    def from_list(cls, tensors: Sequence[Tensor]) -> Self:
        """Pad a list of tensors, one per sample.

        Args:
            tensors: Tensors (n_i, *rest) of the same dtype and device. An empty sample may have any shape without
                elements, such as (0,), and any dtype.

        Returns:
            Batch (len(tensors), max(n_i), *rest), padded with zeros.

        Raises:
            RaggedError: The list is empty, or shapes, dtypes or devices do not match.

        Example:
            >>> import torch
            >>> from detops.ragged import RaggedBatch
            >>> RaggedBatch.from_list([torch.ones(2, 4), torch.empty(0)]).sample_sizes
            tensor([2, 0])
        """
        return cls._from_samples("tensors", tensors)

    @classmethod
    def _from_samples(cls, name: str, tensors: Sequence[Tensor]) -> Self:
        """Do the work of `from_list`; messages call the argument `name`."""
        data, counts = pad_samples(name, tensors)
        sizes = sent(name, torch.tensor(counts, dtype=torch.int64), data.device)
        made = cls(data, sample_sizes=sizes)
        made._total_num_entries = sum(counts)
        return made

    @classmethod
    def from_concatenated(
        cls, values: Tensor, batch_index: Tensor, batch_size: int, max_size: int | None = None
    ) -> Self:
        """Sort rows into their samples; the rows of a sample keep their order.

        Args:
            values: Rows (T, *rest) of all samples.
            batch_index: Sample of each row, integers (T,) in any order. A row whose index is negative, or `batch_size`
                or more, is dropped.
            batch_size: Number of samples.
            max_size: Padded size; the last rows of a larger sample are dropped. None means the size of the largest
                sample, which costs one synchronisation.

        Returns:
            Batch (batch_size, max_size, *rest), padded with zeros.

        Raises:
            RaggedError: Shapes or dtypes do not match, or a number is negative.

        Example:
            >>> import torch
            >>> from detops.ragged import RaggedBatch
            >>> rows, image = torch.tensor([5, 6, 7]), torch.tensor([1, 0, 1])
            >>> RaggedBatch.from_concatenated(rows, image, batch_size=2).tensor
            tensor([[6, 0],
                    [5, 7]])
        """
        if values.dim() < 1 or shape_of(batch_index) != (values.shape[0],):
            raise RaggedError(
                f"batch_index: expected one index for each row of values {shape_of(values)}, "
                f"got shape {shape_of(batch_index)}"
            )
        if batch_index.is_floating_point() or batch_index.dtype == torch.bool:
            raise RaggedError(f"batch_index: expected an integer tensor, got {batch_index.dtype}")
        if batch_size < 0:
            raise RaggedError(f"batch_size: expected a non-negative number, got {batch_size}")
        known = (batch_index >= 0) & (batch_index < batch_size)
        keys, order = torch.where(known, batch_index, batch_size).long().sort(stable=True)
        bounds = torch.searchsorted(keys, torch.arange(batch_size + 1, device=keys.device))
        return cls._from_rows(values, bounds[:-1], bounds.diff(), max_size, order)

    @classmethod
    def _from_rows(
        cls, values: Tensor, starts: Tensor, counts: Tensor, max_size: int | None, order: Tensor | None = None
    ) -> Self:
        """Pad runs of rows: sample `i` is `values[order][starts[i] : starts[i] + counts[i]]`."""
        size = max_of(counts) if max_size is None else max_size
        if size < 0:
            raise RaggedError(f"max_size: expected a non-negative number, got {size}")
        sizes = counts.clamp(max=size)
        if values.shape[0] == 0:
            padded = zero_entry(values, 0).expand(counts.shape[0], size, *values.shape[1:])
        else:
            places = torch.arange(size, device=starts.device)
            rows = torch.where(places < sizes.unsqueeze(1), starts.unsqueeze(1) + places, 0).flatten()
            if order is not None:
                rows = order[rows]
            padded = values.index_select(0, rows).unflatten(0, (counts.shape[0], size))
        return cls(padded, sample_sizes=sizes).with_padded_set_to(0)

    @classmethod
    def from_nested(cls, nested: Tensor, max_size: int | None = None) -> Self:
        """Pad a nested tensor of layout `torch.jagged`; differentiable.

        Args:
            nested: Nested tensor (B, n_i, *rest).
            max_size: Padded size; the last entries of a larger sample are dropped. None means the size of the largest
                sample, which costs one synchronisation.

        Returns:
            Batch (B, max_size, *rest), padded with zeros.

        Raises:
            RaggedError: `nested` is not a nested tensor of that layout, or is ragged in another dimension than 1.
        """
        if not nested.is_nested or nested.layout != torch.jagged or getattr(nested, "_ragged_idx", 1) != 1:
            raise RaggedError(
                "nested: expected a nested tensor with layout torch.jagged, ragged in dimension 1, got "
                f"{'a nested' if nested.is_nested else 'a plain'} tensor with layout {nested.layout}"
            )
        jagged: Any = nested  # its methods are not declared on Tensor
        offsets, lengths = jagged.offsets(), jagged.lengths()
        counts = offsets.diff() if lengths is None else lengths
        return cls._from_rows(jagged.values(), offsets[:-1], counts, max_size)

    def to_concatenated(self) -> tuple[Tensor, Tensor]:
        """Concatenate the valid entries of all samples: the inverse of `from_concatenated`.

        Synchronises once. Several batch dimensions are flattened into one.

        Returns:
            `values` (T, *rest) and `batch_index` int64 (T,). In `values` the non-uniform dimension comes first; it has
            swapped places with the first dimension after the batch dimensions.
        """
        flat = self.flatten_batch_dims().get_non_uniform_dimension_transposed_to(1)
        rows = flat.mask.flatten().nonzero().squeeze(1)
        values = flat.tensor.flatten(0, 1).index_select(0, rows)
        return values, rows // max(flat.max_sample_size, 1)

    def to_nested(self) -> Tensor:
        """Convert to a nested tensor (B, n_i, *rest) of layout `torch.jagged`; differentiable.

        Synchronises once.

        Returns:
            The nested tensor; `rest` is as in `to_concatenated`.

        Raises:
            RaggedError: There is more than one batch dimension.
        """
        if self._num_batch_dims != 1:
            raise RaggedError(
                f"batch_shape: expected one batch dimension for a nested tensor, got {tuple(self.batch_shape)}"
            )
        values, _ = self.to_concatenated()
        counts = self.sample_sizes.clamp(0, self.max_sample_size)
        offsets = torch.nn.functional.pad(counts.long().cumsum(0), (1, 0))
        return torch.nested.nested_tensor_from_jagged(values, offsets)

    def split(self) -> list[Any]:
        """Split the batch into its samples, without padding; synchronises once.

        Returns:
            A list of tensors, or nested lists for several batch dimensions. The tensors are views.

        Example:
            >>> import torch
            >>> from detops.ragged import RaggedBatch
            >>> RaggedBatch(torch.arange(6).view(2, 3), sample_sizes=torch.tensor([1, 3])).split()
            [tensor([0]), tensor([3, 4, 5])]
        """
        dim = self._non_uniform_dim - self._num_batch_dims
        sizes = self.sample_sizes.clamp(0, self.max_sample_size).tolist()

        def cut(data: Tensor, size: Any) -> Any:
            if isinstance(size, list):
                return [cut(part, inner) for part, inner in zip(data, size, strict=True)]
            return data.narrow(dim, 0, size)

        return [cut(part, inner) for part, inner in zip(self._tensor, sizes, strict=True)]


def max_of(sizes: Tensor) -> int:
    """Return the largest size, 0 for an empty batch; synchronises."""
    return max(int(sizes.max()), 0) if sizes.numel() > 0 else 0


def pad_samples(
    name: str, tensors: Sequence[Tensor], size: int | None = None, cast: bool = False
) -> tuple[Tensor, list[int]]:
    """Stack samples (n_i, *rest), padded with zeros.

    Args:
        name: The caller's name for the list, for messages.
        tensors: Samples; those without elements may have any shape.
        size: Padded size, or None for that of the largest sample.
        cast: Whether to convert all samples to the dtype and device of the first one that has elements.

    Returns:
        Data (len(tensors), max(n_i), *rest), and the sizes.

    Raises:
        RaggedError: The list is empty, or shapes, dtypes, devices or sizes do not match.
    """
    if len(tensors) == 0:
        raise RaggedError(f"{name}: expected at least one tensor, got none")
    for i, sample in enumerate(tensors):
        if sample.dim() == 0:
            raise RaggedError(f"{name}[{i}]: expected a tensor with at least one dimension, got a scalar")
    model = _model_of(tensors)
    rest = model.shape[1:]
    samples = []
    for i, sample in enumerate(tensors):
        if sample.shape[1:] != rest:
            if sample.numel() > 0:
                raise RaggedError(
                    f"{name}[{i}]: expected shape (n, {', '.join(map(str, rest))}) as in the other samples, "
                    f"got {shape_of(sample)}"
                )
            sample = sample.reshape(0, *rest)
        if cast or sample.numel() == 0:
            sample = sample.to(model.device, model.dtype)
        if (sample.dtype, sample.device) != (model.dtype, model.device):
            raise RaggedError(
                f"{name}[{i}]: expected {model.dtype} on {model.device} as in the other samples, "
                f"got {sample.dtype} on {sample.device}"
            )
        samples.append(sample)
    counts = [sample.shape[0] for sample in samples]
    largest = max(counts)
    data = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
    if size is not None and size != largest:
        if size < largest:
            raise RaggedError(f"{name}: expected samples of at most {size} entries, got {largest}")
        data = torch.cat([data, data.new_zeros(len(samples), size - largest, *rest)], 1)
    return data, counts


def _model_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sample that defines shape, dtype and device of the others: the first one with elements.

    If there is none, it is the first of those with the most dimensions.
    """
    model = tensors[0]
    for sample in tensors:
        if sample.numel() > 0:
            return sample
        if sample.dim() > model.dim():  # not max(key=...), which torch.compile does not trace
            model = sample
    return model
