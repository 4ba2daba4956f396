"""Measures suites on a GPU, one after another in one process, and writes each one's results when it is done.

It is started by `detops.apps.bench.gpu`, which starts another where this process hangs or a kernel breaks its device.
"""

import importlib
import importlib.util
import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from detops.apps.bench import _accv, runner
from detops.apps.bench._meter import GpuMeter, Meter, time_limit
from detops.apps.bench._timing import arguments_of
from detops.apps.bench.runner import Case

# Least sure first, so that their results are there whatever happens later; then suites that are not named here.
FIRST = (
    "simota_match", "yolox", "yolox_loss", "atss_match", "gfl", "positive_losses", "positive_losses_backward",
    "nms_mask", "masks_to_rle", "paste_masks",
)  # fmt: skip
LAST = (
    "vlr_weights", "draw_gaussians", "centernet", "gaussian_focal_loss_from_boxes", "gaussian_focal_loss",
    "resize_normalize_pad", "scale_gradient",
)  # fmt: skip
SIDE_LIMIT = 20.0  # seconds for all of a side
COMPILE_LIMIT = 45.0
COMPILED = ("batched PyTorch", "plain PyTorch")  # the baselines that torch.compile gets too
LOOPS = ("loop",)  # baselines that are called once
LONG = 200.0  # milliseconds from which such a call is not profiled
BROKEN = ("CUDA error", "HIP error", "device-side assert", "illegal memory access", "AcceleratorError")


class DeviceBrokenError(RuntimeError):
    """A kernel failed in such a way that this process can launch no other."""


def ordered(names: Sequence[str]) -> list[str]:
    """The suites in the order in which they are measured."""
    middle = sorted(set(names) - set(FIRST) - set(LAST))
    return [name for name in (*FIRST, *middle, *LAST) if name in names]


def work(names: Sequence[str], out: Path, meter: Meter, deadline: float, quick: bool, accv: Path | None = None) -> None:
    """Measure the floors, and suites until the deadline; write a file for each, and a line of progress.

    Args:
        names: Suites, in their order.
        out: Folder of the results; "progress.jsonl" in it says what was begun and done.
        meter: What measures.
        deadline: Value of `time.time()` after which nothing new is begun.
        quick: Only the first case of each suite.
        accv: Folder with ACCV-Lab's operators, as `_accv.build` leaves them.

    Raises:
        DeviceBrokenError: No more kernels can be launched here.
    """
    slug = device_slug(meter.facts()["name"])
    if not list(out.glob("floors_*.json")):
        note(out, suite="floors", state="begun")
        floors = {**runner.described("floors", meter.device), "gpu": meter.facts(), "floors": _floors(meter)}
        runner.write_json(out / f"floors_cuda_{slug}.json", floors)
        note(out, suite="floors", state="done")
    for i, name in enumerate(names):
        left = deadline - time.time()
        if left < 5:
            note(out, suite=name, state="no time")
            continue
        budget = min(left, 2 * left / (len(names) - i))
        with _noted(out, name, budget):
            for record in measured(name, meter, time.time() + budget, quick, accv):
                runner.write_json(out / f"{name}_cuda_{slug}.json", record)
    for name in names:
        path = out / f"{name}_cuda_{slug}.json"
        if deadline - time.time() > COMPILE_LIMIT + SIDE_LIMIT and path.exists():
            with _noted(out, f"{name}, compiled", COMPILE_LIMIT + SIDE_LIMIT):
                runner.write_json(path, with_compiled(name, json.loads(path.read_text()), meter))


@contextmanager
def _noted(out: Path, name: str, budget: float) -> Iterator[None]:
    """Note that a suite is begun, and then that it is done or has failed; only a broken device ends more than it."""
    note(out, suite=name, state="begun", budget=budget)
    try:
        yield
    except DeviceBrokenError:
        raise
    except Exception as error:
        traceback.print_exc()
        note(out, suite=name, state="failed", why=_reason(error))
    else:
        note(out, suite=name, state="done")


