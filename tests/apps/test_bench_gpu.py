"""`make gpu`, rehearsed: all suites' code with every optional package hidden, and what a GPU would do, simulated."""

import json
import os
import runpy
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._C._autograd import DeviceType

from detops.apps.bench import _accv, _gpu_worker, _meter, gpu, runner
from detops.apps.bench._meter import GpuMeter, Kernel, Meter, read_profile, time_limit

ROOT = Path(__file__).parents[2]
OPTIONAL = [
    "rich", "typer", "numpy", "PIL", "cv2", "matplotlib", "pycocotools", "torchvision", "lightning", "pytest", "xdist",
    "hypothesis", "ray", "triton",
]  # fmt: skip


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The folder that a rehearsal leaves, of a process that can import none of the optional packages."""
    out = tmp_path_factory.mktemp("gpu")
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
class Nothing:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Nothing)
importlib.util.find_spec = lambda name, package=None: None if name in {OPTIONAL} else find(name, package)
from detops.apps.bench.gpu import main
sys.exit(main(["--rehearse", "--out", {str(out)!r}]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # that needs numpy
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    (out / "printed").write_text(done.stdout)
    assert done.returncode == 1, done.stderr  # as the tests could not run
    return out


@pytest.mark.slow
def test_all_suites_are_measured_with_torch_alone(rehearsed):
    printed = (rehearsed / "printed").read_text()
    assert "tests not run: no pytest" in printed
    assert f"{len(runner.suites())} of {len(runner.suites())} suites measured" in printed
    for name in runner.suites():
        record = json.loads((rehearsed / f"{name}_cuda_rehearsal-on-the-cpu.json").read_text())
        assert record["suite"] == name
        assert record["rehearsal"]
        (result,) = record["results"]
        assert {"floor", "ours"} <= set(result["timings"])
        assert {"ours"} <= set(result["graph"]) | {name for name, notes in result["notes"].items() if notes}
        assert result["launches"]["ours"] >= (name != "assignment")  # without a kernel, it is solved on the host
        assert result["ratios"]["ours / floor"] > 0
        failures = [
            note for notes in result["notes"].values() for note in notes if not note.startswith("graph: it waits")
        ]
        assert failures == []


@pytest.mark.slow
def test_all_files_are_in_the_archive(rehearsed):
    with tarfile.open(rehearsed / "results.tar.gz") as file:
        names = set(file.getnames())
    expected = {f"{name}_cuda_rehearsal-on-the-cpu.json" for name in [*runner.suites(), "floors"]}
    assert expected | {"machine.txt", "tests.txt", "summary.txt", "progress.jsonl"} == names


@pytest.mark.slow
def test_results_become_tables(rehearsed, tmp_path):
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    assert tables["tables"](tmp_path / "nms_mask_cuda.json").startswith("Not measured on a GPU yet")
    text = tables["tables"](rehearsed / "nms_mask_cuda.json")
    assert "| 2x20 | " in text
    assert "detops, graph" in text
    assert "rehearsal on the CPU" in text


def test_the_least_sure_come_first():
    names = _gpu_worker.ordered(list(runner.suites()))
    assert sorted(names) == sorted(runner.suites())
    assert names[0] == "simota_match"
    assert names[-1] == "scale_gradient"
    assert _gpu_worker.ordered(["yolox", "another", "centernet"]) == ["yolox", "another", "centernet"]


class Event:
    """Of a profile."""

    def __init__(self, name, start=0, duration=1, cuda=False, annotation=False):
        self.values = {"name": name, "start_ns": start, "duration_ns": duration, "is_user_annotation": annotation}
        self.values["device_type"] = DeviceType.CUDA if cuda else DeviceType.CPU

    def __getattr__(self, name):
        return lambda: self.values[name]


def test_a_profile_is_read():
    events = [
        Event(_meter.MARK, 100, 50), Event(_meter.MARK, 101, 40, cuda=True, annotation=True),
        Event("cudaLaunchKernel", 105), Event("cudaStreamSynchronize", 110), Event("cudaDeviceSynchronize", 160),
        Event("draw", 120, 2000, cuda=True), Event("draw", 130, 3000, cuda=True), Event("fill", 125, 1000, cuda=True),
        Event("Memcpy DtoH (Device -> Pageable)", 126, 9, cuda=True),
    ]  # fmt: skip
    profile = read_profile(events)
    assert profile.kernels == [Kernel("draw", 2, 5.0), Kernel("fill", 1, 1.0)]
    assert (profile.launches, profile.waits) == (3, 1)  # the wait at the end is ours
    with pytest.raises(RuntimeError, match="nothing of the GPU"):
        read_profile(events[:1])
    with pytest.raises(RuntimeError, match="did not see"):
        read_profile([])


def test_what_a_gpu_is_asked(monkeypatch):
    """Events, a graph of 20 calls over both sets of inputs, and memory, with CUDA simulated."""
    captured, calls, clock = [], [], iter(range(10**6))

    class Graph:
        def replay(self):
            captured.append("replay")

        def reset(self):
            captured.append("reset")

    class Stream:
        def wait_stream(self, other):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    def event(enable_timing):
        at = SimpleNamespace(record=lambda: setattr(at, "time", next(clock)), synchronize=lambda: None)
        at.elapsed_time = lambda end: float(end.time - at.time)
        return at

    fakes = {
        "Event": event, "CUDAGraph": Graph, "Stream": Stream, "current_stream": Stream, "stream": lambda stream: stream,
        "graph": lambda graph: Stream(), "synchronize": lambda: None, "memory_allocated": lambda: 100,
        "reset_peak_memory_stats": lambda: None, "max_memory_allocated": lambda: 350, "current_device": lambda: 0,
        "get_device_properties": lambda index: SimpleNamespace(
            name="NVIDIA X100 80GB", L2_cache_size=2, multi_processor_count=3, total_memory=4),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(GpuMeter, "seconds", 0.001)
    meter, sets = GpuMeter(), [lambda: calls.append(0), lambda: calls.append(1)]
    timing, host = meter.eager(sets)
    assert timing.median > 0
    assert host >= 0
    calls.clear()
    timing = meter.graph(sets)
    assert calls == [0, 1] * (1 + _meter.CALLS // 2)  # to warm up, and captured
    assert captured[-1] == "reset"
    assert captured.count("replay") >= 3
    assert timing.median > 0
    assert runner.peak_extra(sets[0], meter.cuda) == 250
    assert _gpu_worker.device_slug(meter.facts()["name"]) == "nvidia-x100-80gb"


def test_a_side_that_fails_or_takes_too_long_is_noted(monkeypatch):
    monkeypatch.setattr(_gpu_worker, "SIDE_LIMIT", 1.0)

    def fails():
        raise ValueError("out of luck")

    x = torch.ones(3)
    Meter().profile(x.clone)  # imports
    sides = {"fails": fails, "hangs": lambda: time.sleep(5), "loop": lambda: x * 2, "waits": lambda: x.sum().item()}
    result = _gpu_worker.run_case(
        [runner.Case("case", x.clone, x.clone, sides, "copy")], None, Meter(), time.time() + 9
    )
    assert result["notes"] == {
        "fails": ["time: ValueError: out of luck"], "hangs": ["time: TimeoutError: not within 1 s"],
        "waits": ["graph: it waits for the device"],
    }  # fmt: skip
    assert set(result["graph"]) == {"floor", "ours"}
    assert result["timings"]["loop"]["samples"] == 1
    assert result["syncs"] == {"floor": 0, "ours": 0, "loop": 0, "waits": 1}
    with time_limit(5):
        pass  # and it ends with the block


def test_another_process_goes_on_after_one_that_broke(tmp_path, monkeypatch):
    """The first measures a suite and ends in the second; the next gets the third."""
    worker = tmp_path / "worker"
    worker.write_text(f"""#!{sys.executable}
