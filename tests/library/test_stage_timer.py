"""StageTimer: what it measures by a clock that tests move by hand, how it nests, fails and is read."""

import copy
import io
import itertools
import json
import math
import threading
from contextlib import suppress

import pytest
import torch
from torch import nn

from detops import StageTimer


class Clock:
    """Nanoseconds that only go on when told."""

    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> int:
        return self.now

    def sleep(self, milliseconds: float) -> None:
        self.now += round(1e6 * milliseconds)


class Device:
    """A GPU whose work goes on when told: events take its clock, and it counts who waits for it."""

    def __init__(self, monkeypatch) -> None:
        device = self
        self.now, self.waits, self.recorded = 5.0, 0, 0

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self, stream: object) -> None:
                assert stream == ("stream of", "cuda:0")
                device.recorded += 1
                self.at = device.now

            def elapsed_time(self, end: "Event") -> float:
                assert device.waits, "read before the device was waited for"
                return float(torch.tensor(end.at - self.at, dtype=torch.float32))  # as CUDA tells it

        def synchronize(where: object) -> None:
            self.waits += 1

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda where: ("stream of", str(where)))

    def work(self, milliseconds: float) -> None:
        self.now += milliseconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(clock) -> StageTimer:
    return StageTimer("cpu", clock=clock)


def by_name(timer: StageTimer) -> dict:
    return {"/".join(stats.path): stats for stats in timer.stats()}


def test_times_of_nested_stages(timer, clock):
    for milliseconds in (1, 2, 6):
        with timer.stage("network"):
            clock.sleep(0.5)
            with timer.stage("head"):
                clock.sleep(milliseconds)
        with timer.stage("decode"):
            clock.sleep(4)
    found = by_name(timer)
    assert list(found) == ["network", "network/head", "decode"]
    head = found["network/head"]
    assert (head.calls, head.failed, head.total_ms, head.mean_ms, head.median_ms) == (3, 0, 9, 3, 2)
    assert (head.min_ms, head.max_ms, head.host_ms) == (1, 6, 3)
    assert found["network"].total_ms == 10.5
    assert found["decode"].mean_ms == 4


def test_one_name_in_two_places_is_two_stages_and_order_is_that_of_the_first_call(timer, clock):
    for outer in ("z", "a"):
        with timer.stage(outer):
            for inner in ("second", "first"):
                with timer.stage(inner):
                    clock.sleep(1)
    with timer.stage("z"), timer.stage("third"):
        clock.sleep(1)
    names = ["z", "z/second", "z/first", "z/third", "a", "a/second", "a/first"]
    assert list(by_name(timer)) == names


def test_an_outer_stage_that_is_still_open_is_not_listed(timer, clock):
    with timer.stage("outer"):
        with timer.stage("inner"):
            clock.sleep(2)
        assert list(by_name(timer)) == ["outer/inner"]
        assert "  inner" in timer.table()


def test_an_exception_ends_a_stage_as_failed(timer, clock):
    def fail() -> None:
        with timer.stage("outer"):
            with timer.stage("good"):
                clock.sleep(1)
            with timer.stage("bad"):
                clock.sleep(100)
                raise KeyError

    with pytest.raises(KeyError):
        fail()
    with timer.stage("outer"), timer.stage("bad"):
        clock.sleep(3)
    found = by_name(timer)
    assert (found["outer/bad"].calls, found["outer/bad"].failed, found["outer/bad"].total_ms) == (1, 1, 3)
    assert (found["outer/good"].calls, found["outer/good"].failed) == (1, 0)
    assert (found["outer"].calls, found["outer"].failed, found["outer"].max_ms) == (1, 1, 3)
    assert "bad (1 failed)" in timer.table()


def test_a_stage_that_only_failed_has_no_times(timer, clock):
    with pytest.raises(KeyError), timer.stage("bad"):
        raise KeyError
    (stats,) = timer.stats()
    assert (stats.calls, stats.failed, stats.total_ms) == (0, 1, 0)
    json.loads(timer.to_json(), parse_constant=lambda token: pytest.fail(f"{token} is no JSON"))


