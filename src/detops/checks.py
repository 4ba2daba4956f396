"""What stands under everything: checked mode, the counting of host synchronisations, and `env()`.

Data comes in as arguments of public functions, and goes out only as errors that name the argument, what came
and what is expected. Nothing here reads a tensor's values unless checked mode is on.
"""

import ctypes
import importlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from detops._version import __version__

_checked: ContextVar[bool] = ContextVar("detops_checked", default=os.environ.get("DETOPS_CHECKED") == "1")

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)


@contextmanager
def checked(enabled: bool = True) -> Iterator[None]:
    """Turn value checks on: a box that would be skipped silently raises a `ValueError` that names it.

    Values are read on the host, so a checked call synchronises with the device. The environment variable
    `DETOPS_CHECKED=1` turns the checks on for a whole process. Inside `torch.compile` values are not checked.

    Args:
        enabled: False turns the checks off within the block.

    Example:
        >>> import torch, detops
        >>> with detops.checked():
        ...     detops.draw_heatmap(torch.zeros(1, 4, 4), torch.tensor([[1, 1]]), torch.tensor([1]), torch.tensor([7]))
        Traceback (most recent call last):
        ValueError: heatmap_idxes: box 0 has 7, expected a value in 0 .. 0
    """
    token = _checked.set(enabled)
    try:
        yield
    finally:
        _checked.reset(token)


def is_checked() -> bool:
    """Return whether value checks are on here; always False while torch.compile traces."""
    return not torch.compiler.is_compiling() and _checked.get()


def unchecked() -> AbstractContextManager[None]:
    """Checked mode off, for calls whose arguments have been checked already."""
    return checked(False) if is_checked() else nullcontext()


def describe(value: object) -> str:
    """Say what came, for an error message: dtype, shape and device of a tensor, else the type and value."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}"


def require_module(module: str, package: str, who: str, install: str) -> ModuleType:
    """Import a module that detops does not depend on.

    Args:
        module: Its name.
        package: What it is known as.
        who: What needs it, for the message.
        install: What pip installs.

    Raises:
        ModuleNotFoundError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f'{who} needs {package}: pip install "{install}"'
        raise ModuleNotFoundError(message, name=error.name) from error


def require_tensor(name: str, value: object, dtypes: tuple[torch.dtype, ...], expected: str) -> Tensor:
    """Return `value` as a tensor of one of `dtypes`.

    Raises:
        TypeError: It is no tensor, or of another dtype.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name}: expected {expected}, got {describe(value)}")
    return value


def require_shape(name: str, value: Tensor, shape: tuple[int, ...], why: str = "") -> None:
    """Check a tensor's shape.

    Raises:
        ValueError: The shape differs.
    """
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}{why and ' ' + why}, got {tuple(value.shape)}")


def require_device(name: str, value: Tensor, like: Tensor, like_name: str) -> None:
    """Check that two tensors share a device.

    Raises:
        ValueError: They do not.
    """
    if value.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device}, as {like_name} is, got {value.device}")


def require_levels(model_output: object, strides: Sequence[int], num_classes: int | None = None) -> list[Tensor]:
    """Return YOLOX's raw maps as a list.

    Args:
        model_output: Each level's (B, 1, H, W, 5 + C), one dtype; or a tuple whose second item is that list.
        strides: One a level.
        num_classes: C; None for any.

    Raises:
        TypeError: It is no such list, or of another dtype.
        ValueError: Number of levels, shapes or devices differ.
    """
    if isinstance(model_output, tuple) and len(model_output) == 2 and isinstance(model_output[1], list | tuple):
        model_output = model_output[1]
    if not isinstance(model_output, list | tuple):
        raise TypeError(f"model_output: expected a list of tensors, got {type(model_output).__name__}")
    if not strides or len(model_output) != len(strides):
        raise ValueError(f"model_output: expected {len(strides)} levels, one a stride, got {len(model_output)}")
    first = model_output[0]
    for output in model_output:
        require_tensor("model_output", output, FLOATS, "floating-point tensors")
        fits = output.dim() == 5 and output.shape[1] == 1 and output.shape[4] > 5
        if num_classes is not None:
            fits = fits and output.shape[4] == 5 + num_classes
        if not fits or len(output) != len(first) or output.shape[4] != first.shape[4]:
            channels = "5 + C" if num_classes is None else 5 + num_classes
            raise ValueError(f"model_output: expected shape (B, 1, H, W, {channels}), got {tuple(output.shape)}")
        if output.dtype != first.dtype:
            raise TypeError(f"model_output: expected levels of one dtype, got {first.dtype} and {output.dtype}")
        require_device("model_output", output, first, "the first level")
    return list(model_output)


def require_maps(
    name: str, levels: object, channels: int | None, count: int, like: Sequence[Tensor] | None = None
) -> None:
    """Check a list of a dense head's maps (B, channels, H, W), one a level.

    Args:
        name: Of the argument.
        levels: What came.
        channels: How many; None for any.
        count: Number of levels.
        like: Maps of the same batch, heights, widths and device; None for none.

    Raises:
        TypeError: It is no list of floating-point tensors.
        ValueError: Number of levels, shapes or devices differ.
    """
    if not isinstance(levels, list | tuple):
        raise TypeError(f"{name}: expected a list of tensors, got {type(levels).__name__}")
    if not count or len(levels) != count:
        raise ValueError(f"{name}: expected {count} levels, one a stride, got {len(levels)}")
    for level, other in zip(levels, like or levels, strict=False):
        require_tensor(name, level, FLOATS, "floating-point tensors")
        if level.dim() != 4 or (channels is not None and level.shape[1] != channels):
            wanted = "C" if channels is None else channels
            raise ValueError(f"{name}: expected shape (B, {wanted}, H, W), got {tuple(level.shape)}")
        first, whose = (levels[0], "the first level") if like is None else (like[0], "cls_scores")
        if level.shape[0] != first.shape[0]:
            raise ValueError(f"{name}: expected {first.shape[0]} images, as {whose} has, got {level.shape[0]}")
        if level.shape[2:] != other.shape[2:]:
            raise ValueError(
                f"{name}: expected the shape of cls_scores, {tuple(other.shape)}, got {tuple(level.shape)}"
            )
        require_device(name, level, first, whose)


def image_sides(image_shapes: Tensor | Sequence[tuple[int, int]], batch: int, device: torch.device) -> Tensor:
    """Heights and widths of images as a tensor (B, 2).

    Raises:
        ValueError: There is not one pair an image.
    """
    sides = torch.as_tensor(image_shapes, device=device)
    if batch == 0 and sides.numel() == 0:
        sides = sides.reshape(0, 2)
    if sides.shape != (batch, 2):
        raise ValueError(
            f"image_shapes: expected a height and a width for each of {batch} images, got shape {tuple(sides.shape)}"
        )
    return sides


_SYNC_OPS = {
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "unique", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "masked_select", "equal", "is_nonzero", "argwhere",
}  # fmt: skip
_INDEX_OPS = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}
_HOST_READS = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__)


def _copies_across(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> bool:
    """Whether a copy goes between the host and a device, and waits for it."""
    if kwargs.get("non_blocking"):
        return False
    if name == "_to_copy":
        target = kwargs.get("device")
        return target is not None and (torch.device(target).type == "cpu") != (args[0].device.type == "cpu")
    return isinstance(args[1], Tensor) and (args[0].device.type == "cpu") != (args[1].device.type == "cpu")


class _SyncDispatch(TorchDispatchMode):
    """Counts the operators that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.split("::")[1], kwargs or {}
        if name in _SYNC_OPS:
            self.count += not self.paused
        elif name in _INDEX_OPS:
            indices = [i for i in args[1] if isinstance(i, Tensor)]
            self.count += any(i.dtype in (torch.bool, torch.uint8) for i in indices)
        elif name == "repeat_interleave":
            self.count += kwargs.get("output_size") is None and not (len(args) > 1 and isinstance(args[1], int))
        elif name in ("_to_copy", "copy_"):
            self.count += _copies_across(args, kwargs, name)
        return func(*args, **kwargs)


