"""Timing of the stages of a pipeline: named spans in; a table, JSON and a Chrome trace out.

On a GPU a stage is two CUDA events, and only reading the times waits for the device. On the CPU it is two clock
readings.
"""

import json
import math
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from detops.arguments import require_module

StagePath = tuple[str, ...]
COLUMNS = ("stage", "calls", "mean ms", "median", "p95", "p99", "min", "max", "host", "share")


@dataclass(frozen=True)
class StageStats:
    """Statistics of one stage, over all its calls that did not fail; times in milliseconds.

    Attributes:
        path: Names from the outermost stage to this one.
        calls: Number of calls that ended without an exception.
        failed: Number of calls that an exception ended; no time below includes them.
        total_ms: Sum over the calls.
        mean_ms: Mean per call.
        median_ms: Median.
        p95_ms: Shortest time that 95 % of the calls do not exceed.
        p99_ms: Shortest time that 99 % of the calls do not exceed.
        min_ms: Shortest call.
        max_ms: Longest call.
        host_ms: Mean host time: from entering the stage to leaving it, without waiting for the GPU. On a GPU it is
            shorter than `mean_ms` if the host queues work ahead, and equal if the stage itself waits or the host is
            the slower of the two.
    """

    path: tuple[str, ...]
    calls: int
    failed: int
    total_ms: float
    mean_ms: float
    median_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    host_ms: float