class Slow(nn.Module):
    def __init__(self, clock: Clock, error: type[BaseException] | None = None) -> None:
        super().__init__()
        self.clock, self.error = clock, error

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.clock.sleep(2)
        if self.error:
            raise self.error
        return x * scale


def test_wrapped_modules_nest_and_can_be_unwrapped(timer, clock):
    network = nn.Sequential(Slow(clock), Slow(clock))
    handles = [timer.wrap(network, "network"), timer.wrap(network[1], "second")]
    x = torch.ones(2)
    with timer.stage("all"):
        torch.testing.assert_close(network(x), x)
        torch.testing.assert_close(network[1](x, scale=3.0), 3 * x)
    found = by_name(timer)
    assert {name: stats.total_ms for name, stats in found.items()} == {
        "all": 6, "all/network": 4, "all/network/second": 2, "all/second": 2,
    }  # fmt: skip
    for handle in handles:
        handle.remove()
    network(x)
    assert by_name(timer) == found
    assert not network._forward_hooks
    assert not network[1]._forward_pre_hooks


def test_a_copy_of_a_wrapped_module_is_timed_too(timer, clock):
    """As a model's moving average is made: the copy has its hooks, and they tell the same timer."""
    module = Slow(clock)
    handle = timer.wrap(module, "module")
    average = copy.deepcopy(module)
    average.clock = clock
    handle.remove()
    module(torch.ones(1))
    with timer.stage("all"):
        average(torch.ones(1))
    assert {name: (s.calls, s.total_ms) for name, s in by_name(timer).items()} == {"all": (1, 2), "all/module": (1, 2)}


def test_a_wrapped_module_is_timed_with_its_hooks(timer, clock):
    module = Slow(clock)
    module.register_forward_pre_hook(lambda module, args: clock.sleep(100))
    timer.wrap(module, "module")
    module(torch.ones(1))
    assert by_name(timer)["module"].total_ms > 100


def test_a_module_that_is_unwrapped_during_its_call(timer, clock):
    class Unwraps(nn.Module):
        def forward(self, x):
            handle.remove()
            return x

    module = Unwraps()
    handle = timer.wrap(module, "module")
    with timer.stage("outer"):
        module(torch.ones(1))
        with timer.stage("next"):
            clock.sleep(1)
    assert list(by_name(timer)) == ["outer", "outer/next"]


def test_a_wrapped_module_that_fails(timer, clock):
    module = Slow(clock, KeyError)
    timer.wrap(module, "module")
    with pytest.raises(KeyError):
        module(torch.ones(1))
    module.error = None
    try:
        raise ValueError
    except ValueError:
        module(torch.ones(1))  # an exception is being handled, but it is not the module's
    (stats,) = timer.stats()
    assert (stats.path, stats.calls, stats.failed) == (("module",), 1, 1)


def test_what_an_interrupt_leaves_open_ends_with_the_stage_around_it(timer, clock):
    module = Slow(clock, KeyboardInterrupt)
    timer.wrap(module, "module")
    with pytest.raises(KeyboardInterrupt), timer.stage("outer"):
        module(torch.ones(1))
    with timer.stage("next"), suppress(KeyboardInterrupt):
        module(torch.ones(1))
    assert {name: (s.calls, s.failed) for name, s in by_name(timer).items()} == {
        "outer": (0, 1), "outer/module": (0, 1), "next": (1, 0), "next/module": (0, 1),
    }  # fmt: skip


def test_reset_forgets_and_stages_opened_before_end_quietly(timer, clock):
    with timer.stage("old"):
        timer.reset()
        with timer.stage("new"):
            clock.sleep(1)
    assert list(by_name(timer)) == ["new"]
    timer.reset()
    assert timer.stats() == []
    assert timer.table().startswith("stage")


def test_only_the_latest_calls_are_kept(clock):
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


