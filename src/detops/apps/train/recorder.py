"""Writing lines of `metrics.jsonl`, and the same to a logger, while a training goes on."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detops.apps.train import loggers, metrics


class Recorder:
    """Writes lines; those for which there is no room wait until there is.

    Args:
        run: Folder of the run.
        tell: Prints a line.
    """

    def __init__(self, run: Path, tell: Callable[[str], None]) -> None:
        self._run, self._tell = run, tell
        self._waiting: list[metrics.Row] = []
        self._began = time.perf_counter()

    def begin(self) -> None:
        """Begin a sitting, whose seconds are counted."""
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since this sitting began."""
        return round(time.perf_counter() - self._began, 2)

    def add(self, row: metrics.Row, logger: Any) -> None:
        """Write a line.

        Args:
            row: The line.
            logger: Lightning's logger that is given it too; None for none.
        """
        self._waiting.append(row)
        try:
            while self._waiting:
                metrics.append(self._run, self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            self._tell(f"metrics.jsonl not written: {error}; {len(self._waiting)} lines wait")
        if logger is not None:
            try:
                logger.log_metrics(loggers.flat(row), row["step"])
            except Exception as error:  # each logger has its own
                self._tell(f"not logged: {error}")
