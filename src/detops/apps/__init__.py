"""What the commands do. The one part of the package that may use more than torch, imported where it is used."""

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import torch

from detops.apps.terminal import note, warn
from detops.arguments import flat, require_module

__all__ = ["choose_device", "import_function", "listed", "note", "require", "usable_cores", "warn"]


def require(module: str, package: str, command: str = "", extra: str = "train") -> ModuleType:
    """Import a module of an extra.

    Args:
        module: Name to import.
        package: Name of the project, for the message.
        command: Command that needs it, for the message; empty where several do.
        extra: Extra of detops that installs it.

    Raises:
        ModuleNotFoundError: It is not installed; the message says how to install it.
        ImportError: It is installed and cannot be imported; the message says why.
    """
    return require_module(module, package, f"detops {command}".rstrip(), f"detops[{extra}]")


def import_function(name: str, expected: str) -> Callable[..., object]:
    """Import the function (or class) that "module:function" names; modules of the current folder are found too.

    Args:
        name: Name of the function.
        expected: Beginning of the message about a name of another form, up to "module:function". What stands before
            its colon is the argument's name.

    Raises:
        ValueError: The name has another form, there is no such function, or its module cannot be imported.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f'{expected} "module:function", got {name!r}')
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Callable[..., object] = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(f"{expected.partition(':')[0]}: cannot import {name!r}: {flat(error)}") from error
    if not callable(found):
        raise ValueError(f"{expected.partition(':')[0]}: expected {name!r} to be a function, got {found!r:.80}")
    return found


def choose_device(name: str | None, gpu: bool | None = None) -> torch.device:
    """Return the device of this name, or by default a GPU if there is one.

    Args:
        name: Torch's name of the device.
        gpu: Whether there are GPUs elsewhere, where the device is used; None tries the device here.

    Raises:
        ValueError: There is no such device, or it cannot compute.
    """
    if name is None:
        return torch.device("cuda" if (torch.cuda.is_available() if gpu is None else gpu) else "cpu")
    try:
        device = torch.device(name)
        if gpu is None:
            torch.ones(1, device=device).sum().item()
    except Exception as error:  # each backend has its own
        raise ValueError(f"device: cannot compute on {name!r}: {flat(error, 200)}") from error
    return device


def listed(names: Iterable[str]) -> str:
    """Join names for a sentence: "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
