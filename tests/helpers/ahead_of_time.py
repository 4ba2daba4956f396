"""Compiling Triton kernels for GPUs that are not present.

The test file of each op lists its kernels in `KERNELS`, and test_ahead_of_time.py compiles them all: in one process per
target, because a process that uses the interpreter, as the tests do without a GPU, compiles nothing.
"""

import ast
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest

Target = tuple[str, int | str, int]  # backend, architecture, threads per warp

TARGETS: tuple[Target, ...] = (("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64))


class Kernel(NamedTuple):
    """One way to compile a kernel: the types of its arguments, and its constants (a dtype by its name in Triton)."""

    name: str
    types: Mapping[str, str | tuple[str, ...]]
    constants: Mapping[str, object]
    num_warps: int


def compile_in_one_process(target: Target, kernels: Mapping[str, Sequence[Kernel]]) -> dict[str, str]:
    """Compile the kernels of some ops for one target.

    Returns:
        For each op "compiled", or the error that its first failing kernel gave.
    """
    table = {
        op: [(k.name, dict(k.types), dict(k.constants), k.num_warps) for k in rows] for op, rows in kernels.items()
    }
    process = subprocess.run(
        [sys.executable, __file__, repr(target)], input=repr(table), env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found: dict[str, str] = dict(json.loads(line) for line in process.stdout.splitlines() if line.startswith("["))
    return {op: found.get(op, f"not reached: exit status {process.returncode}\n{process.stderr}") for op in kernels}


HAS_TRITON = importlib.util.find_spec("triton") is not None
for_each_target = pytest.mark.parametrize("target", TARGETS, ids=str)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


def assert_compiles(op: str, kernels: Sequence[tuple[Any, ...]], target: Target) -> None:
    """Compile the kernels of one op for one target, in a process of its own."""
    assert compile_in_one_process(target, {op: [Kernel(*kernel) for kernel in kernels]}) == {op: "compiled"}


def main(target: Target) -> None:
    """Compile the kernels named in standard input, and write a line of JSON per op: its name and the outcome."""
    warnings.simplefilter("ignore")
    for op, rows in ast.literal_eval(sys.stdin.read()).items():
        try:
            for row in rows:
                _compile(target, op, Kernel(*row))
            result = "compiled"
        except Exception:
            result = traceback.format_exc()
        print(json.dumps((op, result)), flush=True)


def _compile(target: Target, op: str, kernel: Kernel) -> None:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"detops.kernels.{op.rstrip('_')}"), kernel.name)
    constants = {
        key: getattr(tl, value) if isinstance(value, str) else value for key, value in kernel.constants.items()
    }
    source = ASTSource(function, {**kernel.types, **dict.fromkeys(constants, "constexpr")}, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget(*target), options={"num_warps": kernel.num_warps})
    assert compiled.asm["cubin" if target[0] == "cuda" else "hsaco"], f"no machine code for {kernel.name}"


if __name__ == "__main__":
    main(ast.literal_eval(sys.argv[1]))
