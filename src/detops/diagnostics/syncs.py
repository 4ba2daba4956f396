"""Counting the host synchronisations of a call, on any device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_SYNC_OPS = {
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "unique", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "masked_select", "equal", "is_nonzero", "argwhere",
}  # fmt: skip  # fmt: skip
_INDEX_OPS = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
_HOST_READS = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__)


def _copies_across(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> bool:
    """Return whether a copy goes between the host and a device, and waits for it."""
    if kwargs.get("non_blocking"):
        return False
    if name == "_to_copy":
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
        if name in _SYNC_OPS:
            self.count += not self.paused
        elif name in _INDEX_OPS:
            indices = [i for i in args[1] if isinstance(i, Tensor)]
            self.count += any(i.dtype in (torch.bool, torch.uint8) for i in indices)
        elif name == "repeat_interleave":
            self.count += kwargs.get("output_size") is None and not (len(args) > 1 and isinstance(args[1], int))
        elif name in ("_to_copy", "copy_"):
            self.count += _copies_across(args, kwargs, name)
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
    host and device. Synchronisations inside a compiled kernel are not seen.

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
