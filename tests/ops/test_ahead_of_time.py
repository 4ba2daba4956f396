"""Every kernel compiles for every supported GPU, on a machine without one."""

import functools
import importlib
from collections.abc import Callable

import ahead_of_time
import pytest
from ahead_of_time import TARGETS, Kernel, Target
from op import HAS_TRITON

import detops

# The other ops' files compile their kernels by themselves.
OPS = [
    op for op in sorted(detops.env()["ops"]) if hasattr(importlib.import_module(f"test_{op.rstrip('_')}"), "KERNELS")
]
pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


def kernels(op: str) -> list[Kernel]:
    """Return the kernels that the op's test file lists."""
    found: list[Kernel] = importlib.import_module(f"test_{op.rstrip('_')}").KERNELS
    return found


@pytest.fixture(scope="module")
def compiled() -> Callable[[Target], dict[str, str]]:
    """Compile the ops' kernels for a target, in one process that starts at the first use."""

    @functools.cache
    def results(target: Target) -> dict[str, str]:
        return ahead_of_time.compile_in_one_process(target, {op: kernels(op) for op in OPS})

    return results


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_compiles(op: str, target: Target, compiled: Callable[[Target], dict[str, str]]) -> None:
    assert compiled(target)[op] == "compiled"


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_is_in_the_table(op: str) -> None:
    module = importlib.import_module(f"detops.kernels.{op.rstrip('_')}")
    launched = {name for name, value in vars(module).items() if name.endswith("_kernel")}
    assert launched == {kernel.name for kernel in kernels(op)}
