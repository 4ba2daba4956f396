"""What the commands do. The one part of the package that may use more than torch, imported where it is used."""

import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from detops.arguments import require_module

if TYPE_CHECKING:
    from rich.console import Console


def require(module: str, package: str, command: str = "", extra: str = "train") -> ModuleType:
    """Import a module of an extra.

    Args:
        module: Name to import.
        package: Name of the project, for the message.
        command: Command that needs it, for the message; empty where several do.
        extra: Extra of detops that installs it.

    Raises:
        ModuleNotFoundError: It is not installed; the message says how to install it.
    """
    return require_module(module, package, f"detops {command}".rstrip(), f"detops[{extra}]")


def import_function(name: str, expected: str) -> Callable[..., object]:
    """Import the function (or class) that "module:function" names; modules of the current folder are found too.

    Args:
        name: Name of the function.
        expected: Beginning of the message about a name of another form, up to "module:function". What stands before
            its colon is the argument's name.

    Raises:
        ValueError: The name has another form, or there is no such function.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f'{expected} "module:function", got {name!r}')
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Callable[..., object] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{expected.partition(':')[0]}: cannot import {name!r}: {error}") from error
    return found


def listed(names: Iterable[str]) -> str:
    """Join names for a sentence: "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def note(console: "Console", text: str, style: str | None = None) -> None:
    """Print one line verbatim: no markup, no emoji codes, no highlighting, no wrapping."""
    console.print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


def warn(console: "Console", text: str) -> None:
    """Print one line verbatim, in yellow."""
    note(console, text, "yellow")
