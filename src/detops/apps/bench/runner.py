"""Measures suites: all sides of a case in one process, in turns, beside the physical floor.

A suite is a module of this folder with a function `cases` that yields one `Case` per configuration, and `TESTS`, the
test files that must pass before its numbers count. Its name is that of the op or the criterion that it measures.
`cases` takes `device` and `quick`, and `kernel` where an op can be measured both through its public function and alone.
Results are printed, and written as strict JSON together with the commit, the machine and all versions.
"""

import importlib
import os
import pkgutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from detops.apps.bench._timing import Timing, arguments_of, keep_freed_memory, repeats_for, seconds_per_call
from detops.apps.outputs import write_numbers
from detops.diagnostics.environment import env
from detops.diagnostics.launches import count_kernels, count_launches
from detops.diagnostics.syncs import count_syncs

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One configuration: `ours` against its baselines, and the floor, which does less than any of them must."""

    name: str
    ours: Callable[[], object]
    floor: Callable[[], object]
    baselines: Mapping[str, Callable[[], object]]
    floor_name: str


@dataclass(frozen=True)
class Result:
    """The measurements of one case, by side: "floor", "ours" and the baselines.

    Attributes:
        case: Name of the case.
        floor: Description of the floor.
        timings: Milliseconds per call.
        ratios: Time of each baseline over ours ("NAME / ours"), and of ours over the floor.
        syncs: Host synchronisations per call on a GPU, without the floor.
        launches: Kernels per call, without the floor; counted on a GPU, estimated on the CPU.
        peak_extra_bytes: Peak memory of a call beyond its arguments, without the floor.
    """

    case: str
    floor: str
    timings: dict[str, Timing]
    ratios: dict[str, float]
    syncs: dict[str, int]
    launches: dict[str, int]
    peak_extra_bytes: dict[str, int]


@cache
def suites() -> dict[str, ModuleType]:
    """All suites by name: the modules of this folder that have `cases`."""
    names = [module.name for module in pkgutil.iter_modules([str(FOLDER)]) if not module.name.startswith("_")]
    modules = {name: importlib.import_module(f"detops.apps.bench.{name}") for name in sorted(names)}
    return {name: module for name, module in modules.items() if hasattr(module, "cases")}


def suite(name: str) -> ModuleType:
    """Return the suite of this name.

    Raises:
        ValueError: There is no such suite.
    """
    if name not in suites():
        raise ValueError(f"suite: expected one of {', '.join(suites())}, got {name!r}")
    return suites()[name]


def has_forms(module: ModuleType) -> bool:
    """Return whether a suite measures an op both through its public function and alone."""
    return "kernel" in signature(module.cases).parameters


def is_op_alone(name: str, kernel: bool) -> bool:
    """Return whether a suite, measured with or without `kernel`, times an op without its public function."""
    return kernel or (not has_forms(suite(name)) and name in {op.rstrip("_") for op in env()["ops"]})


def measure(functions: dict[str, Callable[[], object]], seconds: float, cuda: bool) -> dict[str, Timing]:
    """Time functions in turns, so that a slow moment of the machine affects all of them.

    Args:
        functions: The functions to call, by name.
        seconds: Approximate time to measure each; at least three samples are taken.
        cuda: Time with CUDA events.

    Returns:
        The timing of each function.
    """
    repeats = {name: repeats_for(fn, 0.002, cuda) for name, fn in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    spent = dict.fromkeys(functions, 0.0)
    while any(spent[n] < seconds or len(samples[n]) < 3 for n in functions):
        for name, fn in functions.items():
            if spent[name] >= seconds and len(samples[name]) >= 3:
                continue
            samples[name].append(seconds_per_call(fn, repeats[name], cuda))
            spent[name] += samples[name][-1] * repeats[name]
    return {name: Timing.of(values) for name, values in samples.items()}


def peak_extra(fn: Callable[[], object], cuda: bool) -> int:
    """Return the peak memory of a call, in bytes of tensors, beyond those that existed before.

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
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or each start and stop prints a line
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
    """Measure one case: first the times, then launches, synchronisations and memory of a call of each side."""
    sides = {"ours": case.ours, **case.baselines}
    timings = measure({"floor": case.floor, **sides}, seconds, cuda)
    launches = count_kernels if cuda else count_launches
    return Result(
        case.name, case.floor_name, timings, ratios({name: timing.median for name, timing in timings.items()}),
        {name: count_syncs(fn) for name, fn in sides.items()},
        {name: launches(fn) for name, fn in sides.items()},
        {name: peak_extra(fn, cuda) for name, fn in sides.items()},
    )  # fmt: skip