class StageTimer:
    """Time named stages, as context managers or around modules.

    A stage that is entered within another is nested in it. Each thread has its own nesting, and several threads may
    share a timer; coroutines of one thread need a timer each. On a GPU a stage records two CUDA events on the current
    stream and does not wait; `stats`, `table`, `to_json` and `chrome_trace` wait for the device once. Inside
    `torch.compile` nothing is timed, because stages are compiled away.

    An exception ends a stage, and those nested in it, as failed. (One that is not an `Exception`, such as
    `KeyboardInterrupt`, leaves the stage of a wrapped module open until an outer stage ends, or until `reset`.)

    Args:
        device: Device that the stages run on, "cpu" or "cuda"; None takes the current GPU if there is one.
        limit: Number of calls that are kept; the oldest are forgotten first.
        clock: Returns the host's time in nanoseconds.

    Raises:
        ValueError: The device is of another type, or the limit is below 1.

    Example:
        >>> timer = StageTimer("cpu")
        >>> with timer.stage("network"):
        ...     with timer.stage("backbone"):
        ...         _ = torch.ones(8, 8) @ torch.ones(8, 8)
        >>> [(stats.path, stats.calls) for stats in timer.stats()]
        [(('network',), 1), (('network', 'backbone'), 1)]
    """

    def __init__(
        self,
        device: torch.device | str | None = None,
        limit: int = 10_000,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        if self.device.type not in ("cpu", "cuda"):
            raise ValueError(f"device: expected cpu or cuda, got {self.device}")
        if limit < 1:
            raise ValueError(f"limit: expected at least 1, got {limit}")
        self._clock = clock
        self._local = threading.local()
        self._threads: dict[int, str] = {}  # names by identifier, for the trace
        self._lock = threading.Lock()
        self._spans: deque[_Span] = deque(maxlen=limit)
        self._forgotten = 0
        self._anchor: tuple[Any, int] | None = None  # an event, and the host's time when it was recorded

    def stage(self, name: str) -> "_Span":
        """Return a context manager that times its body; each `with` needs a new one."""
        return _Span(self, name, None)

    def wrap(self, module: nn.Module, name: str) -> "WrappedStage":
        """Time every call of a module, by forward hooks.

        Args:
            module: The module.
            name: Name of the stage.

        Returns:
            A handle whose `remove()` removes the hooks.
        """
        return WrappedStage(self, module, name)

    def __deepcopy__(self, memo: object) -> "StageTimer":
        """Return the timer itself, so that the copy of a wrapped module is timed by the same timer."""
        return self

    def reset(self) -> None:
        """Forget all calls that have ended, and every open stage of this thread."""
        with self._lock:
            self._spans.clear()
            self._forgotten = 0
        self._stack().clear()

    def stats(self) -> list[StageStats]:
        """Return the stages in the order of their first call, each before those nested in it."""
        spans = self._read()
        first: dict[StagePath, int] = {}
        for span in spans:
            for depth in range(1, len(span.path) + 1):
                begin = first.setdefault(span.path[:depth], span.host_begin)
                first[span.path[:depth]] = min(begin, span.host_begin)
        by_path: dict[StagePath, list[_Span]] = {}
        for span in spans:
            by_path.setdefault(span.path, []).append(span)
        # Siblings that began at the same clock reading are in the order of their names.
        order = sorted(by_path, key=lambda path: [(first[path[: i + 1]], path[i]) for i in range(len(path))])
        return [_summary(path, by_path[path]) for path in order]

    def table(self) -> str:
        """Return the stages as text: one per line, nested ones indented, with their share of the stage around them."""
        cells = [list(COLUMNS), *self._cells()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(row))
            for row in (zip(line, widths, strict=True) for line in cells)
        ]
        return "\n".join(line.rstrip() for line in [*lines, *self._notes()])

    def __rich__(self) -> Any:
        """Return the table for `rich.print(timer)` and consoles of rich."""
        module = require_module("rich.table", "rich", "StageTimer", "rich")
        table = module.Table(caption="\n".join(self._notes()) or None)
        for i, name in enumerate(COLUMNS):
            table.add_column(name, justify="right" if i else "left")
        escape = require_module("rich.markup", "rich", "StageTimer", "rich").escape
        for row in self._cells():
            table.add_row(*map(escape, row))
        return table

    def _cells(self) -> list[list[str]]:
        stats = self.stats()
        totals = {s.path: s.total_ms for s in stats}
        cells = []
        for s in stats:
            around = totals.get(s.path[:-1], 0.0)
            times = (s.mean_ms, s.median_ms, s.p95_ms, s.p99_ms, s.min_ms, s.max_ms, s.host_ms)
            name = "  " * (len(s.path) - 1) + s.path[-1] + (f" ({s.failed} failed)" if s.failed else "")
            share = f"{s.total_ms / around:.0%}" if around else ""
            cells.append([name, str(s.calls), *(f"{value:.3f}" for value in times), share])
        return cells

    def _notes(self) -> list[str]:
        return [f"{self._forgotten} older calls are forgotten"] if self._forgotten else []

    def to_json(self) -> str:
        """Return the stages as strict JSON: device, unit, number of forgotten calls, and a `StageStats` per stage."""
        stages = [asdict(stats) for stats in self.stats()]
        record = {"device": str(self.device), "unit": "milliseconds", "forgotten": self._forgotten, "stages": stages}
        return json.dumps(record, indent=1, allow_nan=False)

    def chrome_trace(self, path: str | Path) -> None:
        """Write every call as a trace that chrome://tracing and ui.perfetto.dev show.

        The host's threads are one process. On a GPU the device's work is a second process, with a track per thread
        that queued it; the device's clock is aligned with the host's at the first stage.

        Args:
            path: File to write.
        """
        threads: dict[int, int] = {}
        events: list[dict[str, Any]] = []
        tracks = [(0, "host")] + ([(1, str(self.device))] if self.device.type == "cuda" else [])
        spans = self._read()
        for pid, name in tracks:
            events.append({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}})
            for span in spans:
                begin, duration = span.host_begin, span.host_end - span.host_begin
                if pid == 1:
                    begin, duration = span.device_begin, span.device_ns
                events.append({
                    "ph": "X", "name": span.path[-1], "cat": "failed" if span.failed else "stage",
                    "pid": pid, "tid": threads.setdefault(span.thread, len(threads)),
                    "ts": begin / 1e3, "dur": duration / 1e3, "args": {"path": "/".join(span.path)},
                })  # fmt: skip
            events += [
                {"ph": "M", "name": "thread_name", "pid": pid, "tid": number, "args": {"name": self._threads[thread]}}
                for thread, number in threads.items()
            ]
        text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, allow_nan=False)
        Path(path).write_text(text)

    def _stack(self) -> "list[_Span]":
        """Return the open stages of this thread, the outermost first."""
        try:
            return self._local.stack  # type: ignore[no-any-return]
        except AttributeError:
            self._local.stack = []
            self._threads[threading.get_ident()] = threading.current_thread().name
            return self._local.stack  # type: ignore[no-any-return]

    def _event(self) -> Any:
        """Record a CUDA event now; return None on the CPU."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        if self._anchor is None:
            with self._lock:
                if self._anchor is None:
                    event.record(torch.cuda.current_stream(self.device))
                    self._anchor = (event, self._clock())
                    return event
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _keep(self, spans: "list[_Span]") -> None:
        with self._lock:
            self._forgotten += max(0, len(self._spans) + len(spans) - (self._spans.maxlen or 0))
            self._spans.extend(spans)

    def _read(self) -> "list[_Span]":
        """Return the calls that have ended, with the device's times; nothing else waits for the device."""
        with self._lock:
            spans = list(self._spans)
            new = [span for span in spans if span.events is not None]
            if new:
                torch.cuda.synchronize(self.device)
                assert self._anchor is not None
                event, when = self._anchor
                for span in new:
                    begin, end = span.events
                    # Events measure milliseconds in float32, exact only over short spans: hence a recent anchor.
                    span.device_begin = when + round(1e6 * event.elapsed_time(begin))
                    span.device_ns = round(1e6 * begin.elapsed_time(end))
                self._anchor = (new[-1].events[0], new[-1].device_begin)
                for span in new:
                    span.events = None
        return spans


