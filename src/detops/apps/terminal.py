"""What is printed: lines that are one line whatever names hold, and streams whose failure ends no job."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127, *range(128, 160))} | {9: " ", 10: "\\n", 13: "\\r"}

EVERY = 30.0  # seconds between lines about a job, where there is no terminal


def printable(text: str) -> str:
    """Escape what would break the line or cannot be printed: control characters, and bytes that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode().translate(CONTROL)


def note(console: "Console", text: str, style: str | None = None) -> None:
    """Print one line verbatim: no markup, no emoji codes, no highlighting, no wrapping."""
    console.print(printable(text), style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


def warn(console: "Console", text: str) -> None:
    """Print one line verbatim, in yellow."""
    note(console, text, "yellow")


def duration(seconds: float) -> str:
    """Say how long something takes, about."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def progress(console: "Console", what: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show how far a job is: by a bar on a terminal, and elsewhere by a line every 30 seconds.

    Args:
        console: Where to print.
        what: What is done, such as "drawing".
        total: Number of things to do; None where it is not known.
        done: Number of those that were done before.

    Yields:
        A function to call with the number of things that are done.
    """
    if not console.is_terminal:
        yield _Lines(console, what, total, done)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda count: bar.update(task, completed=count)


class _Lines:
    """Prints a line when the last one is old."""

    def __init__(self, console: "Console", what: str, total: int | None, done: int) -> None:
        self._console, self._what, self._total, self._first = console, what, total, done
        self._start = self._told = time.perf_counter()

    def __call__(self, done: int) -> None:
        now = time.perf_counter()
        if now - self._told < EVERY or done == self._total:
            return
        self._told, text = now, f"{self._what}: {done:,}"
        if self._total is not None:
            left = (self._total - done) * (now - self._start) / max(1, done - self._first)
            text += f" of {self._total:,}, about {duration(left)} left"
        note(self._console, text)


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
