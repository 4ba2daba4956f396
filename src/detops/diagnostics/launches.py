"""Counting the kernels that a call launches, on any device."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detops.diagnostics._launchers import copied_where_written, launcher_key, without_kernels

# Operators that are no views by their schema and yet launch nothing. Reading a number is a copy to the host.
_FREE = {
    "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift",
    "resize_", "set_", "is_same_size", "is_pinned", "_pin_memory", "record_stream", "_local_scalar_dense",
}  # fmt: skip
_EXPLICIT = torch._C.DispatchKey.CompositeExplicitAutograd
_has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key


class _LaunchDispatch(TorchDispatchMode):
    """Counts the operators that launch a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, before = kwargs or {}, self.count
        if func.namespace == "detops":
            with without_kernels(self._count_launch):
                self._count_within(launcher_key(func), func, args, kwargs)
            return func(*args, **kwargs)
        key = _composition(func)
        if key is not None:
            # Some cannot be run this way: constants inside come as numbers where a tensor is due. They count as one.
            with suppress(RuntimeError, TypeError):
                self._count_within(key, func, args, kwargs)
        result = func(*args, **kwargs)
        if self.count == before and not _is_free(func):
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.count += not made or any(tensor.numel() for tensor in made)
        return result

    def _count_within(self, key: Any, func: Any, args: Any, kwargs: Any) -> None:
        """Count what an operator's implementation under a dispatch key launches; its result is dropped."""
        given, named = copied_where_written(func, args, kwargs)
        before = self.count
        try:
            with self:
                func._op_dk(key, *given, **named)
        except BaseException:
            self.count = before
            raise

    def _count_launch(self) -> None:
        self.count += 1


def _is_free(func: Any) -> bool:
    return _is_view(func) or func.namespace == "prim" or func._schema.name.partition("::")[2] in _FREE


def _is_view(func: Any) -> bool:
    return any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)


def _composition(func: Any) -> Any:
    """The dispatch key of an operator that PyTorch composes of others; None if it is a kernel or a view itself."""
    implicit = torch._C.DispatchKey.CompositeImplicitAutograd
    if _has_kernel(func.name(), implicit.name):
        return implicit  # such as `contiguous`, which may copy; seen whole within another operator alone
    explicit = not _has_kernel(func.name(), "CPU") and _has_kernel(func.name(), _EXPLICIT.name)
    return _EXPLICIT if explicit and not _is_free(func) else None


def count_launches(fn: Callable[..., object], *args: Any, **kwargs: Any) -> int:
    """Count the kernels that a call launches, or would launch on a GPU.

    Counted on any device, by watching which operators run, forward and backward: an operator of PyTorch that computes,
    fills or copies is one kernel; views and allocations are none. An operator that PyTorch composes of others counts as
    these. For an op of detops the GPU's launcher runs with kernels that do nothing, so that all it launches is counted;
    where Triton is not installed, the portable form, which a GPU would then run. Copies between the host and the
    device are left out.

    The number is close, not exact: a sort, a `topk` or a large reduction is one here and a few on a GPU, and work that
    depends on values is counted with the values at hand. `count_kernels` counts on a GPU.

    Args:
        fn: The function to call, once.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The number of kernels.

    Example:
        >>> x = torch.arange(4.0)
        >>> count_launches(lambda: (x.view(2, 2).T * 2 + 1).sum())
        3
    """
    dispatch = _LaunchDispatch()
    with dispatch:
        fn(*args, **kwargs)
    return dispatch.count


def count_kernels(fn: Callable[..., object], *args: Any, **kwargs: Any) -> int:
    """Count the kernels, fills and copies within the device that a call starts on a CUDA or ROCm device.

    Args:
        fn: The function to call, once.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The number that PyTorch's profiler saw.
    """
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profiler:
        fn(*args, **kwargs)
        torch.cuda.synchronize()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    on_device = [e for e in events if e.device_type() == DeviceType.CUDA and not e.is_user_annotation()]
    return sum("HtoD" not in event.name() and "DtoH" not in event.name() for event in on_device)