import json, sys, time
out, suites = sys.argv[4], sys.argv[7:]
def note(suite, state):
    with open(out + "/progress.jsonl", "a") as file:
        file.write(json.dumps({{"time": time.time(), "suite": suite, "state": state, "budget": 9}}) + "\\n")
for suite in suites:
    note(suite, "begun")
    if suite == "b":
        sys.exit(1)
    open(f"{{out}}/{{suite}}_cuda_x.json", "w").write("{{}}")
    note(suite, "done")
""")
    worker.chmod(0o755)
    monkeypatch.setattr(gpu.sys, "executable", str(worker))
    chosen = Namespace(out=tmp_path, quick=False, accv=None)
    gpu._measure(["a", "b", "c"], chosen, time.time() + 60, tmp_path / "all.tar.gz")
    state = gpu.progress(tmp_path)
    assert state == {"a": "done", "b": "failed", "c": "done"}
    assert gpu.summary(state, "abc") == "b: failed\n2 of 3 suites measured\n"
    gpu.pack(tmp_path, tmp_path / "all.tar.gz")
    with tarfile.open(tmp_path / "all.tar.gz") as file:
        assert file.getnames() == ["a_cuda_x.json", "c_cuda_x.json", "progress.jsonl"]


def test_a_hanging_process_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    note = {"time": time.time(), "suite": "a", "state": "begun", "budget": 0.1}
    (tmp_path / "progress.jsonl").write_text(json.dumps(note) + "\n")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    gpu._watch(process, tmp_path, tmp_path / "all.tar.gz")
    assert process.returncode < 0


def test_the_grid_of_accv_lab_is_corrected():
    source = "grid.x = batch_size + 8 - 1 / 8; grid.y = targets.size(1) + 128 - 1 / 128; z = a + 8 - 1 / 9;"
    text, count = _accv.corrected(source)
    assert count == 2
    assert text == "grid.x = (batch_size + 8 - 1) / 8; grid.y = (targets.size(1) + 128 - 1) / 128; z = a + 8 - 1 / 9;"


def test_without_accv_lab_there_are_no_further_sides(tmp_path):
    assert _accv.sides(tmp_path, "48x20x50 batched", "cpu") == {}
    assert _accv.sides(tmp_path, "another case", "cpu") == {}