def device_slug(name: str) -> str:
    """A device's name as part of a file's name: "nvidia-h100-80gb-hbm3"."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def measured(name: str, meter: Meter, deadline: float, quick: bool, accv: Path | None) -> Iterator[dict[str, Any]]:
    """Measure the cases of a suite, as long as there is time.

    Yields:
        The record for the file of results, after each case.
    """
    results: list[dict[str, Any]] = []
    cut: list[str] = []
    described = runner.described(name, meter.device)
    for instances, alone in _cases(runner.suite(name), meter.device, quick):
        if time.time() > deadline:
            cut.append(instances[0].name)
        else:
            results.append(run_case(instances, alone, meter, deadline, accv if name == "draw_gaussians" else None))
            print(*lines(results[-1]), sep="\n", flush=True)
        yield {
            **described, "device": "cuda", "gpu": meter.facts(), "rehearsal": not meter.cuda, "kernel_only": False,
            "tests": "see tests.txt", "floor": " or ".join(dict.fromkeys(result["floor"] for result in results)),
            "without time": cut, "results": results,
        }  # fmt: skip


def with_compiled(name: str, record: dict[str, Any], meter: Meter) -> dict[str, Any]:
    """Add torch.compile of the baselines in PyTorch to the first case of a record; each is compiled anew."""
    result = record["results"][0]
    instances, _ = next(_cases(runner.suite(name), meter.device, quick=True))
    for baseline, fn in instances[0].baselines.items():
        if baseline in COMPILED:
            side = f"compiled {baseline}"
            notes = _measure_side(result, side, [meter.compiled(fn)], meter, COMPILE_LIMIT)
            result["notes"] |= {side: notes} if notes else {}
    result["ratios"] = _ratios(result)
    return record


def _cases(module: ModuleType, device: str, quick: bool) -> Iterator[tuple[list[Case], Case | None]]:
    """Each case as several sets of inputs, together larger than the GPU's cache, and with ours as the op alone."""
    make = partial(_arguments, module, device, quick)
    several = [module.cases(**make(kernel=False)) for _ in range(getattr(module, "INSTANCES", 1))]
    alone = module.cases(**make(kernel=True)) if runner.has_forms(module) else None
    for instances in zip(*several, strict=True):
        yield list(instances), None if alone is None else next(alone)
        if quick:
            return


def _arguments(module: ModuleType, device: str, quick: bool, kernel: bool) -> dict[str, Any]:
    return arguments_of(module.cases, device=device, kernel=kernel, quick=quick)


def run_case(
    instances: list[Case], alone: Case | None, meter: Meter, deadline: float, accv: Path | None = None
) -> dict[str, Any]:
    """Measure all sides of a case; what cannot be had is left out, with the reason under "notes"."""
    first = instances[0]
    sides: dict[str, list[Callable[[], object]]] = {"floor": [case.floor for case in instances]}
    sides["ours"] = [case.ours for case in instances]
    if alone is not None:
        sides["op alone"] = [alone.ours]
    sides |= {name: [case.baselines[name] for case in instances] for name in first.baselines}
    sides |= _accv.sides(accv, first.name, meter.device) if accv else {}
    result: dict[str, Any] = {"case": first.name, "floor": first.floor_name, "instances": len(instances)}
    kinds = ("timings", "host_us", "graph", "syncs", "launches", "kernels", "peak_extra_bytes", "notes")
    result |= {kind: {} for kind in kinds}
    for name, fns in sides.items():
        if time.time() > deadline and name not in ("floor", "ours"):
            result["notes"][name] = ["no time left"]
            continue
        notes = _measure_side(result, name, fns, meter, SIDE_LIMIT)
        if notes:
            result["notes"][name] = notes
    result["ratios"] = _ratios(result)
    return result


