"""Timing of calls. This file needs only torch and imports nothing of detops.

So it can run as a script with the detops of any commit: it is then one of the two processes of `--compare`, which
answers requests for samples, one JSON object per line.
"""

import ctypes
import importlib
import importlib.util
import inspect
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: median, quartiles, and the number of samples."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """Summarise samples of seconds per call."""
        low, median, high = (1e3 * value for value in statistics.quantiles(seconds, n=4))
        return cls(median, low, high, len(seconds))

    def __str__(self) -> str:
        """Format with three digits, and half the interquartile range in percent."""
        text = f"{self.median:.0f}" if self.median >= 1000 else f"{self.median:#.3g}".rstrip(".")
        return f"{text} ±{50 * (self.high - self.low) / self.median:.0f}%"


def time_calls(calls: Sequence[Callable[[], object]], cuda: bool) -> tuple[float, float]:
    """Time calls together; CUDA events include the host's time if the host is slower.

    Returns:
        Seconds per call, and the part of them after which the host is free again.
    """
    if cuda:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
    start = time.perf_counter()
    for fn in calls:
        fn()
    host = (time.perf_counter() - start) / len(calls)
    if not cuda:
        return host, host
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / len(calls), host


def seconds_per_call(fn: Callable[[], object], repeats: int, cuda: bool) -> float:
    """Time some calls of one function together."""
    return time_calls([fn] * repeats, cuda)[0]


def repeats_for(fn: Callable[[], object], seconds: float, cuda: bool) -> int:
    """Warm a function up, and return how many calls, 1 to 1000, take about this many seconds."""
    fn()
    return max(1, min(1000, int(seconds / max(seconds_per_call(fn, 1, cuda), 1e-7))))


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory rather than return it to the system.

    Otherwise each large temporary gets new pages. Their page faults, some microseconds each on a virtual machine, would
    dominate the times of all sides.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)  # never


def arguments_of(cases: Callable[..., Any], **known: Any) -> dict[str, Any]:
    """Return the arguments that a suite's `cases` accepts; a suite with one form has no `kernel`."""
    return {name: known[name] for name in inspect.signature(cases).parameters}


class Server:
    """Answers the requests of `--compare`; each method is one."""

    def __init__(self) -> None:
        self._make: Callable[[], Iterator[Any]] = lambda: iter(())
        self._cases: Iterator[Any] = iter(())
        self._fn: Callable[[], object] = lambda: None
        self._repeats, self._cuda = 1, False

    def where(self) -> str:
        """Return the path of the detops that is imported here."""
        return str(Path(importlib.import_module("detops").__file__ or "").parent)

    def open(self, modules: list[str], device: str, **options: Any) -> str | None:
        """Load the first of the modules that exists and return its name, or None."""
        name = next((module for module in modules if _exists(module)), None)
        if name is None:
            return None
        cases = importlib.import_module(name).cases
        self._cuda = torch.device(device).type == "cuda"
        self._make = lambda: cases(**arguments_of(cases, device=device, **options))
        self._cases = self._make()
        return name

    def next(self) -> str | None:
        """Go to the next case and return its name; None at the end."""
        case = next(self._cases, None)
        return None if case is None else self._take(case)

    def seek(self, name: str) -> bool:
        """Go to the case of this name, from the present one on and then from the first."""
        for cases in (self._cases, self._make()):
            for case in cases:
                if case.name == name:
                    self._cases = cases
                    self._take(case)
                    return True
        self._cases = self._make()
        return False

    def sample(self) -> float:
        """Return seconds per call; the first call, with caches as another process left them, is not timed."""
        if self._repeats > 1:
            self._fn()
        return seconds_per_call(self._fn, self._repeats, self._cuda)

    def _take(self, case: Any) -> str:
        self._fn = case.ours
        self._repeats = repeats_for(self._fn, 0.02, self._cuda)
        return str(case.name)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # one of its packages
        return False


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests {"do": name, ...} by {"answer": ...} or {"error": ...} until there are no more."""
    server = Server()
    for line in requests:
        request = json.loads(line)
        try:
            answer = {"answer": getattr(server, request.pop("do"))(**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of the measured code must not mix with the answers
    keep_freed_memory()
    serve(sys.stdin, replies)
