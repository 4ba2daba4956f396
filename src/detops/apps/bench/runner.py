"""`detops bench`: both sides in one process, alternating, median and spread, with the physical floor beside them.

A suite is a module `bench_<suite>` with `cases(...)`, each a `Case` of named functions. Results go out as a table
and as strict JSON with the machine in them.
"""

import ctypes
import importlib
import json
import os
import pkgutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from detops.diagnostics.environment import env

SUITES = tuple(
    module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])
    if module.name not in ("runner", "inference") and not module.name.startswith("_")
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is measured at one configuration: `ours` against baselines, and the floor that nothing can beat."""

    name: str
    ours: Callable[[], object]
    floor: Callable[[], object]
    baselines: Mapping[str, Callable[[], object]]
    floor_name: str
    syncs: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: median, and the quarter and three quarter points."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    case: str
    timings: dict[str, Timing]
    ratios: dict[str, float]
    syncs: dict[str, int]
    peak_extra_bytes: dict[str, int]


def _seconds(fn: Callable[[], object], repeats: int, cuda: bool) -> float:
    if cuda:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(repeats):
            fn()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        fn()
    return (time.perf_counter() - start) / repeats


def measure(functions: dict[str, Callable[[], object]], seconds: float, cuda: bool) -> dict[str, Timing]:
    """Time the functions in turns, so that a slow moment of the machine hits all of them.

    Args:
        functions: What to call, by name.
        seconds: About how long to measure each.
        cuda: Time with CUDA events, which count the host's share too where the host is slower.

    Returns:
        Milliseconds a call for each.
    """
    repeats = {}
    for name, fn in functions.items():
        fn()  # warm up, compile
        repeats[name] = max(1, min(1000, int(0.002 / max(_seconds(fn, 1, cuda), 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    spent = dict.fromkeys(functions, 0.0)
    while any(spent[n] < seconds or len(samples[n]) < 3 for n in functions):
        for name, fn in functions.items():
            if spent[name] >= seconds and len(samples[name]) >= 3:
                continue
            samples[name].append(_seconds(fn, repeats[name], cuda))
            spent[name] += samples[name][-1] * repeats[name]
    return {name: _timing(values) for name, values in samples.items()}


def _timing(seconds: list[float]) -> Timing:
    quarters = statistics.quantiles(seconds, n=4)
    return Timing(*(1e3 * value for value in (statistics.median(seconds), quarters[0], quarters[2])))


def peak_extra(fn: Callable[[], object], cuda: bool) -> int:
    """Bytes of tensors that a call holds at most beyond what it found.

    On a GPU its allocator counts them; on the CPU they are summed from the allocations that the profiler sees.
    """
    fn()
    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        fn()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or each start and stop is a line
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        fn()
    held = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def run_case(case: Case, seconds: float, cuda: bool) -> Result:
    """Measure one case."""
    timings = measure({"floor": case.floor, "ours": case.ours, **case.baselines}, seconds, cuda)
    ratios = {f"{name} / ours": timings[name].median / timings["ours"].median for name in case.baselines}
    ratios["ours / floor"] = timings["ours"].median / timings["floor"].median
    peaks = {name: peak_extra(fn, cuda) for name, fn in {"ours": case.ours, **case.baselines}.items()}
    return Result(case.name, timings, ratios, case.syncs, peaks)


def _milliseconds(timing: Timing) -> str:
    spread = 50 * (timing.high - timing.low) / timing.median
    return f"{timing.median:#.3g} ±{spread:.0f}%"


def table(results: list[Result], title: str, floor_name: str) -> Table:
    """The results as a rich table."""
    timed = dict.fromkeys(name for r in results for name in r.timings)  # a case may lack a baseline
    baselines = [name for name in timed if name not in ("floor", "ours")]
    view = Table(
        title=title,
        caption="milliseconds: median ± half the middle spread; syncs: host waits, a call;"
        " MiB: memory at most, beyond the arguments",
    )
    columns = ["case", floor_name, "ours", "/ floor"]
    for name in baselines:
        columns += [name, "/ ours"]
    for column in [*columns, "syncs: ours", *baselines, "MiB: ours", *baselines]:
        view.add_column(column, justify="left" if column == "case" else "right")
    for r in results:
        row = [r.case, _milliseconds(r.timings["floor"]), _milliseconds(r.timings["ours"])]
        row.append(f"{r.ratios['ours / floor']:.2f}x")
        for name in baselines:
            there = name in r.timings
            row += [_milliseconds(r.timings[name]), f"{r.ratios[f'{name} / ours']:.0f}x"] if there else ["", ""]
        names = ("ours", *baselines)
        row += [str(r.syncs.get(name, "")) for name in names]
        row += [f"{r.peak_extra_bytes[name] / 2**20:.1f}" if name in r.timings else "" for name in names]
        view.add_row(*row)
    return view


def keep_freed_memory() -> None:
    """Tell glibc not to give freed memory back to the system.

    Otherwise each large temporary is made of new pages, and their faults (some microseconds each on a virtual
    machine) drown what is measured, on both sides alike.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)  # never


def main(
    suite: str = "heatmap",
    kernel: bool = False,
    json_path: Path | None = None,
    quick: bool = False,
    device: str | None = None,
) -> None:
    """Run a suite, print its table, and write its results.

    Args:
        suite: Which one; see `SUITES`.
        kernel: Measure the op alone: without the Python wrapper, and on a GPU as a replayed CUDA graph.
        json_path: Where the results go as JSON; None for nowhere.
        quick: Fewer cases and a shorter time for each.
        device: "cpu" or "cuda"; None takes a GPU where there is one.

    Raises:
        ValueError: The suite is unknown.
    """
    if suite not in SUITES:
        raise ValueError(f"suite: expected one of {', '.join(SUITES)}, got {suite!r}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cuda = torch.device(device).type == "cuda"
    module = importlib.import_module(f"detops.apps.bench.{suite}")
    console, results, floor_name = Console(), [], ""
    if not console.is_terminal:
        console.width = max(console.width, 150)
    if not cuda:
        keep_freed_memory()
    with console.status("measuring") as status:
        for case in module.cases(device, kernel=kernel, quick=quick):
            status.update(f"measuring {case.name}")
            results.append(run_case(case, 0.1 if quick else 0.5, cuda))
            floor_name = case.floor_name
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads"
    console.print(table(results, f"{suite} on {where}" + (", kernel alone" if kernel else ""), floor_name))
    if json_path is not None:
        write_json(json_path, suite, device, kernel, results, floor_name)
        console.print(f"results: {json_path}")


def write_json(path: Path, suite: str, device: str, kernel: bool, results: list[Result], floor_name: str) -> None:
    """Write results with all that one must know to read them."""
    record: dict[str, Any] = {
        "suite": suite,
        "device": device,
        "kernel_only": kernel,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "unit": "milliseconds",
        "floor": floor_name,
        "env": env(),
        "driver": _driver() if torch.device(device).type == "cuda" else None,
        "results": [asdict(result) for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def _driver() -> str | None:
    version = Path("/proc/driver/nvidia/version")
    return version.read_text().splitlines()[0] if version.exists() else None