class _SyncFunction(TorchFunctionMode):
    """Sees what never reaches the dispatcher on the CPU, where there is nothing to wait for."""

    def __init__(self, dispatch: _SyncDispatch) -> None:
        super().__init__()
        self.dispatch = dispatch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _HOST_READS:
            # On a device these copy, which the dispatcher would count a second time.
            before = self.dispatch.count
            result = func(*args, **kwargs)
            self.dispatch.count = before + 1
            return result
        if func is torch.nn.functional.one_hot and (args[1:] or kwargs.get("num_classes", -1) != -1):
            # With num_classes given, only the CPU reads the values (to check them).
            self.dispatch.paused = True
            try:
                return func(*args, **kwargs)
            finally:
                self.dispatch.paused = False
        return func(*args, **kwargs)


def count_syncs(fn: Callable[..., object], *args: Any, **kwargs: Any) -> int:
    """Count the host synchronisations that a call causes, or would cause on a GPU.

    Counted on any device, by watching which operators run: `.item()` and all that calls it (`bool`, `int`,
    `if tensor`), `nonzero`, `unique`, indexing with a boolean mask, `masked_select`, `torch.equal`,
    `repeat_interleave` without `output_size`, `.tolist()`, `.numpy()`, `.cpu()`, and blocking copies between
    host and device. What a compiled kernel does inside is not seen.

    Args:
        fn: The function to call, once.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The number of synchronisations.

    Example:
        >>> x = torch.arange(4.0)
        >>> count_syncs(lambda: x[x > 1].sum().item())
        2
        >>> count_syncs(lambda: torch.where(x > 1, x, 0).sum())
        0
    """
    dispatch = _SyncDispatch()
    with _SyncFunction(dispatch), dispatch:
        fn(*args, **kwargs)
    return dispatch.count


def library_path() -> Path | None:
    """Return the file of the C++ kernels, or None where they were not built; `DETOPS_LIBRARY` names another."""
    if os.environ.get("DETOPS_LIBRARY"):
        return Path(os.environ["DETOPS_LIBRARY"]).absolute()
    folder = Path(__file__).parent
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


def _cpu_model() -> str:
    """Name of the processor where the system tells it, with its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    return platform.machine()


def _backends(op: str) -> dict[str, str]:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        "cpu": "C++" if has(op, "CPU") else "portable",
        "cuda": "Triton" if find_spec("triton") and has(op, "CUDA") else "portable",
        "other": "portable",
    }


def env() -> dict[str, Any]:
    """Describe this machine and which backend each op runs on it, as plain JSON-able data.

    Returns:
        A dict with the keys `detops`, `python`, `platform`, `torch`, `triton` (versions), `cpu`, `gpu`,
        `build` (compiler and flags of the C++ kernels) and `ops` (for each op: its backend on `cpu`,
        `cuda` and any `other` device).

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
        "cpu": {
            "model": _cpu_model(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "gpu": [{"name": gpu.name, "memory_GiB": round(gpu.total_memory / 2**30, 1)} for gpu in gpus],
        "build": _build_info(),
        "ops": {name.split("::")[1]: _backends(name) for name in names},
    }
