"""Every kernel compiles for every supported GPU, on a machine without one, and takes what it took."""

import ast
import difflib
import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path

import ahead_of_time
import pytest
from ahead_of_time import RESOURCES, TARGETS, Compiled, Target
from op import HAS_TRITON

import detops

KERNELS = ahead_of_time.all_kernels()  # of the ops whose files have a table; others compile theirs by themselves
pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


@pytest.fixture(scope="module")
def compiled() -> Callable[[Target], dict[str, Compiled]]:
    """Compile the ops' kernels for a target, in one process that starts at the first use."""
    return functools.cache(lambda target: ahead_of_time.compile_in_one_process(target, KERNELS))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("op", KERNELS)
def test_compiles(op: str, target: Target, compiled: Callable[[Target], dict[str, Compiled]]) -> None:
    assert compiled(target)[op].result == "compiled"


@pytest.mark.slow
def test_what_kernels_take_is_as_the_file_has_it(compiled: Callable[[Target], dict[str, Compiled]]) -> None:
    """Registers, spills and shared memory; a change shows in the file's difference."""
    import triton

    expected = RESOURCES.read_text()
    if json.loads(expected)["triton"] != triton.__version__:
        pytest.skip(f"the file is of Triton {json.loads(expected)['triton']}")
    found = ahead_of_time.as_text({target: compiled(target) for target in TARGETS})
    lines = difflib.unified_diff(expected.splitlines(), found.splitlines(), RESOURCES.name, "now", lineterm="", n=3)
    diff = "\n".join(lines)
    assert not diff, (
        f"kernels take other resources:\n{diff}\n\nIf that is meant:\n"
        "    python tests/helpers/ahead_of_time.py > benchmarks/kernel_resources.json"
    )


@pytest.mark.parametrize("op", KERNELS)
def test_every_kernel_is_in_the_table(op: str) -> None:
    launch = importlib.import_module("detops.kernels._launch")
    module = importlib.import_module(f"detops.kernels.{op.rstrip('_')}")
    launched = {name for name, value in vars(module).items() if isinstance(value, launch.Kernel)}
    assert launched == {kernel.name for kernel in KERNELS[op]}


def test_atomics_are_relaxed() -> None:
    """No other memory is read for what an atomic tells; the end of the kernel orders them."""
    found = 0
    for path in Path(detops.__file__).parent.joinpath("kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "").startswith("atomic_"):
                values = {keyword.arg: keyword.value for keyword in node.keywords}
                assert getattr(values.get("sem"), "value", None) == "relaxed", f"{path.name}:{node.lineno}"
                found += 1
    assert found
