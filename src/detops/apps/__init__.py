"""What the commands do. Only here may the package use more than torch, and only where it is used."""

from collections.abc import Iterable
from types import ModuleType

from detops.arguments import require_module


def require(module: str, package: str, command: str, extra: str = "train") -> ModuleType:
    """Import a module of an extra.

    Raises:
        ModuleNotFoundError: It is not installed; the message says how to install it.
    """
    return require_module(module, package, f"detops {command}", f"detops[{extra}]")


def listed(names: Iterable[str]) -> str:
    """Names for a sentence: "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