class _Span:
    """One call of a stage: first open, then ended."""

    __slots__ = (
        "device_begin", "device_ns", "events", "failed", "host_begin", "host_end", "name", "outer_error", "owner",
        "path", "thread", "timer",
    )  # fmt: skip
    host_begin: int  # nanoseconds, as are the times below
    host_end: int
    device_begin: int
    device_ns: int
    failed: bool
    thread: int
    outer_error: BaseException | None
    events: Any  # the two CUDA events, until they are read

    def __init__(self, timer: StageTimer, name: str, owner: "WrappedStage | None") -> None:
        self.timer, self.name, self.owner = timer, name, owner
        self.path: StagePath = ()

    def __enter__(self) -> None:
        if torch.compiler.is_compiling():
            return
        if self.path:
            raise RuntimeError(f"stage {self.name!r} was entered before; each `with` needs a new timer.stage(...)")
        timer = self.timer
        stack = timer._stack()
        self.path = (*stack[-1].path, self.name) if stack else (self.name,)
        self.thread, self.outer_error = threading.get_ident(), sys.exception()
        stack.append(self)
        self.host_begin = timer._clock()
        self.events = timer._event()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not torch.compiler.is_compiling():
            self.end(failed=kind is not None)

    def end(self, failed: bool) -> None:
        """End this stage, and as failed those nested in it that are still open."""
        timer = self.timer
        event, now = timer._event(), timer._clock()
        stack = timer._stack()
        if self not in stack:  # the timer has been reset since
            return
        ended = []
        while True:
            span = stack.pop()
            span.failed, span.outer_error = failed or span is not self, None  # an error keeps its frames alive
            span.host_end = now
            span.device_begin, span.device_ns = span.host_begin, now - span.host_begin
            if event is not None:
                span.events = (span.events, event)
            ended.append(span)
            if span is self:
                break
        timer._keep(ended)


class WrappedStage:
    """A module whose calls a `StageTimer` times, until `remove()`."""

    def __init__(self, timer: StageTimer, module: nn.Module, name: str) -> None:
        self._timer, self._name = timer, name
        self._handles = (
            module.register_forward_pre_hook(self._begin, prepend=True),
            module.register_forward_hook(self._end, always_call=True),
        )

    def remove(self) -> None:
        """Remove the hooks; later calls of the module are not timed, nor is one that is running in this thread."""
        for handle in self._handles:
            handle.remove()
        stack = self._timer._stack()
        stack[:] = [span for span in stack if span.owner is not self]  # no hook will end them

    def _begin(self, module: nn.Module, args: object) -> None:
        if not torch.compiler.is_compiling():
            _Span(self._timer, self._name, self).__enter__()

    def _end(self, module: nn.Module, args: object, result: object) -> None:
        if torch.compiler.is_compiling():
            return
        for span in reversed(self._timer._stack()):
            if span.owner is self:
                # The hook also runs when the module raises; the exception is then another than when the call began.
                span.end(failed=sys.exception() is not span.outer_error)
                return


def _summary(path: StagePath, spans: list[_Span]) -> StageStats:
    good = [span for span in spans if not span.failed]
    failed = len(spans) - len(good)
    if not good:
        return StageStats(path, 0, failed, *[0.0] * 8)
    times = sorted(span.device_ns / 1e6 for span in good)
    host = sum(span.host_end - span.host_begin for span in good) / 1e6 / len(good)
    total, median = sum(times), statistics.median(times)
    p95, p99 = (times[math.ceil(part * len(times) / 100) - 1] for part in (95, 99))
    mean = total / len(good)
    return StageStats(path, len(good), failed, total, mean, median, p95, p99, times[0], times[-1], host)