def test_each_thread_has_its_own_nesting():
    timer, barrier = StageTimer("cpu"), threading.Barrier(4)

    def work(name: str) -> None:
        barrier.wait()
        for _ in range(200):
            with timer.stage(name), timer.stage("inner"):
                pass

    threads = [threading.Thread(target=work, args=(f"thread {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = {name: stats.calls for name, stats in by_name(timer).items()}
    expected = {f"thread {i}": 200 for i in range(4)} | {f"thread {i}/inner": 200 for i in range(4)}
    assert calls == expected


def test_the_device_is_waited_for_only_when_read(monkeypatch, clock):
    device = Device(monkeypatch)
    timer = StageTimer("cuda:0", clock=clock)
    for _ in range(2):
        with timer.stage("network"):
            clock.sleep(0.25)  # the host queues
            device.work(3)  # what the device does for it
            with timer.stage("head"):
                device.work(5)
    assert (device.recorded, device.waits) == (8, 0)
    found = by_name(timer)
    assert device.waits == 1
    assert (found["network"].mean_ms, found["network"].host_ms, found["network/head"].mean_ms) == (8, 0.25, 5)
    assert by_name(timer) == found
    assert device.waits == 1  # what was read is not read again
    with timer.stage("network"):
        device.work(1)
    assert by_name(timer)["network"].min_ms == 1


def test_moments_stay_exact_after_hours(monkeypatch, clock, tmp_path):
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


def test_chrome_trace(monkeypatch, clock, tmp_path):
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
    named = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
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


def test_a_trace_has_a_track_for_each_thread(tmp_path):
    timer, barrier = StageTimer("cpu"), threading.Barrier(2)

    def work(name: str) -> None:
        with timer.stage(name), timer.stage("inner"):
            barrier.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    timer.chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    tracks = {event["args"]["path"]: event["tid"] for event in events if event["ph"] == "X"}
    assert tracks["first"] == tracks["first/inner"] != tracks["second"] == tracks["second/inner"]


def test_a_trace_of_the_cpu_has_one_process(timer, clock, tmp_path):
    with timer.stage("stage"):
        clock.sleep(1)
    timer.chrome_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0}


def test_table(timer, clock):
    with timer.stage("network"):
        clock.sleep(1)
        with timer.stage("head"):
            clock.sleep(3)
    assert timer.table().splitlines() == [
        "stage    calls  mean ms  median    min    max   host  share",
        "network      1    4.000   4.000  4.000  4.000  4.000",
        "  head       1    3.000   3.000  3.000  3.000  3.000    75%",
    ]


def test_table_of_rich(timer, clock):
    """The same cells; what is no markup stays as it is, and no other row follows."""
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


def test_json(timer, clock):
    with timer.stage("network"):
        clock.sleep(4)
    record = json.loads(timer.to_json())
    assert record["device"] == "cpu"
    assert record["unit"] == "milliseconds"
    (stage,) = record["stages"]
    assert stage["path"] == ["network"]
    assert stage["mean_ms"] == 4
    assert all(math.isfinite(value) for key, value in stage.items() if key != "path")


def test_compiled_code_is_not_timed(timer):
    module = nn.Linear(2, 2)
    timer.wrap(module, "inside")

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(x: torch.Tensor) -> torch.Tensor:
        with timer.stage("traced"):
            return module(x)

    x = torch.ones(1, 2)
    with timer.stage("outside"):
        torch.testing.assert_close(compiled(x), nn.functional.linear(x, module.weight, module.bias))
    assert list(by_name(timer)) == ["outside"]


def test_what_is_refused(timer):
    with pytest.raises(ValueError, match="device: expected cpu or cuda, got mps"):
        StageTimer("mps")
    with pytest.raises(ValueError, match="limit: expected at least 1, got 0"):
        StageTimer("cpu", limit=0)
    stage = timer.stage("stage")
    with stage:
        pass
    with pytest.raises(RuntimeError, match="stage 'stage' was entered before"), stage:
        pass


@pytest.mark.gpu
def test_a_gpu_is_timed_without_waiting_for_it():
    timer, x = StageTimer("cuda"), torch.rand(4096, 4096, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            with timer.stage("outer"), timer.stage("product"):
                for _ in range(10):
                    x @ x
    finally:
        torch.cuda.set_sync_debug_mode("default")
    outer, product = timer.stats()
    assert outer.calls == product.calls == 5
    assert 0 < product.mean_ms <= outer.mean_ms
    assert product.host_ms < product.mean_ms
