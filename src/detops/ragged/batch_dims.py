"""A ragged batch with other batch dimensions, or with its non-uniform dimension elsewhere.

Everything here follows from shapes alone: the host never waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from torch import Tensor

from detops.ragged.core import RaggedCore, RaggedError, positive_dims

Ragged = TypeVar("Ragged", bound="RaggedBatchDims")


class RaggedBatchDims(RaggedCore):
    """Methods that rearrange dimensions."""

    def _map_parts(self, change: Callable[[Tensor], Tensor], dims_added: int = 0) -> Self:
        """Apply one change of the batch dimensions to tensor, mask and sizes alike."""
        mask = None if self._mask is None else change(self._mask)
        sizes = None if self._sample_sizes is None else change(self._sample_sizes)
        return type(self)(change(self._tensor), mask, sizes, self._non_uniform_dim + dims_added)

    def get_non_uniform_dimension_transposed_to(self, dim: int) -> Self:
        """Swap the non-uniform dimension with another one.

        Args:
            dim: New place of the non-uniform dimension, after the batch dimensions.

        Returns:
            The new batch, or this one if nothing changes.

        Raises:
            RaggedError: `dim` is a batch dimension or out of range.
        """
        if not self._num_batch_dims <= dim < self._tensor.dim():
            raise RaggedError(f"dim: expected a dimension in [{self._num_batch_dims}, {self._tensor.dim()}), got {dim}")
        if dim == self._non_uniform_dim:
            return self
        return self._with_tensor(self._tensor.transpose(self._non_uniform_dim, dim), dim)

    def unsqueeze_data_dim(self, dim: int) -> Self:
        """Add a dimension of size 1 after the batch dimensions.

        Args:
            dim: Place of the new dimension in the result; negative numbers count from the end.

        Returns:
            The new batch; `non_uniform_dim` is larger by 1 if the new dimension comes before it.

        Raises:
            RaggedError: `dim` is a batch dimension or out of range.
        """
        place = dim + self._tensor.dim() + 1 if dim < 0 else dim
        if not self._num_batch_dims <= place <= self._tensor.dim():
            raise RaggedError(f"dim: expected a place in [{self._num_batch_dims}, {self._tensor.dim()}], got {dim}")
        shift = 1 if place <= self._non_uniform_dim else 0
        return self._with_tensor(self._tensor.unsqueeze(place), self._non_uniform_dim + shift)

    def unsqueeze_batch_dim(self, dim: int) -> Self:
        """Add a batch dimension of size 1.

        Args:
            dim: Place of the new dimension, 0 .. num_batch_dims.

        Returns:
            The new batch; `non_uniform_dim` is larger by 1.

        Raises:
            RaggedError: `dim` is out of range.
        """
        if not 0 <= dim <= self._num_batch_dims:
            raise RaggedError(f"dim: expected a place in [0, {self._num_batch_dims}], got {dim}")
        return self._map_parts(lambda part: part.unsqueeze(dim), 1)

    def squeeze_batch_dim(self, batch_dim: int) -> Self:
        """Remove a batch dimension of size 1.

        Args:
            batch_dim: The dimension, 0 .. num_batch_dims - 1.

        Returns:
            The new batch; `non_uniform_dim` is smaller by 1.

        Raises:
            RaggedError: The dimension has another size, is out of range, or is the only batch dimension.
        """
        self._check_batch_dim(batch_dim)
        if self.batch_shape[batch_dim] != 1:
            raise RaggedError(
                f"batch_dim: expected a dimension of size 1, got dimension {batch_dim} of batch shape "
                f"{tuple(self.batch_shape)}"
            )
        if self._num_batch_dims == 1:
            raise RaggedError("batch_dim: expected more than one batch dimension, one has to remain")
        return self._map_parts(lambda part: part.squeeze(batch_dim), -1)

    def reshape_batch_dims(self, new_batch_shape: int | Sequence[int]) -> Self:
        """Reshape the batch dimensions.

        Args:
            new_batch_shape: The new batch shape, or a single size; one size may be -1, which is then inferred.

        Returns:
            The new batch; `non_uniform_dim` changes with the number of batch dimensions.

        Raises:
            RaggedError: The number of samples differs.

        Example:
            >>> import torch
            >>> from detops.ragged import RaggedBatch
            >>> batch = RaggedBatch(torch.zeros(6, 4, 2), sample_sizes=torch.tensor([4, 0, 1, 2, 3, 4]))
            >>> batch.reshape_batch_dims((2, -1)).shape
            torch.Size([2, 3, 4, 2])
        """
        wanted = (new_batch_shape,) if isinstance(new_batch_shape, int) else tuple(new_batch_shape)
        shape = self._infer_batch_shape(wanted)
        old = self._num_batch_dims
        return self._map_parts(lambda part: part.reshape(*shape, *part.shape[old:]), len(shape) - old)

    def _infer_batch_shape(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        # Tensor.reshape cannot infer -1 if another dimension is empty.
        total = self.total_num_samples_in_batch
        known = math.prod([size for size in wanted if size != -1])
        shape = wanted
        if wanted.count(-1) == 1 and known > 0:
            shape = tuple(total // known if size == -1 else size for size in wanted)
        if not shape or min(shape) < 0 or math.prod(shape) != total:
            raise RaggedError(
                f"new_batch_shape: expected sizes for {total} samples, got {wanted} for batch shape "
                f"{tuple(self.batch_shape)}"
            )
        return shape

    def flatten_batch_dims(self) -> Self:
        """Merge all batch dimensions into one."""
        return self.reshape_batch_dims(self.total_num_samples_in_batch)

    def _check_batch_dim(self, batch_dim: int) -> None:
        if not 0 <= batch_dim < self._num_batch_dims:
            raise RaggedError(f"batch_dim: expected a dimension in [0, {self._num_batch_dims}), got {batch_dim}")

    def repeat_samples(self, num_repeats: int | Sequence[int], batch_dim: int | None = None) -> Self:
        """Repeat the samples along one batch dimension or along all.

        Args:
            num_repeats: Number of repetitions, or one number per batch dimension.
            batch_dim: Dimension that a single number applies to, default 0; must be None for a sequence.

        Returns:
            The new batch.

        Raises:
            RaggedError: The arguments do not match the batch dimensions.

        Example:
            >>> import torch
            >>> from detops.ragged import RaggedBatch
            >>> batch = RaggedBatch(torch.zeros(2, 3), sample_sizes=torch.tensor([1, 3]))
            >>> batch.repeat_samples(2).sample_sizes
            tensor([1, 3, 1, 3])
        """
        if isinstance(num_repeats, int):
            dim = 0 if batch_dim is None else batch_dim
            self._check_batch_dim(dim)
            repeats = tuple(num_repeats if i == dim else 1 for i in range(self._num_batch_dims))
        elif batch_dim is not None:
            raise RaggedError(f"batch_dim: expected None beside a sequence num_repeats, got {batch_dim}")
        else:
            repeats = tuple(num_repeats)
        repeats = positive_dims("num_repeats", repeats, self._num_batch_dims)
        return self._map_parts(lambda part: part.repeat(*repeats, *(1,) * (part.dim() - len(repeats))))

    def broadcast_batch_dims_to_shape(self, new_batch_shape: Sequence[int]) -> Self:
        """Repeat the samples until the batch shape is `new_batch_shape`.

        Args:
            new_batch_shape: A multiple of the batch shape in every dimension.

        Returns:
            The new batch.

        Raises:
            RaggedError: A size is not a multiple, or the number of dimensions differs.
        """
        wanted = positive_dims("new_batch_shape", new_batch_shape, self._num_batch_dims)
        sizes = tuple(self.batch_shape)
        if any(new != old and (old == 0 or new % old != 0) for new, old in zip(wanted, sizes, strict=True)):
            raise RaggedError(f"new_batch_shape: expected multiples of the batch shape {sizes}, got {wanted}")
        repeats = [1 if new == old else new // old for new, old in zip(wanted, sizes, strict=True)]
        return self.repeat_samples(repeats)

    @staticmethod
    def broadcast_batch_dims(data: Sequence[Ragged]) -> list[Ragged]:
        """Repeat the samples of several batches until their batch shapes agree.

        Args:
            data: Batches with the same number of batch dimensions.

        Returns:
            One batch per input; in every dimension the batch shape is the largest of the inputs'.

        Raises:
            RaggedError: The numbers of batch dimensions differ, or a batch shape does not divide the common one.
        """
        shapes = [tuple(batch.batch_shape) for batch in data]
        if len({len(shape) for shape in shapes}) > 1:
            raise RaggedError(f"data: expected the same number of batch dimensions, got shapes {shapes}")
        common = [max(sizes) for sizes in zip(*shapes, strict=True)]
        return [batch.broadcast_batch_dims_to_shape(common) for batch in data]
