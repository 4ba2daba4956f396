"""Counting the host synchronisations of a call, on any device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detops.diagnostics._launchers import copied_where_written, launcher_of, without_kernels

_SYNC_OPS = {
    "_local_scalar_dense", "item", "nonzero", "nonzero_numpy", "unique", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "masked_select", "equal", "is_nonzero", "argwhere",
}  # fmt: skip
_INDEX_OPS = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
_HOST_READS = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__)


def _copies_across(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> bool:
    """Return whether a copy goes between the host and a device, and waits for it."""
    if kwargs.get("non_blocking"):
        return False
    if name in ("_to_copy", "to"):
        target = kwargs.get("device")
        return target is not None and (torch.device(target).type == "cpu") != (args[0].device.type == "cpu")
    return isinstance(args[1], Tensor) and (args[0].device.type == "cpu") != (args[1].device.type == "cpu")


class _SyncDispatch(TorchDispatchMode):
    """Counts the operators that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.split("::")[1], kwargs or {}
        if func.namespace == "detops":
            return self._within(func, args, kwargs)
        if name in _SYNC_OPS:
            self.count += not self.paused
        elif name in _INDEX_OPS:
            indices = [i for i in args[1] if isinstance(i, Tensor)]
            self.count += any(i.dtype in (torch.bool, torch.uint8) for i in indices)
        elif name == "repeat_interleave":
            self.count += kwargs.get("output_size") is None and not (len(args) > 1 and isinstance(args[1], int))
        elif name in ("_to_copy", "copy_", "to"):  # `to`, as `item`, is seen as such within an op of ours alone
            named = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
            self.count += _copies_across(args, named, name)
        return func(*args, **kwargs)

    def _within(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an op of ours and count what its launcher waits for; without a GPU, with kernels that do nothing."""
        if any(isinstance(leaf, Tensor) and leaf.is_cuda for leaf in tree_leaves((args, kwargs))):
            with self:
                return launcher_of(func)(*args, **kwargs)
        args_copied, kwargs_copied = copied_where_written(func, args, kwargs)
        with without_kernels(), self:
            launcher_of(func)(*args_copied, **kwargs_copied)
        return func(*args, **kwargs)


class _SyncFunction(TorchFunctionMode):
    """Counts the calls that never reach the dispatcher on the CPU, where there is nothing to wait for."""

    def __init__(self, dispatch: _SyncDispatch) -> None:
        super().__init__()
        self.dispatch = dispatch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _HOST_READS:
            # On a device these copy, which the dispatcher would count a second time.
            before = self.dispatch.count
            result = func(*args, **kwargs)
            self.dispatch.count = before + 1
            return result
        if func is torch.nn.functional.one_hot and (args[1:] or kwargs.get("num_classes", -1) != -1):
            # With num_classes given, only the CPU reads the values (to check them).
            self.dispatch.paused = True
            try:
                return func(*args, **kwargs)
            finally:
                self.dispatch.paused = False
        return func(*args, **kwargs)


def count_syncs(fn: Callable[..., object], *args: Any, **kwargs: Any) -> int:
    """Count the host synchronisations that a call causes, or would cause on a GPU.

    Counted on any device, by watching which operators run: `.item()` and all that calls it (`bool`, `int`,
    `if tensor`), `nonzero`, `unique`, indexing with a boolean mask, `masked_select`, `torch.equal`,
    `repeat_interleave` without `output_size`, `.tolist()`, `.numpy()`, `.cpu()`, and blocking copies between
    host and device. Of an op of detops, what the code does that launches its kernels on a GPU counts.

    Args:
        fn: The function to call, once.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The number of synchronisations.

    Example:
        >>> x = torch.arange(4.0)
        >>> count_syncs(lambda: x[x > 1].sum().item())
        2
        >>> count_syncs(lambda: torch.where(x > 1, x, 0).sum())
        0
    """
    dispatch = _SyncDispatch()
    with _SyncFunction(dispatch), dispatch:
        fn(*args, **kwargs)
    return dispatch.count
