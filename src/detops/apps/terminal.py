"""What is printed: lines that are one line whatever names hold, and streams whose failure ends no job."""

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160))} | {9: " ", 10: "\\n", 13: "\\r"}


def printable(text: str) -> str:
    """Escape what would break the line or cannot be printed: control characters, and bytes that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode().translate(CONTROL)


def note(console: "Console", text: str, style: str | None = None) -> None:
    """Print one line verbatim: no markup, no emoji codes, no highlighting, no wrapping."""
    console.print(printable(text), style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


def warn(console: "Console", text: str) -> None:
    """Print one line verbatim, in yellow."""
    note(console, text, "yellow")


class Lasting:
    """A text stream that drops what cannot be written: the reader of a pipe may be gone, or the disk full.

    Args:
        stream: The stream that is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or drop what was not written."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        """Send what is left, and all that follows, to nowhere if the stream is gone."""
        if isinstance(error, OSError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


def make_streams_last() -> None:
    """Let no failure of the terminal, of a pipe or of a log file end a job, nor a character that it cannot hold."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, Lasting):
            continue
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, cast(TextIO, Lasting(stream)))
