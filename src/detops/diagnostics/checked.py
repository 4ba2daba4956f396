"""Checked mode: values that are skipped silently raise an error that names them."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

_checked: ContextVar[bool] = ContextVar("detops_checked", default=os.environ.get("DETOPS_CHECKED") == "1")


@contextmanager
def checked(enabled: bool = True) -> Iterator[None]:
    """Turn value checks on: a box that would be skipped silently raises a `ValueError` that names it.

    Values are read on the host, so a checked call synchronises with the device. The environment variable
    `DETOPS_CHECKED=1` turns the checks on for a whole process. Inside `torch.compile` values are not checked.

    Args:
        enabled: False turns the checks off within the block.

    Example:
        >>> import torch, detops
        >>> with detops.checked():
        ...     detops.draw_heatmap(torch.zeros(1, 4, 4), torch.tensor([[1, 1]]), torch.tensor([1]), torch.tensor([7]))
        Traceback (most recent call last):
        ValueError: heatmap_idxes: box 0 has 7, expected a value in 0 .. 0
    """
    token = _checked.set(enabled)
    try:
        yield
    finally:
        _checked.reset(token)


def is_checked() -> bool:
    """Return whether value checks are on here; always False while torch.compile traces."""
    return not torch.compiler.is_compiling() and _checked.get()


def unchecked() -> AbstractContextManager[None]:
    """Turn checked mode off, for calls whose arguments have been checked already."""
    return checked(False) if is_checked() else nullcontext()
