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
        """Move data, mask and sizes, the latter two as far as they exist already."""
        return self.to(device)

    def cpu(self) -> Self:
        """Move the batch to the CPU."""
        return self.to("cpu")

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Convert `tensor` by `torch.Tensor.to`; mask and sizes follow to another device, by `non_blocking` as well.

        Args:
            *args: Arguments of `torch.Tensor.to`: a dtype, a device and a dtype, or another tensor.
            **kwargs: Likewise.

        Returns:
            The new batch.
        """
        # In every form of Tensor.to the first bool is non_blocking.
        flags = [arg for arg in args if isinstance(arg, bool)]
        non_blocking = flags[0] if flags else kwargs.get("non_blocking", False)
        tensor = self._tensor.to(*args, **kwargs)
        return self._with_changed(tensor, lambda part: part.to(tensor.device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copy every tensor of the batch to pinned memory, from which copies to a GPU need not wait.

        `torch.utils.data.DataLoader` does this with `pin_memory=True`.
        """
        return self._with_changed(self._tensor.pin_memory(), lambda part: part.pin_memory())

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
