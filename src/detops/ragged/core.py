"""The data of a ragged batch: a padded tensor, and how many entries of each sample are valid.

`RaggedCore` holds the three tensors and what follows from them alone: sizes, mask, padding. The layers above it
(`conversions`, `batch_dims`, `layouts`, `batch`) only build new batches. In this module only `total_num_entries` waits
for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor


class RaggedError(ValueError, AssertionError, RuntimeError):
    """Arguments do not match: the message names the argument, what was expected and what was passed.

    A `ValueError`, and also an `AssertionError` and a `RuntimeError`, because ACCV-Lab's `batching_helpers` asserts in
    Python and raises `RuntimeError` from C++, and code written for it may catch either.
    """


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape as a plain tuple, as error messages show it."""
    return tuple(tensor.shape)


def as_fill_value(value: float, dtype: torch.dtype) -> complex:
    """Convert a number as a cast to `dtype` would: integers truncate, floats overflow to infinity."""
    if dtype == torch.bool:
        return bool(value)
    if dtype.is_complex:
        return value
    if dtype.is_floating_point:
        return math.copysign(math.inf, value) if abs(value) > torch.finfo(dtype).max else value
    limits = torch.iinfo(dtype)
    if not (math.isfinite(value) and limits.min <= int(value) <= limits.max):
        raise RaggedError(f"filler value: expected a number that {dtype} can hold, got {value}")
    return int(value)


def zero_entry(data: Tensor, dim: int) -> Tensor:
    """Return one zero entry along a dimension that has none: a sum over nothing, which autograd can follow."""
    return data.sum(dim, keepdim=True, dtype=data.dtype)