def _measure_side(
    result: dict[str, Any], name: str, fns: list[Callable[[], object]], meter: Meter, limit: float
) -> list[str]:
    """Add what one side costs to a result, and return what could not be had and why."""
    notes: list[str] = []

    def attempt(what: str, call: Callable[[], None]) -> bool:
        try:
            with time_limit(limit):
                call()
        except Exception as error:
            if meter.cuda and any(text in f"{type(error).__name__}: {error}" for text in BROKEN) and not _alive():
                raise DeviceBrokenError(f"{name}: {error}") from error
            notes.append(f"{what}: {_reason(error)}")
            return False
        return True

    def eager() -> None:
        timing, host = meter.eager(fns)
        result["timings"][name], result["host_us"][name] = asdict(timing), host

    def once() -> None:
        milliseconds = 1e3 * meter.once(fns[0])
        result["timings"][name] = {"median": milliseconds, "low": milliseconds, "high": milliseconds, "samples": 1}

    def profile() -> None:
        found = meter.profile(fns[0])
        result["syncs"][name], result["launches"][name] = found.waits, found.launches
        result["kernels"][name] = [asdict(kernel) for kernel in found.kernels[:40]]

    def graph() -> None:
        result["graph"][name] = asdict(meter.graph(fns))

    def peak() -> None:
        result["peak_extra_bytes"][name] = runner.peak_extra(fns[0], meter.cuda)

    if name in LOOPS:
        if attempt("time", once) and result["timings"][name]["median"] < LONG:
            attempt("kernels", profile)
        return notes
    if attempt("time", eager):
        attempt("kernels", profile)
        if result["syncs"].get(name):
            notes.append("graph: it waits for the device")
        else:
            attempt("graph", graph)
        attempt("memory", peak)
    return notes


def _ratios(result: dict[str, Any]) -> dict[str, float]:
    """How many times slower than ours each other side is, and ours than the floor: eager, and as a graph."""
    found: dict[str, float] = {}
    for prefix, kind in (("", "timings"), ("graph: ", "graph")):
        times = {name: timing["median"] for name, timing in result[kind].items()}
        if times.get("ours"):
            found |= {prefix + name: ratio for name, ratio in runner.ratios(times).items()}
    return found


def _floors(meter: Meter) -> dict[str, Any]:
    """What nothing on this machine is faster than: copies, fills, and the start of a kernel."""
    count = 2**28 if meter.cuda else 2**10  # float32: 1 GiB, far beyond any cache
    source = torch.randn(count, device=meter.device)
    target = torch.empty_like(source)
    one = torch.ones(1, device=meter.device)
    sides: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (partial(target.copy_, source), 8 * count),
        "fill": (target.zero_, 4 * count),
        "aten add of one number": (partial(torch.add, one, one), 0),
    }
    found: dict[str, Any] = {}
    if importlib.util.find_spec("triton") and meter.cuda:
        probe = importlib.import_module("detops.kernels._probe")
        sides["empty Triton kernel"] = (partial(probe.launch, torch.empty(1, dtype=torch.int32, device="cuda")), 0)
    for name, (fn, moved) in sides.items():
        try:
            timing, host = meter.eager([fn])
            found[name] = {"eager": asdict(timing), "host_us": host, "graph": asdict(meter.graph([fn]))}
            if moved:
                found[name]["terabytes_per_second"] = moved / timing.median / 1e9
        except Exception as error:
            found[name] = {"note": _reason(error)}
        print(f"{name}: {found[name]}", flush=True)
    return found


def lines(result: dict[str, Any]) -> Iterator[str]:
    """A result as text: the case, then a line per side: eager and graph in milliseconds, launches, waits."""
    yield f"{result['case']}  (floor: {result['floor']})"
    for name in dict.fromkeys([*result["timings"], *result["notes"]]):
        eager, graph = (result[kind].get(name, {}).get("median") for kind in ("timings", "graph"))
        times = "".join(f"{value:12.4f}" if value is not None else f"{'-':>12}" for value in (eager, graph))
        counts = "".join(f"{result[kind].get(name, '-')!s:>8}" for kind in ("launches", "syncs"))
        yield f"  {name:30}{times}{counts}  {'; '.join(result['notes'].get(name, []))}".rstrip()


def _alive() -> bool:
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except Exception:
        return False
    return True


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def note(out: Path, **what: Any) -> None:
    """Add a line of progress."""
    with (out / "progress.jsonl").open("a") as file:
        file.write(json.dumps({"time": round(time.time(), 1), **what}) + "\n")


def meter_of(device: str) -> Meter:
    """The one for "cuda" or, to rehearse, "cpu"."""
    return GpuMeter() if torch.device(device).type == "cuda" else Meter()
