"""Dtypes that are accepted and computed in, checks of arguments that need no device memory, and their way to a device.

Each error names the argument, what came and what is expected.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)


def accumulate_dtype(value: Tensor) -> torch.dtype:
    """Return the dtype that a tensor is computed in: float64 stays, all else is float32."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def of_one_dtype(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors that differ in dtype, as outputs under autocast may, in the one that holds all of their values."""
    dtypes = {one.dtype for one in tensors}
    if len(dtypes) < 2:
        return list(tensors)
    dtype = functools.reduce(torch.promote_types, dtypes)
    return [one.to(dtype) for one in tensors]


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
        ImportError: It is installed and cannot be imported; the message says why.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        checkout = f'; from a checkout: pip install "{install.replace("detops", ".")}"' * install.startswith("detops[")
        message = f'{who} needs {package}: pip install "{install}"{checkout}'
        if error.name is not None and error.name.partition(".")[0] != module.partition(".")[0]:
            message = f"{who} needs {package}, which cannot be imported: {flat(error)}; pip install {error.name}"
        raise ModuleNotFoundError(message, name=error.name) from error
    except Exception as error:
        advice = ""
        if "torchvision" in str(error):
            advice = f"; torchvision does not fit PyTorch {torch.__version__}: install the one that does, or remove it"
        raise ImportError(f"{who} needs {package}, which cannot be imported: {flat(error)}{advice}") from error


def flat(error: BaseException, limit: int = 600) -> str:
    """Return the message of an error as one line; of one that crossed from another process, what was raised there."""
    text = str(error).strip()
    if "\nOriginal Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    text = " ".join(text.split())
    if isinstance(error, KeyError) or not text:  # whose message is the key alone
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= limit else text[: limit - 1] + "…"


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


def sent(name: str, value: Tensor, device: torch.device | str) -> Tensor:
    """Move what the host has to a device, without the host waiting for it.

    A plain copy of host memory waits for the stream; from pinned memory it need not.

    Args:
        name: What the caller calls the value.
        value: A tensor on any device.
        device: Where to.

    Raises:
        RuntimeError: A CUDA graph is being captured: its replays would copy what then lies at the freed address.
    """
    target = torch.device(device)
    if value.device.type != "cpu" or target.type == "cpu":
        return value.to(target)
    require_no_capture(name, target)
    if target.type == "cuda" and not torch.compiler.is_compiling():
        value = value.pin_memory()
    return value.to(target, non_blocking=True)


def require_no_capture(name: str, device: torch.device) -> None:
    """Check that no CUDA graph is being captured, where a value of the host goes to a device.

    Raises:
        RuntimeError: One is.
    """
    if device.type == "cuda" and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{name}: expected nothing from the host while a CUDA graph is captured, since replays would copy it from"
            f" memory that is freed by then; pass a tensor on {device} if that is possible, or make this call before"
        )


Function = TypeVar("Function", bound=Callable[..., Any])


def renamed(**names: str) -> Callable[[Function], Function]:
    """Make a function name the new argument where a former one is given.

    Args:
        names: For each former name, what to write instead.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for name, new in names.items():
                if name in kwargs:
                    raise TypeError(f"{name}: this argument is now {new}")
            return function(*args, **kwargs)

        return cast(Function, call)

    return decorate
