"""The machine, the file of the C++ kernels, and the backend that runs each op."""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from detops._version import __version__


def library_path() -> Path | None:
    """Return the file of the C++ kernels, or None if they were not built; `DETOPS_LIBRARY` names another."""
    if os.environ.get("DETOPS_LIBRARY"):
        return Path(os.environ["DETOPS_LIBRARY"]).absolute()
    folder = Path(__file__).parents[1]
    return next((path for pattern in ("_C*.so", "_C*.pyd") for path in sorted(folder.glob(pattern))), None)


def _build_info() -> dict[str, str]:
    path = library_path()
    if path is None:
        return {"library": "not built: reinstall detops where a C++17 compiler is found"}
    info = ctypes.CDLL(str(path)).detops_build_info
    info.restype = ctypes.c_char_p
    compiler, flags, vector = info().decode().split("\n")
    return {"library": path.name, "compiler": compiler, "flags": flags, "vector code in use": vector}


def _triton_version() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def cpu_multiplies_bfloat16() -> bool:
    """Tell whether the CPU has instructions for bfloat16, without which it is slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def cpu_model() -> str:
    """Return the name of the processor, if the system knows it, with its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    return platform.machine()


@cache
def triton_problem() -> str | None:
    """Return why GPUs run the portable form of the ops; None if they run Triton.

    If there is a GPU, a kernel is compiled and launched to find out, once.
    """
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not torch.cuda.is_available():
        return None
    try:
        import_module("detops.kernels._probe").check()  # imported by name: the kernels stand above this module
    except Exception as error:
        said = str(error).strip()
        return f"{type(error).__name__}: {said.splitlines()[0] if said else 'no reason given'}"
    return None


def _backends(op: str) -> dict[str, str]:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        "cpu": "C++" if has(op, "CPU") else "portable",
        "cuda": "Triton" if has(op, "CUDA") and triton_problem() is None else "portable",
        "other": "portable",
    }


def env() -> dict[str, Any]:
    """Describe this machine and which backend each op runs on it, as plain JSON-able data.

    Returns:
        A dict with the keys `detops`, `python`, `platform`, `torch`, `triton` (versions), `triton_problem` (why
        Triton does not work here; None if it does, or if there is no GPU to try it on), `cpu`, `gpu`, `build` (compiler
        and flags of the C++ kernels) and `ops` (for each op: its backend on `cpu`, `cuda` and any `other` device).

    Example:
        >>> import detops
        >>> detops.env()["ops"]["draw_gaussians_"]["other"]
        'portable'
    """
    names = sorted({n.split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith("detops::")})
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "detops": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "triton_problem": triton_problem(),
        "cpu": {
            "model": cpu_model(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "gpu": [{"name": gpu.name, "memory_GiB": round(gpu.total_memory / 2**30, 1)} for gpu in gpus],
        "build": _build_info(),
        "ops": {name.split("::")[1]: _backends(name) for name in names},
    }
