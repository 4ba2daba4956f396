"""StageTimer's output: table, JSON and Chrome trace."""

import io
import itertools
import json
import math
import threading
from pathlib import Path

import pytest
from hand_clock import Clock, Device

from detops import StageTimer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(clock: Clock) -> StageTimer:
    return StageTimer("cpu", clock=clock)


def test_only_the_latest_calls_are_kept(clock: Clock) -> None:
    timer = StageTimer("cpu", limit=3, clock=clock)
    for milliseconds in range(5):
        with timer.stage("stage"):
            clock.sleep(milliseconds)
    (stats,) = timer.stats()
    assert (stats.calls, stats.min_ms, stats.max_ms) == (3, 2, 4)
    assert json.loads(timer.to_json())["forgotten"] == 2
    assert "2 older calls are forgotten" in timer.table()
    timer.reset()
    assert json.loads(timer.to_json())["forgotten"] == 0


def test_moments_stay_exact_after_hours(monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path) -> None:
    device = Device(monkeypatch)
    timer = StageTimer("cuda:0", clock=clock)
    with timer.stage("first"):
        pass
    device.work(100 * 3_600_000)
    for _ in range(3):
        device.work(0.01)
        with timer.stage("late"):
            pass
        timer.stats()
    timer.chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    begins = [event["ts"] for event in events if event["name"] == "late" and event["pid"] == 1]
    assert [b - a for a, b in itertools.pairwise(begins)] == pytest.approx([10, 10], abs=0.01)


def test_chrome_trace(monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path) -> None:
    device = Device(monkeypatch)
    timer = StageTimer("cuda:0", clock=clock)
    with timer.stage("first"):
        clock.sleep(1)
        device.work(4)
    timer.stats()

    def fail() -> None:
        with timer.stage("outer"), timer.stage("second"):
            clock.sleep(1)
            device.work(2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    timer.chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    named = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert named == {0: "host", 1: "cuda:0"}
    spans = [(e["pid"], e["name"], e["cat"], e["ts"], e["dur"], e["args"]["path"]) for e in events if e["ph"] == "X"]
    assert spans == [
        (0, "first", "stage", 1_000_000, 1000, "first"),
        (0, "second", "failed", 1_001_000, 1000, "outer/second"),
        (0, "outer", "failed", 1_001_000, 1000, "outer"),
        (1, "first", "stage", 1_000_000, 4000, "first"),
        (1, "second", "failed", 1_004_000, 2000, "outer/second"),
        (1, "outer", "failed", 1_004_000, 2000, "outer"),
    ]


def test_a_trace_has_a_track_for_each_thread(tmp_path: Path) -> None:
    timer, barrier = StageTimer("cpu"), threading.Barrier(2)

    def work(name: str) -> None:
        with timer.stage(name), timer.stage("inner"):
            barrier.wait()

    threads = [threading.Thread(target=work, args=(name,), name=f"the {name}") for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    timer.chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    tracks = {event["args"]["path"]: event["tid"] for event in events if event["ph"] == "X"}
    assert tracks["first"] == tracks["first/inner"] != tracks["second"] == tracks["second/inner"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {tracks["first"]: "the first", tracks["second"]: "the second"}


def test_a_trace_of_the_cpu_has_one_process(timer: StageTimer, clock: Clock, tmp_path: Path) -> None:
    with timer.stage("stage"):
        clock.sleep(1)
    timer.chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0}


def test_few_calls_are_slower_than_the_percentiles(timer: StageTimer, clock: Clock) -> None:
    for milliseconds in [*range(1, 200), 1000]:
        with timer.stage("stage"):
            clock.sleep(milliseconds)
    (stats,) = timer.stats()
    assert (stats.median_ms, stats.p95_ms, stats.p99_ms, stats.max_ms) == (100.5, 190, 198, 1000)


def test_table(timer: StageTimer, clock: Clock) -> None:
    with timer.stage("network"):
        clock.sleep(1)
        with timer.stage("head"):
            clock.sleep(3)
    assert timer.table().splitlines() == [
        "stage    calls  mean ms  median    p95    p99    min    max   host  share",
        "network      1    4.000   4.000  4.000  4.000  4.000  4.000  4.000",
        "  head       1    3.000   3.000  3.000  3.000  3.000  3.000  3.000    75%",
    ]


def test_table_of_rich(timer: StageTimer, clock: Clock) -> None:
    """It has the same cells, prints names verbatim, and has no further row."""
    from rich.console import Console

    with timer.stage("net[red]work"):
        clock.sleep(1)
        with timer.stage("head"):
            clock.sleep(3)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(timer)
    lines = [line.replace("│", " ").split() for line in console.export_text().splitlines() if "│" in line]
    assert lines == [line.split() for line in timer.table().splitlines()[1:]]
    assert lines[0][0] == "net[red]work"


def test_json(timer: StageTimer, clock: Clock) -> None:
    with timer.stage("network"):
        clock.sleep(4)
    record = json.loads(timer.to_json())
    assert record["device"] == "cpu"
    assert record["unit"] == "milliseconds"
    (stage,) = record["stages"]
    assert stage["path"] == ["network"]
    assert stage["mean_ms"] == 4
    assert all(math.isfinite(value) for key, value in stage.items() if key != "path")
