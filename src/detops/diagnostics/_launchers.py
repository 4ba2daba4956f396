"""Running what a GPU would run for an op of detops, its launcher, with tensors on any device."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_KERNELS = torch._C.DispatchKey.CUDA
_PORTABLE = torch._C.DispatchKey.CompositeExplicitAutograd


def _has_launcher(func: Any) -> bool:
    """Whether a GPU runs Triton kernels for an op, and Triton is installed."""
    has: bool = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CUDA")
    return has and importlib.util.find_spec("triton") is not None


def launcher_key(func: Any) -> Any:
    """The dispatch key of an op's launcher; of its portable form where there is none."""
    return _KERNELS if _has_launcher(func) else _PORTABLE


@contextmanager
def without_kernels(on_launch: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within it, launching a Triton kernel calls `on_launch` and does nothing else."""
    if importlib.util.find_spec("triton") is None:
        yield
        return

    def launch(*args: Any) -> None:
        on_launch()

    kernel = importlib.import_module("detops.kernels._launch").Kernel
    original, kernel.__call__ = kernel.__call__, launch
    try:
        yield
    finally:
        kernel.__call__ = original


def launcher_of(func: Any) -> Callable[..., Any]:
    """The Python function that is an op's launcher; its portable form where there is none."""
    name = func._schema.name.partition("::")[2]
    folder = "kernels" if _has_launcher(func) else "portable"
    found: Callable[..., Any] = getattr(importlib.import_module(f"detops.{folder}.{name.rstrip('_')}"), name)
    return found


def copied_where_written(func: Any, args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    """Arguments for an operator, with copies of those that it writes into."""
    known = func._schema.arguments
    names = [argument.name for argument in known]
    written = {argument.name for argument in known if argument.alias_info and argument.alias_info.is_write}
    given = [_copied(value) if name in written else value for name, value in zip(names, args, strict=False)]
    return given, {name: _copied(value) if name in written else value for name, value in kwargs.items()}


def _copied(value: Any) -> Any:
    return [tensor.clone() for tensor in value] if isinstance(value, (list, tuple)) else value.clone()