class RaggedCore:
    """Padded tensor, mask and sample sizes: the base of `RaggedBatch`, which documents the arguments."""

    def __init__(
        self,
        tensor: Tensor,
        mask: Tensor | None = None,
        sample_sizes: Tensor | None = None,
        non_uniform_dim: int | None = None,
    ) -> None:
        if sample_sizes is not None:
            num_batch_dims = sample_sizes.dim()
        elif mask is not None:
            num_batch_dims = mask.dim() - 1
        else:
            raise RaggedError("mask, sample_sizes: expected at least one of the two, got neither")
        if not 0 < num_batch_dims < tensor.dim():
            raise RaggedError(
                f"tensor: expected at least one batch dimension and one more, got shape {shape_of(tensor)} "
                f"with {num_batch_dims} batch dimensions"
            )
        if non_uniform_dim is None:
            non_uniform_dim = num_batch_dims
        if not num_batch_dims <= non_uniform_dim < tensor.dim():
            raise RaggedError(
                f"non_uniform_dim: expected a dimension in [{num_batch_dims}, {tensor.dim()}), got {non_uniform_dim}"
            )
        batch_shape = shape_of(tensor)[:num_batch_dims]
        expected = (*batch_shape, tensor.shape[non_uniform_dim])
        if mask is not None and shape_of(mask) != expected:
            raise RaggedError(
                f"mask: expected shape {expected} to match tensor {shape_of(tensor)} with non_uniform_dim "
                f"{non_uniform_dim}, got {shape_of(mask)}"
            )
        if sample_sizes is not None and shape_of(sample_sizes) != batch_shape:
            raise RaggedError(
                f"sample_sizes: expected the batch shape {batch_shape} of tensor {shape_of(tensor)}, "
                f"got {shape_of(sample_sizes)}"
            )
        if sample_sizes is not None and (sample_sizes.is_floating_point() or sample_sizes.dtype == torch.bool):
            raise RaggedError(f"sample_sizes: expected an integer tensor, got {sample_sizes.dtype}")
        for name, part in (("mask", mask), ("sample_sizes", sample_sizes)):
            if part is not None and part.device != tensor.device:
                raise RaggedError(f"{name}: expected device {tensor.device} of tensor, got {part.device}")
        self._tensor = tensor
        self._mask = mask if mask is None or mask.dtype == torch.bool else mask.bool()
        self._sample_sizes = sample_sizes
        self._non_uniform_dim = non_uniform_dim
        self._num_batch_dims = num_batch_dims
        self._total_num_entries: int | None = None

    @property
    def tensor(self) -> Tensor:
        """Padded data (*batch_shape, ..., max_sample_size, ...); use `set_tensor` to replace it."""
        return self._tensor

    @property
    def mask(self) -> Tensor:
        """Which entries are valid, bool (*batch_shape, max_sample_size)."""
        if self._mask is not None:
            return self._mask
        sizes = self.sample_sizes
        mask = torch.arange(self.max_sample_size, device=sizes.device) < sizes.unsqueeze(-1)
        if self._may_keep(sizes):
            self._mask = mask
        return mask

    @property
    def sample_sizes(self) -> Tensor:
        """Number of valid entries per sample, integers (*batch_shape,)."""
        if self._sample_sizes is not None:
            return self._sample_sizes
        mask = self.mask
        sizes = mask.sum(-1, dtype=torch.int64)
        if self._may_keep(mask):
            self._sample_sizes = sizes
        return sizes

    @staticmethod
    def _may_keep(source: Tensor) -> bool:
        # Under compilation a kept tensor would be a side effect (and the compiler shares equal work anyway);
        # under inference_mode autograd could not use it in a batch that outlives the block.
        if torch.compiler.is_compiling():
            return False
        return source.is_inference() or not torch.is_inference_mode_enabled()

    @property
    def non_uniform_dim(self) -> int:
        """Dimension of `tensor` along which the samples differ in size."""
        return self._non_uniform_dim

    @property
    def num_batch_dims(self) -> int:
        """Number of batch dimensions; they are the first dimensions of `tensor`."""
        return self._num_batch_dims

    @property
    def batch_shape(self) -> torch.Size:
        """Sizes of the batch dimensions."""
        return self._tensor.shape[: self._num_batch_dims]

    @property
    def total_num_samples_in_batch(self) -> int:
        """Number of samples: the product of the batch shape."""
        return math.prod(self.batch_shape)

    @property
    def total_num_entries(self) -> int:
        """Number of valid entries in all samples together; the first call synchronises with the device."""
        if self._total_num_entries is None:
            self._total_num_entries = int(self.sample_sizes.sum())
        return self._total_num_entries

    @property
    def max_sample_size(self) -> int:
        """Padded size: the size of `tensor` along the non-uniform dimension."""
        return self._tensor.shape[self._non_uniform_dim]

    @property
    def device(self) -> torch.device:
        """Device of the data."""
        return self._tensor.device

    @property
    def shape(self) -> torch.Size:
        """Shape of the padded `tensor`."""
        return self._tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the data."""
        return self._tensor.dtype

    @property
    def requires_grad(self) -> bool:
        """Whether `tensor` requires gradients; can be set."""
        return self._tensor.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._tensor.requires_grad_(value)

    @property
    def retains_grad(self) -> bool:
        """Whether gradients are retained for `tensor`."""
        return self._tensor.retains_grad

    def retain_grad(self) -> None:
        """Retain the gradient of `tensor` if it is not a leaf."""
        self._tensor.retain_grad()

    def size(self, *args: Any, **kwargs: Any) -> Any:
        """Return `tensor.size(*args, **kwargs)`."""
        return self._tensor.size(*args, **kwargs)

    def dim(self) -> int:
        """Number of dimensions of `tensor`."""
        return self._tensor.dim()

    def __len__(self) -> int:
        """Number of samples in the first batch dimension."""
        return self._tensor.shape[0]

    def __getitem__(self, item: Any) -> Tensor:
        return self._tensor[item]

    def __setitem__(self, item: Any, value: Any) -> None:
        self._tensor[item] = value

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(tensor={self._tensor}, mask={self._mask}, "
            f"sample_sizes={self._sample_sizes}, non_uniform_dim={self._non_uniform_dim}, "
            f"batch_shape={tuple(self.batch_shape)})"
        )

    def _with_tensor(self, tensor: Tensor, non_uniform_dim: int | None = None) -> Self:
        """Return the same samples with other data: mask and sizes are shared as far as they exist."""
        return self._with_changed(tensor, lambda part: part, non_uniform_dim)

    def _with_changed(
        self, tensor: Tensor, change: Callable[[Tensor], Tensor], non_uniform_dim: int | None = None
    ) -> Self:
        """Return the same samples with other data, and with mask and sizes changed as far as they exist."""
        mask = None if self._mask is None else change(self._mask)
        sizes = None if self._sample_sizes is None else change(self._sample_sizes)
        dim = self._non_uniform_dim if non_uniform_dim is None else non_uniform_dim
        made = type(self)(tensor, mask, sizes, dim)
        made._total_num_entries = self._total_num_entries
        return made

    def create_with_sample_sizes_like_self(
        self,
        tensor: Tensor,
        non_uniform_dim: int | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Return a batch with other data and the sample sizes of this batch.

        Args:
            tensor: Padded data with the batch shape and the padded size of this batch; any other dimensions.
            non_uniform_dim: Non-uniform dimension of `tensor`; negative numbers count from the end. None means that of
                this batch.
            device: Device of the result; None means that of `tensor`.

        Returns:
            The new batch; mask and sample sizes are shared, or copied if the device differs.

        Raises:
            RaggedError: The batch shape, the padded size or a dimension does not match.
        """
        dim = self._non_uniform_dim if non_uniform_dim is None else non_uniform_dim
        if dim < 0:
            dim += tensor.dim()
        if not self._num_batch_dims <= dim < tensor.dim():
            raise RaggedError(
                f"non_uniform_dim: expected a dimension in [{self._num_batch_dims}, {tensor.dim()}), "
                f"got {non_uniform_dim}"
            )
        if tensor.shape[: self._num_batch_dims] != self.batch_shape:
            raise RaggedError(f"tensor: expected batch shape {tuple(self.batch_shape)}, got shape {shape_of(tensor)}")
        if tensor.shape[dim] != self.max_sample_size:
            raise RaggedError(
                f"tensor: expected size {self.max_sample_size} in dimension {dim}, got shape {shape_of(tensor)}"
            )
        if device is not None:
            tensor = tensor.to(device)
        return self._with_changed(tensor, lambda part: part.to(tensor.device), dim)

    def as_self_with_cloned_data(self) -> Self:
        """Return a copy with a clone of `tensor`; mask and sample sizes are shared."""
        return self._with_tensor(self._tensor.clone())

    def set_tensor(self, tensor: Tensor) -> None:
        """Replace `tensor`. Batch shape, padded size, non-uniform dimension and device stay the same.

        Args:
            tensor: New padded data; in every sample the valid entries come first.

        Raises:
            RaggedError: The shape or device does not match.
        """
        dim, nb = self._non_uniform_dim, self._num_batch_dims
        fits = tensor.dim() > dim and tensor.shape[:nb] == self.batch_shape
        if not fits or tensor.shape[dim] != self.max_sample_size:
            raise RaggedError(
                f"tensor: expected batch shape {tuple(self.batch_shape)} and size {self.max_sample_size} in "
                f"dimension {dim}, got shape {shape_of(tensor)}"
            )
        if tensor.device != self.device:
            raise RaggedError(f"tensor: expected device {self.device}, got {tensor.device}")
        self._tensor = tensor

    def _mask_like_tensor(self) -> Tensor:
        """Return the mask with dimensions of size 1 added, so that it broadcasts against `tensor`."""
        shape = [1] * self._tensor.dim()
        shape[: self._num_batch_dims] = self.batch_shape
        shape[self._non_uniform_dim] = self.max_sample_size
        return self.mask.reshape(shape)

    def get_existence_weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return 1 where `tensor` is valid and 0 where it is padding.

        Multiplying by these weights does not remove a NaN from the padding; `with_padded_set_to` does.

        Args:
            dtype: Dtype of the result.

        Returns:
            Weights with the shape of `tensor`.

        Example:
            >>> import torch
            >>> from detops.ragged import RaggedBatch
            >>> RaggedBatch(torch.zeros(2, 3), sample_sizes=torch.tensor([1, 3])).get_existence_weights()
            tensor([[1., 0., 0.],
                    [1., 1., 1.]])
        """
        return self._mask_like_tensor().expand(self._tensor.shape).to(dtype, copy=True)

    def with_padded_set_to(self, value_to_set: float) -> Self:
        """Return a copy with the padding set to a value; the gradient of the padding is zero.

        Args:
            value_to_set: The value; truncated for integer data.

        Returns:
            The new batch.

        Raises:
            RaggedError: The dtype cannot hold the value.
        """
        value = as_fill_value(value_to_set, self.dtype)
        return self._with_tensor(self._tensor.masked_fill(~self._mask_like_tensor(), value))

    def set_padded_to(self, value_to_set: float) -> None:
        """Set the padding of `tensor` to a value, in place; the gradient of the padding is zero.

        Autograd does not allow writing to a leaf that requires gradients. Its padding is set outside of the graph, and
        `tensor` becomes a copy of it that passes gradients on to the leaf.

        Args:
            value_to_set: The value; truncated for integer data.

        Raises:
            RaggedError: The dtype cannot hold the value.
        """
        tensor, padding = self._tensor, ~self._mask_like_tensor()
        value = as_fill_value(value_to_set, self.dtype)
        owner = tensor if tensor._base is None else tensor._base
        if not (torch.is_grad_enabled() and tensor.requires_grad and owner.is_leaf):
            tensor.masked_fill_(padding, value)
            return
        with torch.no_grad():
            tensor.masked_fill_(padding, value)
        self._tensor = tensor.masked_fill(padding, value)


def positive_dims(name: str, values: Sequence[int], length: int) -> tuple[int, ...]:
    """Return a sequence of `length` non-negative numbers as a tuple.

    Raises:
        RaggedError: There are more or fewer, or one is negative.
    """
    numbers = tuple(values)
    if len(numbers) != length or any(number < 0 for number in numbers):
        raise RaggedError(f"{name}: expected {length} non-negative numbers, got {numbers}")
    return numbers
