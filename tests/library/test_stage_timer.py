"""StageTimer: times by a clock that tests move by hand, nesting, and failed stages."""

import json
import threading

import pytest
import torch
from hand_clock import Clock, Device, by_name

from detops import StageTimer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(clock: Clock) -> StageTimer:
    return StageTimer("cpu", clock=clock)


def test_times_of_nested_stages(timer: StageTimer, clock: Clock) -> None:
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


def test_one_name_in_two_places_is_two_stages_and_order_is_that_of_the_first_call(
    timer: StageTimer, clock: Clock
) -> None:
    for outer in ("z", "a"):
        with timer.stage(outer):
            for inner in ("second", "first"):
                with timer.stage(inner):
                    clock.sleep(1)
    with timer.stage("z"), timer.stage("third"):
        clock.sleep(1)
    names = ["z", "z/second", "z/first", "z/third", "a", "a/second", "a/first"]
    assert list(by_name(timer)) == names


def test_an_outer_stage_that_is_still_open_is_not_listed(timer: StageTimer, clock: Clock) -> None:
    with timer.stage("outer"):
        with timer.stage("inner"):
            clock.sleep(2)
        assert list(by_name(timer)) == ["outer/inner"]
        assert "  inner" in timer.table()


def test_an_exception_ends_a_stage_as_failed(timer: StageTimer, clock: Clock) -> None:
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


def test_a_stage_that_only_failed_has_no_times(timer: StageTimer, clock: Clock) -> None:
    with pytest.raises(KeyError), timer.stage("bad"):
        raise KeyError
    (stats,) = timer.stats()
    assert (stats.calls, stats.failed, stats.total_ms) == (0, 1, 0)
    json.loads(timer.to_json(), parse_constant=lambda token: pytest.fail(f"{token} is no JSON"))


def test_reset_forgets_and_stages_opened_before_end_quietly(timer: StageTimer, clock: Clock) -> None:
    with timer.stage("old"):
        timer.reset()
        with timer.stage("new"):
            clock.sleep(1)
    assert list(by_name(timer)) == ["new"]
    timer.reset()
    assert timer.stats() == []
    assert timer.table().startswith("stage")


def test_each_thread_has_its_own_nesting() -> None:
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


def test_the_device_is_waited_for_only_when_read(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    device = Device(monkeypatch)
    timer = StageTimer("cuda:0", clock=clock)
    for _ in range(2):
        with timer.stage("network"):
            clock.sleep(0.25)  # the host queues
            device.work(3)  # the device's work for it
            with timer.stage("head"):
                device.work(5)
    assert (device.recorded, device.waits) == (8, 0)
    found = by_name(timer)
    assert device.waits == 1
    assert (found["network"].mean_ms, found["network"].host_ms, found["network/head"].mean_ms) == (8, 0.25, 5)
    assert by_name(timer) == found
    assert device.waits == 1  # times are read only once
    with timer.stage("network"):
        device.work(1)
    assert by_name(timer)["network"].min_ms == 1


def test_what_is_refused(timer: StageTimer) -> None:
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
def test_a_gpu_is_timed_without_waiting_for_it() -> None:
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
