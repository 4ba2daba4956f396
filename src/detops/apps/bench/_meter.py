"""How one side of a case is measured on a GPU, and, to rehearse, on a CPU in its place.

A figure that cannot be had raises; the caller notes the reason and goes on.
"""

import importlib
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType

from detops.apps.bench._timing import Timing, time_calls
from detops.diagnostics.launches import count_launches
from detops.diagnostics.syncs import count_syncs

Call = Callable[[], object]
CALLS = 20  # of a side in one CUDA graph
SAMPLES = 30
WAITS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize")  # after cuda or hip
MARK = "detops_one_call"


@dataclass(frozen=True)
class Kernel:
    """A kernel, fill or copy within the device: how often one call starts it, and its microseconds in all."""

    name: str
    count: int
    microseconds: float


@dataclass(frozen=True)
class Profile:
    """What one call does: the kernels it starts, and how often the host waits for the device."""

    kernels: list[Kernel]
    waits: int

    @property
    def launches(self) -> int:
        """How many kernels one call starts."""
        return sum(kernel.count for kernel in self.kernels)


class Meter:
    """Measures on the CPU what a GPU would be asked: the same steps, with nothing captured and nothing profiled."""

    cuda = False
    device = "cpu"
    seconds = 0.005  # of each measurement

    def synchronize(self) -> None:
        """Wait until all is done."""

    def once(self, fn: Call) -> float:
        """Seconds of a single call, the wait for its end included."""
        self.synchronize()
        start = time.perf_counter()
        fn()
        self.synchronize()
        return time.perf_counter() - start

    def eager(self, fns: Sequence[Call]) -> tuple[Timing, float]:
        """Time calls one after another, over all sets of inputs in turn.

        Returns:
            Milliseconds per call, and microseconds that the host takes to start one.
        """
        for fn in fns:
            fn()
        rounds = max(1, min(100, int(self.seconds / SAMPLES / max(self.once(fns[0]) * len(fns), 1e-6))))
        samples: list[float] = []
        host: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(samples) < 3 or (len(samples) < SAMPLES and time.perf_counter() < end):
            taken, started = time_calls([fn for _ in range(rounds) for fn in fns], self.cuda)
            samples.append(taken)
            host.append(started)
        return Timing.of(samples), 1e6 * min(host)

    def graph(self, fns: Sequence[Call]) -> Timing:
        """Milliseconds per call of a CUDA graph of `CALLS` calls: the kernels without the host."""
        return self.eager([fns[i % len(fns)] for i in range(CALLS)])[0]

    def profile(self, fn: Call) -> Profile:
        """Count and time the kernels of one call."""
        return Profile([Kernel("all", count_launches(fn), 0.0)], count_syncs(fn))

    def compiled(self, fn: Call) -> Call:
        """Return the same compiled by torch.compile; a rehearsal does not compile."""
        return fn

    def facts(self) -> dict[str, Any]:
        """The device, for the files of results."""
        return {"name": "rehearsal on the CPU", "cache_bytes": 0}


class GpuMeter(Meter):
    """Measures on a CUDA or ROCm device."""

    cuda = True
    device = "cuda"
    seconds = 0.15

    def synchronize(self) -> None:
        """Wait until all is done."""
        torch.cuda.synchronize()

    def graph(self, fns: Sequence[Call]) -> Timing:
        """Milliseconds per call of a CUDA graph of `CALLS` calls: the kernels without the host."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for fn in fns:
                fn()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(CALLS):
                fns[i % len(fns)]()
        replay, _ = self.eager([graph.replay])
        graph.reset()
        return Timing(replay.median / CALLS, replay.low / CALLS, replay.high / CALLS, replay.samples)

    def profile(self, fn: Call) -> Profile:
        """Count and time the kernels of one call."""
        torch.cuda.synchronize()
        both = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=both, acc_events=True) as profiler:
            with torch.profiler.record_function(MARK):
                fn()
            torch.cuda.synchronize()
        return read_profile(profiler.profiler.kineto_results.events())  # type: ignore[union-attr]

    def compiled(self, fn: Call) -> Call:
        """Return the same compiled by torch.compile, of which nothing is kept from earlier."""
        importlib.import_module("torch._dynamo").reset()
        return torch.compile(lambda: fn())

    def facts(self) -> dict[str, Any]:
        """The device, for the files of results."""
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        return {
            "name": found.name,
            "cache_bytes": found.L2_cache_size,
            "multiprocessors": found.multi_processor_count,
            "memory_bytes": found.total_memory,
            "runtime": torch.version.cuda or torch.version.hip,
        }


def read_profile(events: Sequence[Any]) -> Profile:
    """Sum up the events of a profile with one marked call."""
    marks = [e for e in events if e.name() == MARK and e.device_type() == DeviceType.CPU]
    if not marks:
        raise RuntimeError("the profiler did not see the call")
    begin, end = marks[0].start_ns(), marks[0].start_ns() + marks[0].duration_ns()
    count: Counter[str] = Counter()
    nanoseconds: dict[str, int] = defaultdict(int)
    waits = 0
    for event in events:
        name = event.name()
        if event.device_type() == DeviceType.CUDA:
            if not event.is_user_annotation() and "HtoD" not in name and "DtoH" not in name:
                count[name] += 1
                nanoseconds[name] += event.duration_ns()
        elif begin <= event.start_ns() <= end and name.endswith(WAITS):
            waits += 1
    if not count and not waits and not any(e.device_type() == DeviceType.CUDA for e in events):
        raise RuntimeError("the profiler saw nothing of the GPU")
    kernels = [Kernel(name, number, nanoseconds[name] / 1e3) for name, number in count.items()]
    return Profile(sorted(kernels, key=lambda kernel: -kernel.microseconds), waits)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in the block after some seconds, as soon as Python code runs again; main thread only."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"not within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