def ratios(times: Mapping[str, float]) -> dict[str, float]:
    """Return how many times slower than ours each baseline is, and ours than the floor, where that was measured."""
    ours = times["ours"]
    found = {f"{name} / ours": time / ours for name, time in times.items() if name not in ("ours", "floor")}
    return found | ({"ours / floor": ours / times["floor"]} if times.get("floor") else {})


HEADER = f"{'':32}{'milliseconds':>16}{'':>16}{'syncs':>8}{'launches':>10}{'MiB':>9}"


def lines(result: Result) -> Iterable[str]:
    """Yield a result as text: the case, the floor, and a line per side."""
    yield result.case
    yield f"  {'floor: ' + result.floor:30}{result.timings['floor']!s:>16}"
    for name, syncs in result.syncs.items():
        ratio = "ours / floor" if name == "ours" else f"{name} / ours"
        factor = f"{shortened(result.ratios[ratio])}x {ratio.partition(' / ')[2]}"
        yield (
            f"  {name:30}{result.timings[name]!s:>16}{factor:>16}{syncs:8d}{result.launches[name]:10d}"
            f"{result.peak_extra_bytes[name] / 2**20:9.1f}"
        )


def shortened(ratio: float) -> str:
    """Format a ratio with one decimal; below 1 with two, from 100 on with none."""
    return f"{ratio:.{2 if ratio < 1 else 1 if ratio < 100 else 0}f}"


def main(
    name: str = "draw_gaussians",
    kernel: bool = False,
    json_path: Path | None = None,
    quick: bool = False,
    device: str | None = None,
    tests: str = "not run",
) -> None:
    """Run a suite, print its results as they come, and write them.

    Args:
        name: Name of the suite.
        kernel: Measure the op alone, without its public function.
        json_path: File to write the results to as JSON; None for nowhere.
        quick: Fewer cases and a shorter time for each.
        device: "cpu" or "cuda"; None takes a GPU if there is one.
        tests: Result of the suite's tests, for the JSON: "passed" or "not run".

    Raises:
        ValueError: The suite is unknown, or has no op to measure alone.
    """
    module = suite(name)
    if kernel and not has_forms(module):
        raise ValueError(f"kernel: the suite {name} has one form only")
    device = device or default_device()
    cuda = torch.device(device).type == "cuda"
    if not cuda:
        keep_freed_memory()
    print(f"{name}{', op alone' if kernel else ''}, on {machine(device)}; median ± half the interquartile range")
    print(HEADER)
    results = []
    for case in module.cases(**arguments_of(module.cases, device=device, kernel=kernel, quick=quick)):
        results.append(run_case(case, 0.1 if quick else 0.5, cuda))
        print(*lines(results[-1]), sep="\n", flush=True)
    if json_path is not None:
        floors = " or ".join(dict.fromkeys(result.floor for result in results))
        record = {**described(name, device), "kernel_only": is_op_alone(name, kernel), "tests": tests, "floor": floors}
        write_json(json_path, {**record, "results": [asdict(result) for result in results]})
        print(f"results: {json_path}")


def default_device() -> str:
    """Return "cuda" if there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine(device: str) -> str:
    """Return the name of the GPU, or the number of CPU threads."""
    cuda = torch.device(device).type == "cuda"
    return torch.cuda.get_device_name(device) if cuda else f"{torch.get_num_threads()} CPU threads"


def described(name: str, device: str) -> dict[str, Any]:
    """Return the head of every file of results: suite, time, code and machine."""
    return {
        "suite": name,
        "device": torch.device(device).type,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "unit": "milliseconds",
        "commit": commit(),
        "env": env(),
        "driver": _driver() if torch.device(device).type == "cuda" else None,
    }


def working_copy() -> Path | None:
    """Return the root of the git working copy that this package is part of; None if it is installed elsewhere."""
    root = FOLDER.parents[3]
    top = _git(root, "rev-parse", "--show-toplevel")
    return root if top is not None and Path(top) == root.resolve() and FOLDER.parents[2].name == "src" else None


def commit() -> dict[str, Any] | None:
    """Return the commit of the working copy, and whether the measured code differs from it.

    Without git, as in a plain copy on another machine, DETOPS_COMMIT may name the commit; else it is None.
    """
    root = working_copy()
    if root is None:
        named = os.environ.get("DETOPS_COMMIT")
        return {"hash": named, "dirty": None} if named else None
    changes = _git(root, "status", "--porcelain", "--", "src", "csrc", "tools")
    return {"hash": _git(root, "rev-parse", "HEAD"), "dirty": bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a file of results as strict JSON, over an earlier one at most."""
    write_numbers(path, record, ("suite", "device", "unit", "env"))


def _driver() -> str | None:
    version = Path("/proc/driver/nvidia/version")
    return version.read_text().splitlines()[0] if version.exists() else None
