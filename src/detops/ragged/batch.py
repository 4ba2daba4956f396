"""`RaggedBatch`: a batch of samples that differ in size along one dimension, as one padded tensor.

The class is built in layers: the tensors (`core`), conversions (`conversions`), batch dimensions (`batch_dims`), other
storage formats (`layouts`), and, in this module, constructors and `apply`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any, Self

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from detops.ragged.conversions import RaggedConversions
from detops.ragged.core import RaggedError, positive_dims, shape_of
from detops.ragged.layouts import RaggedLayouts, max_of

__all__ = ["RaggedBatch", "RaggedError"]


class RaggedBatch(RaggedLayouts, RaggedConversions):
    """A batch of samples of different sizes, padded to the size of the largest; semantics as in ACCV-Lab.

    The first dimensions of `tensor`, one or more, are batch dimensions. One of the dimensions after them, the
    non-uniform dimension, has the size of the largest sample. The entries of a smaller sample come first; the rest is
    padding, whose values have no meaning. `mask` and `sample_sizes` hold the same information in two forms; if only one
    is given, the other is computed at its first use. Both may be shared between batches, so never change them in place.

    `tensor`, `mask` and `sample_sizes` are tensors; `non_uniform_dim`, `num_batch_dims`, `batch_shape`,
    `max_sample_size`, `shape`, `dtype` and `device` follow from them. Indexing a batch indexes its `tensor`; its length
    is the size of the first batch dimension.

    Args:
        tensor: Padded data (*batch_shape, ..., max_sample_size, ...).
        mask: Bool (*batch_shape, max_sample_size), True for the first entries of every sample.
        sample_sizes: Integers (*batch_shape,). At least one of `mask` and `sample_sizes` is needed; if both are given
            they have to agree, which is not checked.
        non_uniform_dim: Dimension of `tensor` along which the sizes differ; by default the first after the batch
            dimensions.

    Raises:
        RaggedError: Shapes, devices or dimensions do not match.

    Example:
        >>> import torch
        >>> from detops.ragged import RaggedBatch
        >>> boxes = RaggedBatch(torch.zeros(2, 3, 4), sample_sizes=torch.tensor([1, 3]))
        >>> boxes.mask
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """

    @classmethod
    def FromOversizeTensor(  # noqa: N802
        cls,
        tensor: Tensor,
        mask: Tensor | None = None,
        sample_sizes: Tensor | None = None,
        non_uniform_dim: int | None = None,
    ) -> Self:
        """Return a batch from data with more padding than necessary, which is cut off.

        The name is ACCV-Lab's. Synchronises with the device once, to read the size of the largest sample.

        Args:
            tensor: Padded data (*batch_shape, ..., padded_size, ...).
            mask: Bool (*batch_shape, M), with M from the size of the largest sample to the padded size.
            sample_sizes: Integers (*batch_shape,); at least one of `mask` and `sample_sizes` is needed.
            non_uniform_dim: Dimension of `tensor` along which the sizes differ; by default the first after the batch
                dimensions.

        Returns:
            The batch; its data is a view of `tensor`.

        Raises:
            RaggedError: Shapes, devices or dimensions do not match.
        """
        if mask is not None and mask.dim() > 1:
            dim = mask.dim() - 1 if non_uniform_dim is None else non_uniform_dim
            if 0 <= dim < tensor.dim() and mask.shape[-1] < tensor.shape[dim]:
                tensor = tensor.narrow(dim, 0, mask.shape[-1])
        full = cls(tensor, mask, sample_sizes, non_uniform_dim)
        sizes, dim = full.sample_sizes, full.non_uniform_dim
        largest = min(max_of(sizes), full.max_sample_size)
        cut_mask = None if mask is None else full.mask.narrow(-1, 0, largest)
        return cls(tensor.narrow(dim, 0, largest), cut_mask, sizes, dim)

    @classmethod
    def Empty(  # noqa: N802
        cls,
        num_dims: int,
        non_uniform_dim: int,
        device: torch.device | str,
        num_batch_dims: int | None = None,
        batch_shape: Sequence[int] | int | None = None,
    ) -> Self:
        """Return a float32 batch without entries.

        The name is ACCV-Lab's.

        Args:
            num_dims: Number of dimensions of the data.
            non_uniform_dim: The non-uniform dimension.
            device: Device of the batch.
            num_batch_dims: Number of batch dimensions, each of size 0; not together with `batch_shape`.
            batch_shape: Sizes of the batch dimensions; a number means one dimension. If neither this nor
                `num_batch_dims` is given, there is one batch dimension of size 0.

        Returns:
            The batch; all dimensions after the batch dimensions have size 0.

        Raises:
            RaggedError: Both `num_batch_dims` and `batch_shape` are given, or the dimensions do not match.
        """
        if num_batch_dims is not None and batch_shape is not None:
            raise RaggedError("num_batch_dims, batch_shape: expected at most one of the two, got both")
        if batch_shape is None:
            wanted: Sequence[int] = (0,) * (1 if num_batch_dims is None else num_batch_dims)
        else:
            wanted = (batch_shape,) if isinstance(batch_shape, int) else batch_shape
        shape = positive_dims("batch_shape", wanted, len(wanted))
        if not 0 < len(shape) < num_dims:
            raise RaggedError(
                f"num_dims: expected more dimensions than batch dimensions, and one of those or more, "
                f"got {num_dims} with {len(shape)} batch dimensions"
            )
        tensor = torch.zeros(*shape, *(0,) * (num_dims - len(shape)), device=device)
        sizes = torch.zeros(shape, dtype=torch.int64, device=device)
        return cls(tensor, sample_sizes=sizes, non_uniform_dim=non_uniform_dim)

    @classmethod
    def FromFullTensor(  # noqa: N802
        cls, full_tensor: Tensor, non_uniform_dim: int = 1, num_batch_dims: int = 1
    ) -> Self:
        """Return a batch whose samples all have the full size.

        The name is ACCV-Lab's.

        Args:
            full_tensor: Data without padding (*batch_shape, ...).
            non_uniform_dim: Dimension to use as the non-uniform dimension.
            num_batch_dims: Number of batch dimensions.

        Returns:
            The batch; its data is `full_tensor`.

        Raises:
            RaggedError: The dimensions do not match.
        """
        if not 0 < num_batch_dims <= non_uniform_dim < full_tensor.dim():
            raise RaggedError(
                f"non_uniform_dim: expected a dimension after {num_batch_dims} (>= 1) batch dimensions "
                f"of full_tensor {shape_of(full_tensor)}, got {non_uniform_dim}"
            )
        sizes = torch.full(
            full_tensor.shape[:num_batch_dims],
            full_tensor.shape[non_uniform_dim],
            dtype=torch.int64,
            device=full_tensor.device,
        )
        return cls(full_tensor, sample_sizes=sizes, non_uniform_dim=non_uniform_dim)

    def apply(self, proc_step: Callable[..., Any]) -> Any:
        """Apply a function to the data.

        The function is called with `tensor`, `tensor, mask` or `tensor, mask, sample_sizes`, according to the number of
        its required positional parameters (with `tensor` if that is unknown). If it has optional or keyword-only
        parameters named `mask` or `sample_sizes`, they are passed by keyword.

        Inside `torch.compile`, wrap functions of `torch.nn.functional` in a lambda, and define functions with optional
        parameters outside of the compiled function.

        Args:
            proc_step: The function. It returns a tensor or a tuple of tensors whose batch dimensions and non-uniform
                dimension are those of this batch.

        Returns:
            A batch, or a tuple of batches.

        Raises:
            RaggedError: The function requires more than three arguments, or the shape of a result does not match.

        Example:
            >>> import torch
            >>> from detops.ragged import RaggedBatch
            >>> batch = RaggedBatch(torch.tensor([[1., 4.]]), sample_sizes=torch.tensor([2]))
            >>> batch.apply(torch.sqrt).tensor
            tensor([[1., 2.]])
        """
        num_args, names = parameters_of(proc_step)
        if num_args > 3:
            raise RaggedError(f"proc_step: expected a function of 1 to 3 arguments, got one of {num_args}")
        args = [self._tensor]
        if num_args > 1:
            args.append(self.mask)
        if num_args > 2:
            args.append(self.sample_sizes)
        named = {}
        if "mask" in names:
            named["mask"] = self.mask
        if "sample_sizes" in names:
            named["sample_sizes"] = self.sample_sizes
        result = proc_step(*args, **named)
        if isinstance(result, tuple):
            return tuple(self._with_tensor(part) for part in result)
        return self._with_tensor(result)


def parameters_of(function: Callable[..., Any]) -> tuple[int, tuple[str, ...]]:
    """Return the number of positional arguments to call a function with, and the names of its other parameters.

    The number is that of its required positional parameters, and at least 1. If the function cannot be inspected, it is
    1, without names.
    """
    if isinstance(function, torch.nn.Module):
        function = function.forward
    if torch.compiler.is_compiling():
        return _parameters_while_compiling(function)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # builtins such as torch.sin
        return 1, ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = [p for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    count = max(len(required), 1)
    fixed = function.keywords if isinstance(function, functools.partial) else {}
    return count, tuple(p.name for p in parameters[count:] if p.kind in by_name and p.name not in fixed)


def _parameters_while_compiling(function: Callable[..., Any]) -> tuple[int, tuple[str, ...]]:
    # The compiler cannot trace inspect.signature, but it can trace the attributes of functions and methods.
    bound = isinstance(function, MethodType)
    plain = function.__func__ if isinstance(function, MethodType) else function
    if not isinstance(plain, FunctionType):
        return 1, ()
    code = plain.__code__
    count = max(code.co_argcount - len(plain.__defaults__ or ()) - bound, 1)
    first = max(count + bound, code.co_posonlyargcount)
    return count, code.co_varnames[first : code.co_argcount + code.co_kwonlyargcount]


def _flatten(batch: RaggedBatch) -> tuple[list[Any], tuple[int, int]]:
    parts = [batch._tensor, batch._mask, batch._sample_sizes]
    return parts, (batch._non_uniform_dim, batch._num_batch_dims)


def _unflatten(parts: Any, context: tuple[int, int]) -> RaggedBatch:
    # Without checks: a tree_map may replace the tensors by anything.
    batch = object.__new__(RaggedBatch)
    batch._tensor, batch._mask, batch._sample_sizes = parts
    batch._non_uniform_dim, batch._num_batch_dims = context
    batch._total_num_entries = None
    return batch


pytree.register_pytree_node(RaggedBatch, _flatten, _unflatten, serialized_type_name="detops.ragged.RaggedBatch")
