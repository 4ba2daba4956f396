"""StageTimer around modules: wrapping, unwrapping, failures, copies, compiled code."""

import copy
from contextlib import suppress

import pytest
import torch
from hand_clock import Clock, by_name
from torch import nn

from detops import StageTimer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(clock: Clock) -> StageTimer:
    return StageTimer("cpu", clock=clock)


class Slow(nn.Module):
    def __init__(self, clock: Clock, error: type[BaseException] | None = None) -> None:
        super().__init__()
        self.clock, self.error = clock, error

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.clock.sleep(2)
        if self.error:
            raise self.error
        return x * scale


def test_wrapped_modules_nest_and_can_be_unwrapped(timer: StageTimer, clock: Clock) -> None:
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


def test_a_copy_of_a_wrapped_module_is_timed_too(timer: StageTimer, clock: Clock) -> None:
    """A model's moving average is such a copy: its hooks report to the same timer."""
    module = Slow(clock)
    handle = timer.wrap(module, "module")
    average = copy.deepcopy(module)
    average.clock = clock
    handle.remove()
    module(torch.ones(1))
    with timer.stage("all"):
        average(torch.ones(1))
    assert {name: (s.calls, s.total_ms) for name, s in by_name(timer).items()} == {"all": (1, 2), "all/module": (1, 2)}


def test_a_wrapped_module_is_timed_with_its_hooks(timer: StageTimer, clock: Clock) -> None:
    module = Slow(clock)
    module.register_forward_pre_hook(lambda module, args: clock.sleep(100))
    timer.wrap(module, "module")
    module(torch.ones(1))
    assert by_name(timer)["module"].total_ms > 100


def test_a_module_that_is_unwrapped_during_its_call(timer: StageTimer, clock: Clock) -> None:
    class Unwraps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            handle.remove()
            return x

    module = Unwraps()
    handle = timer.wrap(module, "module")
    with timer.stage("outer"):
        module(torch.ones(1))
        with timer.stage("next"):
            clock.sleep(1)
    assert list(by_name(timer)) == ["outer", "outer/next"]


def test_a_wrapped_module_that_fails(timer: StageTimer, clock: Clock) -> None:
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


def test_what_an_interrupt_leaves_open_ends_with_the_stage_around_it(timer: StageTimer, clock: Clock) -> None:
    module = Slow(clock, KeyboardInterrupt)
    timer.wrap(module, "module")
    with pytest.raises(KeyboardInterrupt), timer.stage("outer"):
        module(torch.ones(1))
    with timer.stage("next"), suppress(KeyboardInterrupt):
        module(torch.ones(1))
    assert {name: (s.calls, s.failed) for name, s in by_name(timer).items()} == {
        "outer": (0, 1), "outer/module": (0, 1), "next": (1, 0), "next/module": (0, 1),
    }  # fmt: skip


def test_compiled_code_is_not_timed(timer: StageTimer) -> None:
    module = nn.Linear(2, 2)
    timer.wrap(module, "inside")

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(x: torch.Tensor) -> torch.Tensor:
        with timer.stage("traced"):
            return module(x)  # type: ignore[no-any-return]

    x = torch.ones(1, 2)
    with timer.stage("outside"):
        torch.testing.assert_close(compiled(x), nn.functional.linear(x, module.weight, module.bias))
    assert list(by_name(timer)) == ["outside"]
