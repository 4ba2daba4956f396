"""A ragged batch on another device, in another type, or cut from the graph."""

from __future__ import annotations

from typing import Any, Self

import torch

from .core import RaggedCore

# The names `int`, `float` and `bool` are methods here, so this class stands alone: annotations in the other
# classes mean the builtins.


class RaggedConversions(RaggedCore):
    """Conversions of the data; samples and sizes stay."""

    def to_device(self, device: torch.device | str) -> Self:
        """Moves data, mask and sizes, the latter two as far as they exist already."""
        mask = None if self._mask is None else self._mask.to(device)
        sizes = None if self._sample_sizes is None else self._sample_sizes.to(device)
        made = type(self)(self._tensor.to(device), mask, sizes, self._non_uniform_dim)
        made._total_num_entries = self._total_num_entries
        return made

    def cpu(self) -> Self:
        """Moves the batch to the CPU."""
        return self.to_device("cpu")

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Converts `tensor` by `torch.Tensor.to`; mask and sizes follow to another device."""
        return self.create_with_sample_sizes_like_self(self._tensor.to(*args, **kwargs))

    def to_dtype(self, dtype: torch.dtype) -> Self:
        """Converts the data to `dtype`."""
        return self._with_tensor(self._tensor.to(dtype))

    def detach(self) -> Self:
        """Cuts the data from the autograd graph."""
        return self._with_tensor(self._tensor.detach())

    def int(self) -> Self:
        """Converts the data to int32."""
        return self.to_dtype(torch.int32)

    def long(self) -> Self:
        """Converts the data to int64."""
        return self.to_dtype(torch.int64)

    def bool(self) -> Self:
        """Converts the data to bool."""
        return self.to_dtype(torch.bool)

    def half(self) -> Self:
        """Converts the data to float16."""
        return self.to_dtype(torch.float16)

    def bfloat16(self) -> Self:
        """Converts the data to bfloat16."""
        return self.to_dtype(torch.bfloat16)

    def float(self) -> Self:
        """Converts the data to float32."""
        return self.to_dtype(torch.float32)

    def double(self) -> Self:
        """Converts the data to float64."""
        return self.to_dtype(torch.float64)

    def cfloat(self) -> Self:
        """Converts the data to complex64."""
        return self.to_dtype(torch.complex64)

    def cdouble(self) -> Self:
        """Converts the data to complex128."""
        return self.to_dtype(torch.complex128)
