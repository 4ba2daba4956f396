"""A ragged batch on another device, in pinned memory, in another dtype, or detached."""

from __future__ import annotations

from typing import Any, Self

import torch

from detops.ragged.core import RaggedCore

# A class of its own, because its methods `int`, `float` and `bool` would hide the builtins from the annotations of the
# other classes.


class RaggedConversions(RaggedCore):
    """Methods that convert or move the data; mask and sample sizes keep their values."""

    def to_device(self, device: torch.device | str) -> Self:
        """Move the data, and mask and sample sizes as far as they exist."""
        return self.to(device)

    def cpu(self) -> Self:
        """Move the batch to the CPU."""
        return self.to("cpu")

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Convert the data by `torch.Tensor.to`; to another device, mask and sample sizes move along.

        Args:
            *args: Positional arguments of `torch.Tensor.to`: a dtype, a device, or a tensor to be like.
            **kwargs: Keyword arguments of `torch.Tensor.to`; `non_blocking` holds for mask and sample sizes too.

        Returns:
            The new batch.
        """
        # In every overload of Tensor.to the first bool is non_blocking.
        flags = [arg for arg in args if isinstance(arg, bool)]
        non_blocking = flags[0] if flags else kwargs.get("non_blocking", False)
        tensor = self._tensor.to(*args, **kwargs)
        return self._with_changed(tensor, lambda part: part.to(tensor.device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copy every tensor of the batch to pinned memory, from where `to(device, non_blocking=True)` does not wait.

        `torch.utils.data.DataLoader` calls this with `pin_memory=True`.
        """
        return self._with_changed(self._tensor.pin_memory(), lambda part: part.pin_memory())

    def to_dtype(self, dtype: torch.dtype) -> Self:
        """Convert the data to `dtype`."""
        return self._with_tensor(self._tensor.to(dtype))

    def detach(self) -> Self:
        """Detach the data from the autograd graph."""
        return self._with_tensor(self._tensor.detach())

    def int(self) -> Self:
        """Convert the data to int32."""
        return self.to_dtype(torch.int32)

    def long(self) -> Self:
        """Convert the data to int64."""
        return self.to_dtype(torch.int64)

    def bool(self) -> Self:
        """Convert the data to bool."""
        return self.to_dtype(torch.bool)

    def half(self) -> Self:
        """Convert the data to float16."""
        return self.to_dtype(torch.float16)

    def bfloat16(self) -> Self:
        """Convert the data to bfloat16."""
        return self.to_dtype(torch.bfloat16)

    def float(self) -> Self:
        """Convert the data to float32."""
        return self.to_dtype(torch.float32)

    def double(self) -> Self:
        """Convert the data to float64."""
        return self.to_dtype(torch.float64)

    def cfloat(self) -> Self:
        """Convert the data to complex64."""
        return self.to_dtype(torch.complex64)

    def cdouble(self) -> Self:
        """Convert the data to complex128."""
        return self.to_dtype(torch.complex128)
