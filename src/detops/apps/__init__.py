"""What the commands do. Only here may the package use more than torch, and only where it is used."""

import importlib
from collections.abc import Iterable
from types import ModuleType


def require(module: str, package: str, command: str, extra: str = "train") -> ModuleType:
    """Import a module of an extra.

    Raises:
        ModuleNotFoundError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f'detops {command} needs {package}: pip install "detops[{extra}]"'
        raise ModuleNotFoundError(message, name=error.name) from error


def listed(names: Iterable[str]) -> str:
    """Names for a sentence: "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
