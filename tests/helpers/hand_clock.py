"""A clock and a GPU that tests move by hand, for the tests of `StageTimer`."""

import pytest
import torch

from detops import StageStats, StageTimer


class Clock:
    """A clock in nanoseconds that moves only by `sleep`."""

    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> int:
        return self.now

    def sleep(self, milliseconds: float) -> None:
        self.now += round(1e6 * milliseconds)


class Device:
    """A GPU whose clock moves only by `work`; it counts the events recorded and the waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
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
                return float(torch.tensor(end.at - self.at, dtype=torch.float32))  # as CUDA returns it

        def synchronize(where: object) -> None:
            self.waits += 1

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda where: ("stream of", str(where)))

    def work(self, milliseconds: float) -> None:
        self.now += milliseconds


def by_name(timer: StageTimer) -> dict[str, StageStats]:
    """Return the statistics by the names of a path, joined."""
    return {"/".join(stats.path): stats for stats in timer.stats()}
