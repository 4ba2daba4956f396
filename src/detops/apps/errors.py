"""What an error means to the user: one sentence that says what, where, and what to do."""

import errno
import os
import pickle
import re
import sysconfig
import traceback
import zipfile
import zlib
from pathlib import Path

import torch

from detops.arguments import flat

HINTS = {
    errno.ENOSPC: "the disk is full; free some space, then go on with --resume where there is one",
    errno.EDQUOT: "the quota of the disk is used up; free some space, then go on with --resume where there is one",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.EROFS: "the file system is read-only; choose another --out",
    errno.EISDIR: "is a folder, expected a file",
    errno.ENOTDIR: "is not a folder, or lies below a file",
    errno.ENOENT: "no such file or folder",
    errno.EEXIST: "exists already, and is not a folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EMFILE: "too many open files; use fewer --workers, or raise the limit by ulimit -n",
}
MEMORY = "out of memory; use a smaller --batch-size, --size, --width or --memory, or fewer --workers"
# Folders of detops, of Python and of what is installed: other code is the user's.
OURS = tuple(
    os.path.realpath(path) + os.sep
    for path in {str(Path(__file__).parents[1]), *sysconfig.get_paths().values(), str(Path(torch.__file__).parents[1])}
)
DAMAGE = (EOFError, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError)
# What PyTorch raises as a RuntimeError, or worse, although it is nobody's fault but the machine's or the arguments'.
PATTERNS = (
    (r"out of memory|can't allocate memory|not enough memory|bad allocation|bad_alloc|CUBLAS_STATUS_ALLOC", MEMORY),
    (
        r"DataLoader worker .* (exited unexpectedly|is killed)|unable to (write to|open shared memory)|bus error",
        "a process that reads images was ended, most likely for want of (shared) memory; use fewer --workers, or 0",
    ),
    (
        r"No CUDA GPUs|not compiled with CUDA|no NVIDIA driver|NVIDIA driver|no kernel image|invalid device ordinal",
        "the GPU cannot be used; check it with detops env, or choose --device cpu (train: --accelerator cpu)",
    ),
    (r"enforce fail at inline_container|PytorchStreamWriter failed", "cannot be written; is the disk full?"),
    (r"EADDRINUSE|address already in use", "the port of the ranks is in use; set another MASTER_PORT"),
)


def explain(error: BaseException) -> str | None:
    """Say in one line what an error means, if it is one that the user can do something about.

    Args:
        error: The error.

    Returns:
        The line; None for an error that shows a fault of detops.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"{MEMORY} ({flat(error, 200)})" if str(error) else MEMORY
    if isinstance(error, OSError):
        return _of_the_system(error)
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "detops":
        return None
    if isinstance(error, ValueError | ImportError):
        return flat(error)
    if isinstance(error, DAMAGE):
        return f"a file is damaged or was cut off: {flat(error)}"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply: {flat(error)}"
    if isinstance(error, RuntimeError | AssertionError | NotImplementedError):
        text = str(error)
        for pattern, meaning in PATTERNS:
            if re.search(pattern, text, re.IGNORECASE | re.DOTALL):
                return f"{meaning} ({flat(error, 200)})"
    if type(error).__module__.partition(".")[0] == "ray":
        return f"Ray: {flat(error)}"
    return _of_the_user(error)


def _of_the_user(error: BaseException) -> str | None:
    """Name the place of an error in a module of the user, such as that of --model."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if os.path.isfile(frame.filename) and not os.path.realpath(frame.filename).startswith(OURS):
            return f"{frame.filename}, line {frame.lineno}: {type(error).__name__}: {flat(error)}"
    return None


def _of_the_system(error: OSError) -> str:
    """Say what the system refused, and for which file."""
    meaning = HINTS.get(error.errno or 0)
    if meaning is None:
        return flat(error)
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{names[0]}: {meaning}" if names else f"{meaning} ({flat(error)})"
