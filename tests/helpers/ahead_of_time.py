"""Compiling Triton kernels for GPUs that are not there."""

import importlib.util
import os
import subprocess
import sys

import pytest

HAS_TRITON = importlib.util.find_spec("triton") is not None
TARGETS = [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)]

CODE = """
import importlib, warnings
warnings.simplefilter("ignore")
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
module, cases, target = {arguments!r}
module = importlib.import_module("detops.kernels." + module)
for name, types, constants, num_warps in cases:
    values = {{key: getattr(tl, value) if isinstance(value, str) else value for key, value in constants.items()}}
    source = ASTSource(getattr(module, name), types | dict.fromkeys(values, "constexpr"), constexprs=values)
    compiled = triton.compile(source, target=GPUTarget(*target), options=dict(num_warps=num_warps))
    assert compiled.asm["cubin" if target[0] == "cuda" else "hsaco"]
print("compiled")
"""

for_each_target = pytest.mark.parametrize("target", TARGETS, ids=str)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


def assert_compiles(module, cases, target):
    """Compile kernels of `detops.kernels.<module>`, in a process of its own: the interpreter, once chosen, compiles nothing.

    Each case is a kernel's name, the types of its arguments, its constants (a dtype by its name in triton.language)
    and the number of warps.
    """
    code = CODE.format(arguments=(module, cases, target))
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "compiled", result.stderr
