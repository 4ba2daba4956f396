"""Compiling Triton kernels for GPUs that are not present, and what they take of these.

The test file of each op lists its kernels in `KERNELS`, and test_ahead_of_time.py compiles them all: in one process per
target, because a process that uses the interpreter, as the tests do without a GPU, compiles nothing.

    python tests/helpers/ahead_of_time.py > benchmarks/kernel_resources.json
"""

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

Target = tuple[str, int | str, int]  # backend, architecture, threads per warp

TARGETS: tuple[Target, ...] = (("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64))
RESOURCES = Path(__file__).parents[2] / "benchmarks" / "kernel_resources.json"

# What each kernel should take on an H100, in microseconds, for a case of the benchmarks. Estimated, never measured, and
# good to a factor of 2: the longest of bytes / 3 TB/s, warp instructions / (132 multiprocessors x 2 per clock), and what
# one program does one after another; without the launch. Where a measured time is far above, look there first.
EXPECTED = {
    "draw_gaussians.draw_kernel": (5, "48 x 20 x 20 x 50 with 16 boxes per image"),
    "gaussian_focal_loss.loss_kernel": (42, "8 x 80 x 128 x 128"),
    "gaussian_focal_loss_from_boxes.loss_kernel": (28, "8 x 80 x 128 x 128"),
    "background_losses.background_kernel": (19, "4 images, 80 classes, 22 400 points"),
    "positive_losses.positives_kernel": (10, "4 images, 22 400 points, 20 boxes"),
    "positive_losses_backward.gradient_kernel": (15, "4 images, 22 400 points, 20 boxes"),
    "atss_match.take_kernel": (5, "4 images, 22 400 points, 100 boxes"),
    "vlr_weights.region_kernel": (8, "4 images, 22 400 points, 100 boxes"),
    "simota_match.cells_kernel": (30, "8 images, 8400 cells, 80 classes, 100 boxes"),
    "simota_match.pick_kernel": (25, "8 images, 8400 cells, 100 boxes"),
    "simota_match.resolve_kernel": (10, "8 images, 8400 cells, 100 boxes"),
    "yolox_loss.loss_kernel": (15, "8 images, 8400 cells, 80 classes"),
    "nms_mask.pairs_kernel": (15, "8 x 1000 boxes"),
    "nms_mask.walk_kernel": (30, "8 x 1000 boxes"),
    "paste_masks.paste_kernel": (40, "100 masks of 800 x 1333"),
    "masks_to_rle.runs_kernel": (60, "100 masks of 800 x 1333"),
    "resize_normalize_pad.resize_kernel": (40, "8 images to 800 x 1344"),
}


class Kernel(NamedTuple):
    """One way to compile a kernel: the types of its arguments, and its constants (a dtype by its name in Triton)."""

    name: str
    types: Mapping[str, str | tuple[str, ...]]
    constants: Mapping[str, object]
    num_warps: int

    def __str__(self) -> str:
        """The kernel with the type of its first argument and all constants, as in `draw_kernel(*fp32, TILE=32)`."""
        first = str(next(iter(self.types.values())))
        constants = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.name}({first}, {constants})"


class Compiled(NamedTuple):
    """How the kernels of an op compile for a target.

    Attributes:
        result: "compiled", or the error that the first failing kernel gave.
        resources: For each kernel, by its text, what a program or thread takes, as in "40 registers, 0 B of stack, 32 B
            shared, 48 warps": warps that one multiprocessor (compute unit) then holds at once.
    """

    result: str
    resources: dict[str, str]


def compile_in_one_process(target: Target, kernels: Mapping[str, Sequence[Kernel]]) -> dict[str, Compiled]:
    """Compile the kernels of some ops for one target."""
    table = {
        op: [(k.name, dict(k.types), dict(k.constants), k.num_warps) for k in rows] for op, rows in kernels.items()
    }
    process = subprocess.run(
        [sys.executable, __file__, repr(target)], input=repr(table), env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = (json.loads(line) for line in process.stdout.splitlines() if line.startswith("["))
    found = {op: Compiled(result, resources) for op, result, resources in lines}
    missing = Compiled(f"not reached: exit status {process.returncode}\n{process.stderr}", {})
    return {op: found.get(op, missing) for op in kernels}


HAS_TRITON = importlib.util.find_spec("triton") is not None
for_each_target = pytest.mark.parametrize("target", TARGETS, ids=str)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


def assert_compiles(op: str, kernels: Sequence[tuple[Any, ...]], target: Target) -> None:
    """Compile the kernels of one op for one target, in a process of its own."""
    assert compile_in_one_process(target, {op: [Kernel(*kernel) for kernel in kernels]})[op].result == "compiled"


def main(target: Target) -> None:
    """Compile the kernels named in standard input, and write a line of JSON per op: its name and the outcome."""
    warnings.simplefilter("ignore")
    for op, rows in ast.literal_eval(sys.stdin.read()).items():
        result, resources = "compiled", {}
        try:
            for kernel in (Kernel(*row) for row in rows):
                resources[str(kernel)] = _compile(target, op, kernel)
        except Exception:
            result = traceback.format_exc()
        print(json.dumps((op, result, resources)), flush=True)


def _compile(target: Target, op: str, kernel: Kernel) -> str:
    """Compile as it is launched nearly always: all tensors, and the numbers that count, are multiples of 16."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    function = getattr(importlib.import_module(f"detops.kernels.{op.rstrip('_')}"), kernel.name)
    constants = {
        key: getattr(tl, value) if isinstance(value, str) else value for key, value in kernel.constants.items()
    }
    assert kernel.num_warps == function.options["num_warps"], f"{kernel.name} has other warps than the table"
    types = {**kernel.types, **dict.fromkeys(constants, "constexpr")}
    gpu = GPUTarget(*target)
    backend = make_backend(gpu)
    aligned = {}
    for i, parameter in enumerate(function.jit.params):
        kinds = types[parameter.name]
        for place, kind in [((i,), kinds)] if isinstance(kinds, str) else [((i, j), k) for j, k in enumerate(kinds)]:
            if kind.startswith("*") and not parameter.do_not_specialize_on_alignment:
                aligned[place] = backend.parse_attr("DS" if target[0] == "hip" else "D")
            elif kind.startswith("i") and not parameter.do_not_specialize and isinstance(kinds, str):
                aligned[place] = backend.parse_attr("D")
    signature = {name: types[name] for name in function.jit.arg_names}
    source = ASTSource(function.jit, signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=gpu, options=function.options)
    if target[0] == "cuda":
        return _taken_of_cuda(compiled, int(target[1]), kernel.num_warps)
    return _taken_of_rocm(compiled)


# Of a multiprocessor: warps, and shared memory in KiB, of which each block takes one more.
_MULTIPROCESSORS = {80: (64, 164), 90: (64, 228), 100: (64, 228)}


def _taken_of_cuda(compiled: Any, architecture: int, num_warps: int) -> str:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    taken = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", text)}
    shared = compiled.metadata.shared
    warps, memory = _MULTIPROCESSORS[architecture]
    registers_of_a_warp = -(-taken["REG"] // 8) * 8 * 32
    blocks = min(65536 // (registers_of_a_warp * num_warps), warps // num_warps, memory * 1024 // (shared + 1024), 32)
    return _taken(taken["REG"], taken["STACK"], shared, blocks * num_warps)


def _taken_of_rocm(compiled: Any) -> str:
    text = compiled.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", text)[0])

    registers, shared = number("vgpr_count"), number("group_segment_fixed_size")
    waves = min(8, 512 // max(8, -(-registers // 8) * 8)) * 4
    return _taken(registers, number("private_segment_fixed_size"), shared, waves)


def _taken(registers: int, stack: int, shared: int, warps: int) -> str:
    return f"{registers} registers, {stack} B of stack, {shared} B shared, {warps} warps"


def all_kernels() -> dict[str, list[Kernel]]:
    """The table of each op's test file that has one."""
    import detops

    found = {op: importlib.import_module(f"test_{op.rstrip('_')}") for op in sorted(detops.env()["ops"])}
    return {op: module.KERNELS for op, module in found.items() if hasattr(module, "KERNELS")}


def as_text(targets: Mapping[Target, Mapping[str, Compiled]]) -> str:
    """What all kernels take, in the form of the file that keeps it: by op, kernel and target; and expected times."""
    import triton

    table: dict[str, Any] = {"triton": triton.__version__}
    for target, ops in targets.items():
        for op, compiled in ops.items():
            for kernel, taken in compiled.resources.items():
                table.setdefault(op, {}).setdefault(kernel, {})[str(target[1])] = taken
    for name, (time, case) in EXPECTED.items():
        module, kernel = name.split(".")
        op = module if module in table else f"{module}_"
        first = next(entry for text, entry in table[op].items() if text.startswith(f"{kernel}("))
        first["expected"] = f"{time} us on an H100, estimated: {case}"
    return json.dumps(table, indent=1) + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(ast.literal_eval(sys.argv[1]))
    else:
        sys.path.append(str(Path(__file__).parents[1] / "ops"))
        tables = all_kernels()
        with ThreadPoolExecutor(2) as pool:
            results = pool.map(lambda target: compile_in_one_process(target, tables), TARGETS)
            print(as_text(dict(zip(TARGETS, results, strict=True))), end="")
